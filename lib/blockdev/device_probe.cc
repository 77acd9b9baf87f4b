#include "lib/blockdev/device_probe.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "lib/base/units.h"

namespace braid {
namespace {

// The first line of a sysfs file; empty where there is none.
std::string ReadLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// A number from the queue/ directory of block device `dev`; a partition has its disk's.
std::optional<uint64_t> QueueValue(dev_t dev, const char* name) {
  const std::string base = absl::StrCat("/sys/dev/block/", major(dev), ":", minor(dev));
  for (const char* queue : {"/queue/", "/../queue/"}) {
    uint64_t value = 0;
    if (absl::SimpleAtoi(ReadLine(absl::StrCat(base, queue, name)), &value)) return value;
  }
  return std::nullopt;
}

// Punching beyond the end of a file frees nothing and changes no byte, yet goes through
// the file system, which says whether it can punch at all.
bool CanPunch(int fd, uint64_t size_bytes) {
  constexpr uint64_t kPageBytes = 4 * kKiB;
  const uint64_t beyond = (size_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(beyond),
                   kPageBytes) == 0;
}

bool IsFile(const std::string& path, const struct stat& st) {
  struct stat other {};
  return stat(path.c_str(), &other) == 0 && other.st_dev == st.st_dev && other.st_ino == st.st_ino;
}

}  // namespace

absl::StatusOr<DeviceProbe> ProbeDevice(int fd, const struct stat& st, bool read_only,
                                        const std::string& path) {
  DeviceProbe probe;
  if (S_ISREG(st.st_mode)) {
    probe.size_bytes = static_cast<uint64_t>(st.st_size);
    probe.rotational = QueueValue(st.st_dev, "rotational").value_or(0) != 0;
    probe.facts.can_trim = !read_only && CanPunch(fd, probe.size_bytes);
    probe.facts.can_zero_fast = probe.facts.can_trim;
    return probe;
  }
  int block_bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &probe.size_bytes) != 0 || ioctl(fd, BLKSSZGET, &block_bytes) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot ask for the size of ", path));
  }
  probe.rotational = QueueValue(st.st_rdev, "rotational").value_or(0) != 0;
  probe.facts.block_device = true;
  if (block_bytes > 0) probe.facts.zero_alignment = static_cast<uint32_t>(block_bytes);
  // Punching a block device is "write zeroes, may unmap": without this limit above 0 the
  // kernel refuses it, and ZERO_RANGE writes pages of zeros itself.
  const bool can_zero = QueueValue(st.st_rdev, "write_zeroes_max_bytes").value_or(0) > 0;
  probe.facts.can_zero_fast = !read_only && can_zero;
  probe.facts.can_trim =
      probe.facts.can_zero_fast && QueueValue(st.st_rdev, "discard_max_bytes").value_or(0) > 0;
  return probe;
}

absl::Status CheckFileUnused(const struct stat& st, const std::string& path,
                             const char* swaps_path) {
  std::unique_ptr<DIR, int (*)(DIR*)> blocks(opendir("/sys/block"), closedir);
  while (blocks != nullptr) {
    const dirent* entry = readdir(blocks.get());  // NOLINT(concurrency-mt-unsafe)
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (!absl::StartsWith(name, "loop")) continue;
    const std::string backing = ReadLine(absl::StrCat("/sys/block/", name, "/loop/backing_file"));
    if (!backing.empty() && IsFile(backing, st)) {
      return absl::FailedPreconditionError(absl::StrCat(
          path, " is in use by /dev/", name, "; detach it with 'losetup -d /dev/", name, "'"));
    }
  }
  std::ifstream swaps(swaps_path);
  for (std::string line; std::getline(swaps, line);) {
    // Blanks in a path are written as \040.
    std::string file;
    if (!absl::CUnescape(line.substr(0, line.find_first_of(" \t")), &file)) continue;
    if (absl::StartsWith(file, "/") && IsFile(file, st)) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is in use as swap; turn it off with 'swapoff ", path, "'"));
    }
  }
  return absl::OkStatus();
}

}  // namespace braid
