#include "controlplane/server/machine_host.h"

#include <blkid/blkid.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "controlplane/server/log.h"
#include "lib/base/errno_status.h"
#include "lib/base/unique_fd.h"

namespace braid {
namespace {

constexpr char kBootIdPath[] = "/proc/sys/kernel/random/boot_id";

struct ProbeCloser {
  void operator()(blkid_probe probe) const { blkid_free_probe(probe); }
};
using Probe = std::unique_ptr<std::remove_pointer_t<blkid_probe>, ProbeCloser>;

std::string Value(blkid_probe probe, const char* name) {
  const char* value = nullptr;
  if (blkid_probe_lookup_value(probe, name, &value, nullptr) != 0 || value == nullptr) return "";
  return absl::CHexEscape(value);
}

// The number of the disk that a partition is part of; of anything else, its own.
dev_t WholeDisk(dev_t number) {
  const std::string node = absl::StrCat("/sys/dev/block/", major(number), ":", minor(number));
  if (access((node + "/partition").c_str(), F_OK) != 0) return number;
  // A partition's directory lies in that of its disk.
  std::ifstream file(node + "/../dev");
  unsigned disk_major = 0;
  unsigned disk_minor = 0;
  char colon = 0;
  if (!(file >> disk_major >> colon >> disk_minor)) return number;
  return makedev(disk_major, disk_minor);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MachineHost>> MachineHost::Create() {
  std::ifstream file(kBootIdPath);
  std::string text;
  if (!std::getline(file, text)) {
    return absl::NotFoundError(absl::StrCat("cannot read ", kBootIdPath, "; is /proc mounted?"));
  }
  absl::StatusOr<Uuid> boot_id = Uuid::Parse(text);
  if (!boot_id.ok()) return boot_id.status();
  return std::unique_ptr<MachineHost>(new MachineHost(*boot_id));
}

int64_t MachineHost::NowUnixSeconds() {
  return std::max<int64_t>(0, absl::ToUnixSeconds(absl::Now()));
}

absl::StatusOr<DeviceIdentity> MachineHost::Identify(const std::string& path) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat("there is no ", path, "; check the path"));
    }
    return ErrnoStatus(errno, path);
  }
  if (S_ISBLK(st.st_mode)) {
    return DeviceIdentity{
        .is_block_device = true, .number = st.st_rdev, .disk = WholeDisk(st.st_rdev)};
  }
  if (S_ISREG(st.st_mode)) return DeviceIdentity{.number = st.st_dev, .inode = st.st_ino};
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": neither a regular file nor a block device; give a disk, a partition or a file"));
}

absl::StatusOr<std::unique_ptr<BlockDevice>> MachineHost::OpenDevice(
    const std::string& path, const FileDeviceOptions& options) {
  return OpenFileDevice(path, options);
}

absl::StatusOr<std::string> MachineHost::RecogniseData(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  const Probe probe(blkid_new_probe());
  if (probe == nullptr || blkid_probe_set_device(probe.get(), fd.get(), 0, 0) != 0) {
    return absl::InternalError(absl::StrCat(path, ": cannot be probed for data"));
  }
  blkid_probe_enable_superblocks(probe.get(), 1);
  blkid_probe_set_superblocks_flags(probe.get(), BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE);
  blkid_probe_enable_partitions(probe.get(), 1);
  // 0: something, 1: nothing. -2 is several things at once, which are data as well; any
  // other error must not pass for an empty device.
  const int found = blkid_do_safeprobe(probe.get());
  if (found == 1) return "";
  if (found == -2) return "signatures of several file systems";
  if (found != 0)
    return absl::InternalError(absl::StrCat(path, ": reading it for known data failed"));
  if (std::string type = Value(probe.get(), "TYPE"); !type.empty()) {
    const std::string usage = Value(probe.get(), "USAGE");
    return absl::StrCat(type, usage == "filesystem" ? " file system" : " signature");
  }
  if (std::string table = Value(probe.get(), "PTTYPE"); !table.empty()) {
    return absl::StrCat("a ", table, " partition table");
  }
  return "data of a known kind";
}

absl::Status MachineHost::MakeLock(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

absl::StatusOr<bool> MachineHost::LockHeld(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid()) {
    if (errno == ENOENT) return false;
    return ErrnoStatus(errno, path);
  }
  // Closing drops it again.
  if (flock(fd.get(), LOCK_SH | LOCK_NB) == 0) return false;
  if (errno == EWOULDBLOCK) return true;
  return ErrnoStatus(errno, path);
}

void MachineHost::RemoveLock(const std::string& path) { unlink(path.c_str()); }

void MachineHost::Warn(absl::string_view what) { Log(LogLevel::kWarning, what); }

}  // namespace braid
