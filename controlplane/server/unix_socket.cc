#include "controlplane/server/unix_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"

namespace braid {
namespace {

// 0 when someone accepts connections there, else why not. `path` fits a sockaddr_un.
int TryConnect(const std::string& path) {
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return errno;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0)
    return 0;
  return errno;
}

absl::Status InUse(const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": another server listens there; stop it or use another --listen"));
}

}  // namespace

absl::StatusOr<UniqueFd> ClaimUnixSocket(const std::string& path) {
  const std::string lock_path = path + ".lock";
  UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return ErrnoStatus(errno, lock_path);
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return InUse(path);
    return ErrnoStatus(errno, lock_path);
  }
  struct stat st {};
  if (lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return lock;
    return ErrnoStatus(errno, path);
  }
  if (!S_ISSOCK(st.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": is not a socket; remove it or use another --listen"));
  }
  // A full backlog (EAGAIN) is a living server too.
  if (TryConnect(path) != ECONNREFUSED) return InUse(path);
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, path);
  return lock;
}

}  // namespace braid
