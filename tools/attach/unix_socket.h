// Unix stream sockets by path.
#ifndef BRAID_TOOLS_ATTACH_UNIX_SOCKET_H_
#define BRAID_TOOLS_ATTACH_UNIX_SOCKET_H_

#include <sys/types.h>

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "lib/base/unique_fd.h"

namespace braid::attach {

// A listening socket and the file that names it; the destructor removes the file if it is
// still the one made here.
class ListeningSocket {
 public:
  // The file gets mode 0600. A socket file that nobody listens on is replaced.
  // FailedPrecondition when somebody does, or when something else has the name.
  static absl::StatusOr<ListeningSocket> Open(std::string path);

  ListeningSocket() = default;
  ListeningSocket(ListeningSocket&& other) noexcept { *this = std::move(other); }
  ListeningSocket& operator=(ListeningSocket&& other) noexcept;
  ~ListeningSocket() { Close(); }
  void Close();

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  UniqueFd fd_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// Non-blocking, close-on-exec. Never waits: Unavailable when the backlog is full.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_UNIX_SOCKET_H_
