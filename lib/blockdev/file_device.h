// A regular file or block device through the page cache.
//
// On the page cache a write is a copy and waits for nobody, so a small one is made in
// place by pwritev2, one leg after the other faster than any hand-over. What waits for
// the device (flush, FUA) or copies much goes through this thread's io_uring when its
// group has more than one request, so that legs run at once. Where the kernel has no
// io_uring all is done in place. The threshold and its measurement: docs/PERFORMANCE.md.
#ifndef BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_
#define BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lib/blockdev/block_device.h"

namespace braid {

struct FileDeviceOptions {
  bool read_only = false;
  // Block devices only: fail with FailedPrecondition when a file system, swap, RAID or
  // another exclusive opener has it.
  bool exclusive = false;
};

// NotFound, PermissionDenied, FailedPrecondition (in use), InvalidArgument (neither a
// regular file nor a block device). The message names the path.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const std::string& path,
                                                            const FileDeviceOptions& options);

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_FILE_DEVICE_H_
