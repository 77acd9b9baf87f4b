// A regular file or block device through the page cache.
//
// On the page cache a write is a copy and waits for nobody, so a small one is made in
// place by pwritev2, one leg after the other faster than any hand-over. What waits for
// the device (flush, FUA, zeroes, a read of what is not cached) or copies much goes
// through this thread's io_uring when its group has more than one request, so that legs
// run at once; the last leg is the thread's own work meanwhile. Where the kernel has no
// io_uring all is done in place. The threshold and its measurement: docs/PERFORMANCE.md.
//
// After a failed flush or FUA write every later flush and FUA request fails with EIO, until
// the device is opened again: file_io.h says why.
#ifndef BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_
#define BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"

namespace braid {

struct FileDeviceOptions {
  bool read_only = false;
  // Fail with FailedPrecondition when it is in use: a block device by a file system, swap,
  // RAID or another exclusive opener, and none of these can take it while it is open; a
  // regular file by a loop device or as swap, at the moment of opening.
  bool exclusive = false;
  // Reads and writes of at least so many bytes copy much: see above.
  uint64_t ring_from_bytes = kMiB;
};

// NotFound, PermissionDenied, FailedPrecondition (in use), InvalidArgument (neither a
// regular file nor a block device). The message names the path.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const std::string& path,
                                                            const FileDeviceOptions& options);

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_
