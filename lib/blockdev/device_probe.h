// What the kernel knows about a file or block device, asked without touching its data.
#ifndef BRAID_LIB_BLOCKDEV_DEVICE_PROBE_H_
#define BRAID_LIB_BLOCKDEV_DEVICE_PROBE_H_

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "lib/blockdev/file_io.h"

namespace braid {

struct DeviceProbe {
  uint64_t size_bytes = 0;
  bool rotational = false;
  FileIo::Facts facts;
};

// `fd` is open on the regular file or block device that `st` describes.
absl::StatusOr<DeviceProbe> ProbeDevice(int fd, const struct stat& st, bool read_only,
                                        const std::string& path);

// FailedPrecondition when the regular file `st` backs a loop device or is used as swap by what
// `swaps_path` says.
absl::Status CheckFileUnused(const struct stat& st, const std::string& path,
                             const char* swaps_path = "/proc/swaps");

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_DEVICE_PROBE_H_
