// The NBD server process of an attachment: one nbdkit, and whether it answers.
//
// The listening socket is ours and is handed to each nbdkit in turn by socket activation
// (LISTEN_FDS). So the socket file never goes away while the attachment lives, and a client
// that connects between two servers waits in the backlog for the next one; it is not refused.
#ifndef BRAID_TOOLS_ATTACH_SERVER_H_
#define BRAID_TOOLS_ATTACH_SERVER_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tools/attach/child.h"
#include "tools/attach/dialer.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/log.h"
#include "tools/attach/server_clients.h"
#include "tools/attach/server_guard.h"
#include "tools/attach/unix_socket.h"

namespace braid::attach {

class Server {
 public:
  // From start to the end of the first handshake. Opening reads the whole map: 10 s for
  // 64 TiB is what Braid promises; the rest is for a machine under load.
  static constexpr absl::Duration kReadyLimit = absl::Seconds(60);

  struct Events {
    std::function<void()> ready;                  // a handshake succeeded
    std::function<void(absl::Status why)> ended;  // after every Start that returned OK
  };

  // `argv` is nbdkit's whole command line but for the socket.
  Server(EventLoop* loop, Log* log, std::vector<std::string> argv, Events events);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Before the first Start.
  absl::Status Listen(const std::string& socket_path);
  // When none runs. One that is not ready within kReadyLimit is killed.
  absl::Status Start();

  // SIGTERM: nbdkit finishes the requests it has, flushes and closes the volume. Clients
  // that do not let go by themselves are hung up on after kHangUpAfter, in which the
  // requests in flight end: nbdkit 1.32 may abort when it loses a client that has any.
  static constexpr absl::Duration kHangUpAfter = absl::Milliseconds(100);
  void Terminate();
  void Kill();
  // Removes the socket; clients that wait in its backlog are hung up on.
  void CloseSocket() { listening_.Close(); }

  std::vector<ServerClient> Clients() const;
  pid_t pid() const { return child_.pid(); }  // 0 when none runs
  bool running() const { return child_.running(); }
  bool ready() const { return ready_; }

 private:
  void OnProbed(absl::StatusOr<std::vector<Connection>> probed);
  void OnEnded(const absl::Status& how);
  void HangUp();

  EventLoop* const loop_;
  Log* const log_;
  const std::vector<std::string> argv_;
  const Events events_;
  ListeningSocket listening_;
  Child child_;
  ServerGuard guard_;
  std::unique_ptr<Dialer> probe_;
  bool ready_ = false;
  EventLoop::TimerId hang_up_ = 0;
  absl::Status probe_failure_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_SERVER_H_
