// Opens connections to the NBD server, each through its handshake, without blocking.
#ifndef BRAID_TOOLS_ATTACH_DIALER_H_
#define BRAID_TOOLS_ATTACH_DIALER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/handshake.h"

namespace braid::attach {

struct Connection {
  UniqueFd fd;  // blocking, no timeouts set
  ExportInfo info;
};

class Dialer {
 public:
  using Done = std::function<void(absl::StatusOr<std::vector<Connection>>)>;

  Dialer(EventLoop* loop, std::string socket_path);
  ~Dialer() { Cancel(); }
  Dialer(const Dialer&) = delete;
  Dialer& operator=(const Dialer&) = delete;

  // Opens `count` connections one after the other; only one when the server does not allow
  // several (NBD_FLAG_CAN_MULTI_CONN). `done` comes once, from the loop, within `limit`,
  // unless Cancel() or another Dial() comes first.
  void Dial(size_t count, absl::Duration limit, Done done);
  void Cancel();

 private:
  void Next();
  void OnReadable();
  absl::Status Exchange();
  void Finish(absl::Status status);

  EventLoop* const loop_;
  const std::string socket_path_;
  size_t count_ = 0;
  Done done_;
  EventLoop::TimerId deadline_ = 0;
  UniqueFd fd_;
  Handshake handshake_;
  std::vector<Connection> made_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_DIALER_H_
