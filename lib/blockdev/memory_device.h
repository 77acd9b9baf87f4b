// A device in memory, for tests and benchmarks; and one that is not there.
#ifndef BRAID_LIB_BLOCKDEV_MEMORY_DEVICE_H_
#define BRAID_LIB_BLOCKDEV_MEMORY_DEVICE_H_

#include <memory>
#include <string>

#include "lib/blockdev/block_device.h"

namespace braid {

// All zeros at first; takes memory as it is written. Concurrent requests that overlap
// are as safe, and as undefined in order, as on a disk.
std::unique_ptr<BlockDevice> MakeMemoryDevice(std::string name, uint64_t size_bytes);

// Every request completes with ENXIO: stands in for a device that could not be opened,
// so that its absence takes the same path as its failure.
std::unique_ptr<BlockDevice> MakeMissingDevice(std::string name, uint64_t size_bytes);

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_MEMORY_DEVICE_H_
