// The attachment's log file: braid-attach's own lines and what its children say.
#ifndef BRAID_TOOLS_ATTACH_LOG_H_
#define BRAID_TOOLS_ATTACH_LOG_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "lib/base/unique_fd.h"

namespace braid::attach {

// Holds at most two files of kMaxBytes, the current one and the one before (".old"), so
// that a server that complains about every request cannot fill /run. Never fails its
// caller: a log that cannot be written is silent.
class Log {
 public:
  static constexpr uint64_t kMaxBytes = uint64_t{256} * 1024;
  static constexpr size_t kMaxLineBytes = 1024;

  Log() = default;
  absl::Status Open(std::string path);
  // Lines go to standard error as well.
  void set_echo(bool echo) { echo_ = echo; }

  // One line, with the time before it; cut at kMaxLineBytes, control characters as '?'.
  void Line(absl::string_view source, absl::string_view text);

 private:
  void Rotate();

  std::string path_;
  UniqueFd fd_;
  uint64_t size_bytes_ = 0;
  bool echo_ = false;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_LOG_H_
