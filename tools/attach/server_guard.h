// Ends the server when braid-attach is killed.
//
// PR_SET_PDEATHSIG cannot: nbdkit replaces whatever signal is set by SIGTERM as it starts in
// the foreground, and does not end at SIGTERM while a client is connected; the kernel's NBD
// client always is. It would go on serving, and hold the volume, with nobody to ask about it.
// So a small process waits beside each server for our end and then does what we would have
// done: hang up on the clients, so that the server ends cleanly, and kill it if it does not.
#ifndef BRAID_TOOLS_ATTACH_SERVER_GUARD_H_
#define BRAID_TOOLS_ATTACH_SERVER_GUARD_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"

namespace braid::attach {

class ServerGuard {
 public:
  ServerGuard() = default;
  ~ServerGuard() { Dismiss(); }
  ServerGuard(const ServerGuard&) = delete;
  ServerGuard& operator=(const ServerGuard&) = delete;

  // Forks, so this process must have one thread. `server_pidfd` stays the caller's.
  absl::Status Start(pid_t server, int server_pidfd, const std::string& socket_path);
  // When the server has ended.
  void Dismiss();

 private:
  pid_t pid_ = 0;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_SERVER_GUARD_H_
