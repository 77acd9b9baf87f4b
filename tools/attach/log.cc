#include "tools/attach/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/errno_status.h"

namespace braid::attach {

namespace {
int OpenForAppend(const std::string& path, int extra) {
  return open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | extra, 0600);
}
}  // namespace

absl::Status Log::Open(std::string path) {
  path_ = std::move(path);
  fd_ = UniqueFd(OpenForAppend(path_, 0));
  if (!fd_.valid()) return ErrnoStatus(errno, absl::StrCat("cannot write the log ", path_));
  struct stat info {};
  if (fstat(fd_.get(), &info) == 0) size_bytes_ = static_cast<uint64_t>(info.st_size);
  return absl::OkStatus();
}

void Log::Rotate() {
  // When the rename fails, O_TRUNC still keeps the bound.
  (void)rename(path_.c_str(), absl::StrCat(path_, ".old").c_str());
  fd_ = UniqueFd(OpenForAppend(path_, O_TRUNC));
  size_bytes_ = 0;
}

void Log::Line(absl::string_view source, absl::string_view text) {
  std::string line =
      absl::StrCat(absl::FormatTime("%Y-%m-%d %H:%M:%E3S ", absl::Now(), absl::LocalTimeZone()),
                   source, ": ", text.substr(0, kMaxLineBytes));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  line.push_back('\n');
  if (echo_) (void)!write(STDERR_FILENO, line.data(), line.size());
  if (path_.empty()) return;
  if (size_bytes_ + line.size() > kMaxBytes) Rotate();
  if (write(fd_.get(), line.data(), line.size()) > 0) size_bytes_ += line.size();
}

}  // namespace braid::attach
