// A Unix socket's file: taken from the dead, never from the living.
#ifndef BRAID_CONTROLPLANE_SERVER_UNIX_SOCKET_H_
#define BRAID_CONTROLPLANE_SERVER_UNIX_SOCKET_H_

#include <string>

#include "absl/status/statusor.h"
#include "lib/base/unique_fd.h"

namespace braid {

// Makes way for a server on `path`: removes a socket that nobody listens on. Keep the
// result, a lock beside the socket, while the server runs: gRPC replaces whatever is at
// the path, so two that start at once must not both come so far. FailedPrecondition: a
// server listens there, or is about to, or something that is no socket is in the way.
absl::StatusOr<UniqueFd> ClaimUnixSocket(const std::string& path);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_UNIX_SOCKET_H_
