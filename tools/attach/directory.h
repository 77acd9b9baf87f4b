// The attachment's folder on this machine, and the lock that makes it the only one.
#ifndef BRAID_TOOLS_ATTACH_DIRECTORY_H_
#define BRAID_TOOLS_ATTACH_DIRECTORY_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/unique_fd.h"

namespace braid::attach {

// Holds `lock`, which is locked (flock) for the life of the object and carries a line that
// says where the volume is attached; the kernel unlocks it with the process. Beside it lie
// `ctl`, `server.sock`, `log` and what the path needs.
class Directory {
 public:
  // Makes `path` (mode 0700) if it is missing. AlreadyExists, "VOLUME is already attached
  // at …", when another process has it. FailedPrecondition when others could write there.
  static absl::StatusOr<Directory> Open(const std::string& path, absl::string_view volume);

  Directory() = default;
  std::string File(absl::string_view name) const;
  // For whoever comes second.
  void SetWhere(absl::string_view where);
  // Removes our files, then the folder if nothing else is in it. The lock goes last.
  void Remove();

 private:
  std::string path_;
  UniqueFd lock_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_DIRECTORY_H_
