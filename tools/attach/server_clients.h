// Who is connected to the server, and how to make them let go.
//
// nbdkit 1.32 does not end at SIGTERM while a client is connected, however idle, and has no
// way to be told to hang up. So its sockets are borrowed (pidfd_getfd) and shut down for
// reading: nbdkit sees a client that hung up, after it has answered what it had read.
#ifndef BRAID_TOOLS_ATTACH_SERVER_CLIENTS_H_
#define BRAID_TOOLS_ATTACH_SERVER_CLIENTS_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "lib/base/unique_fd.h"

namespace braid::attach {

struct ServerClient {
  UniqueFd fd;        // the server's end
  pid_t process = 0;  // that connected; 0 if unknown
};

// Connections to `socket_path` that process `pid` has open, those left out whose client has
// hung up. Empty where the kernel does not let us look.
std::vector<ServerClient> FindServerClients(pid_t pid, int pidfd, const std::string& socket_path);

void HangUpOn(const std::vector<ServerClient>& clients);

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_SERVER_CLIENTS_H_
