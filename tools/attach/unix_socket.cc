#include "tools/attach/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"

namespace braid::attach {

namespace {

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("socket path ", path, " is longer than ",
                                                   sizeof address.sun_path - 1,
                                                   " bytes; choose a shorter one"));
  }
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status RemoveStale(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return absl::OkStatus();
    return ErrnoStatus(errno, path);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " exists and is not a socket; remove it or choose another path"));
  }
  const absl::StatusOr<UniqueFd> probe = ConnectUnix(path);
  if (probe.ok() || ErrnoOf(probe.status()) == EAGAIN) {
    return absl::FailedPreconditionError(
        absl::StrCat("another process listens on ", path, "; choose another path"));
  }
  if (ErrnoOf(probe.status()) != ECONNREFUSED) return probe.status();
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("cannot remove the stale socket ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  const absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot connect to ", path));
  }
  return fd;
}

absl::StatusOr<ListeningSocket> ListeningSocket::Open(std::string path) {
  const absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  if (absl::Status status = RemoveStale(path); !status.ok()) return status;

  ListeningSocket made;
  made.fd_ = UniqueFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!made.fd_.valid()) return ErrnoStatus(errno, "socket");
  // The mode of the file is the socket's under this umask, from its first moment.
  const mode_t before = umask(0177);
  const int bound =
      bind(made.fd_.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address);
  const int error = errno;
  umask(before);
  if (bound != 0) return ErrnoStatus(error, absl::StrCat("cannot make the socket ", path));
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0) {
    made.device_ = info.st_dev;
    made.inode_ = info.st_ino;
  }
  made.path_ = std::move(path);
  if (listen(made.fd_.get(), SOMAXCONN) != 0) return ErrnoStatus(errno, "listen");
  return made;
}

ListeningSocket& ListeningSocket::operator=(ListeningSocket&& other) noexcept {
  if (this != &other) {
    Close();
    path_ = std::exchange(other.path_, {});
    fd_ = std::move(other.fd_);
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

void ListeningSocket::Close() {
  fd_.Reset();
  if (path_.empty()) return;
  struct stat info {};
  if (lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) {
    (void)unlink(path_.c_str());
  }
  path_.clear();
}

}  // namespace braid::attach
