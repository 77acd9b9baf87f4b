// The supervisor: one attachment from its first server to the last of its files.
//
//   kAttaching --server and path are up--> kAttached --detach--> kDetaching --path is down-->
//   kStopping --server has ended--> kEnded
//
// While attached, a server that ends is started again and the path put behind the new one,
// without end and with bounded haste (RestartPolicy). A refused detach leads back to
// kAttached. Whatever fails while attaching leads through kDetaching and kStopping, so that
// there is one way to take things down. The old server has always ended before a new one is
// started: nothing of it can write after the new one has answered.
#ifndef BRAID_TOOLS_ATTACH_ATTACHMENT_H_
#define BRAID_TOOLS_ATTACH_ATTACHMENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tools/attach/control_socket.h"
#include "tools/attach/directory.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/log.h"
#include "tools/attach/options.h"
#include "tools/attach/path.h"
#include "tools/attach/report.h"
#include "tools/attach/restart_policy.h"
#include "tools/attach/server.h"

namespace braid::attach {

class Attachment {
 public:
  // How long a server may take to finish its requests, flush and close the volume.
  static constexpr absl::Duration kStopLimit = absl::Seconds(60);

  // `attached` is called once, when server and path are up for the first time.
  Attachment(EventLoop* loop, Log* log, Options options, Directory directory,
             std::function<void(const Report&)> attached);

  // Runs from a loop that has not started yet; ends it with Stop() when all is taken down.
  // An error means that nothing was started.
  absl::Status Start();

  // SIGTERM or SIGINT: detach, and end in any case.
  //
  // Who sends it wants this process gone (a shutdown, an operator) and would use SIGKILL
  // next. Refusing, as `detach` does for a path in use, would only turn a clean end of the
  // server into an unclean one, which costs a mirror its synchrony. So the server is stopped
  // cleanly all the same. A file by fuse cannot outlive us and is unmounted lazily; a device
  // in use stays, its requests wait for its dead-connection timeout, and a braid-attach that
  // is started in time adopts it.
  void Terminate();

  // After the loop has ended: why attaching failed, or OK.
  const absl::Status& failure() const { return failure_; }

 private:
  enum class Phase { kAttaching, kAttached, kDetaching, kStopping, kEnded };

  std::unique_ptr<ClientPath> MakePath(absl::Status* status);
  std::vector<std::string> ServerCommand() const;
  Report MakeReport() const;

  void OnServerReady();
  void OnServerEnded(absl::Status why);
  void RestartServer();
  void PathUp();
  void OnPathUp(absl::Status status);
  void OnPathBroken(const absl::Status& why);
  void Fail(absl::Status why);

  void Detach(bool force);
  void BeginDetach();
  void OnPathDown(const absl::Status& status);
  void StopServer();
  void StopTick();
  void End();
  void Note(absl::string_view what, const absl::Status& status);

  EventLoop* const loop_;
  Log* const log_;
  const Options options_;
  Directory directory_;
  const std::function<void(const Report&)> attached_;
  const int64_t since_unix_seconds_;

  Server server_;
  ControlSocket control_;
  std::unique_ptr<ClientPath> path_;

  Phase phase_ = Phase::kAttaching;
  absl::Status failure_;
  std::string last_error_;
  uint64_t restarts_ = 0;
  absl::Duration server_started_;
  RestartPolicy server_policy_;
  RestartPolicy path_policy_;
  absl::Duration path_came_up_;
  EventLoop::TimerId restart_ = 0;
  EventLoop::TimerId path_retry_ = 0;
  EventLoop::TimerId stop_tick_ = 0;
  absl::Duration stop_began_;
  bool force_ = false;
  bool exiting_ = false;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_ATTACHMENT_H_
