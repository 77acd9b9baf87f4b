// What a site asks of the machine it runs on: devices, locks, time, chance. The state
// machines of this folder reach the world only through this and the MetadataStore, so
// that a test can be the world.
#ifndef BRAID_CONTROLPLANE_CORE_HOST_H_
#define BRAID_CONTROLPLANE_CORE_HOST_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/uuid.h"
#include "lib/blockdev/block_device.h"
#include "lib/blockdev/file_device.h"

namespace braid {

// What a path leads to, whatever the path.
struct DeviceIdentity {
  bool is_block_device = false;
  uint64_t number = 0;  // of the device: its own, or of the file system that a file is on
  uint64_t inode = 0;   // 0 for block devices
  uint64_t disk = 0;    // of block devices: the number of the whole disk, perhaps itself
};

// Whether they have bytes in common: the same, or a disk and a partition of it.
inline bool Overlap(const DeviceIdentity& a, const DeviceIdentity& b) {
  if (a.is_block_device != b.is_block_device) return false;
  if (a.number == b.number && a.inode == b.inode) return true;
  return a.is_block_device && (a.number == b.disk || b.number == a.disk);
}

// Every method is thread-safe; those that touch a device may take as long as it takes.
class Host {
 public:
  virtual ~Host() = default;

  virtual int64_t NowUnixSeconds() = 0;
  virtual Uuid NewUuid() = 0;
  // Of this machine since it started: another one means that every process died.
  virtual Uuid BootId() = 0;

  // NotFound, PermissionDenied; InvalidArgument for what is neither a regular file nor a
  // block device. Follows symbolic links.
  virtual absl::StatusOr<DeviceIdentity> Identify(const std::string& path) = 0;
  // As OpenFileDevice.
  virtual absl::StatusOr<std::unique_ptr<BlockDevice>> OpenDevice(
      const std::string& path, const FileDeviceOptions& options) = 0;
  // What a file system, volume manager or partition tool left on it, in words ("an ext4
  // file system"); "" when nothing known is there.
  virtual absl::StatusOr<std::string> RecogniseData(const std::string& path) = 0;

  // Makes the file of a lock if it is not there.
  virtual absl::Status MakeLock(const std::string& path) = 0;
  // Whether some process holds the flock(2) of this file; a missing file is held by none.
  virtual absl::StatusOr<bool> LockHeld(const std::string& path) = 0;
  // Best effort.
  virtual void RemoveLock(const std::string& path) = 0;

  // Something an operator should know that no request can answer.
  virtual void Warn(absl::string_view what) = 0;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_HOST_H_
