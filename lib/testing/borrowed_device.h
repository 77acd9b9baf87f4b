// A device that another owns: for tests that give a volume devices and keep them, to look
// at after the volume is gone or to open the next volume on.
#ifndef BRAID_LIB_TESTING_BORROWED_DEVICE_H_
#define BRAID_LIB_TESTING_BORROWED_DEVICE_H_

#include <memory>

#include "lib/blockdev/block_device.h"

namespace braid {

// `device` outlives the result.
std::unique_ptr<BlockDevice> BorrowDevice(BlockDevice* device);

}  // namespace braid

#endif  // BRAID_LIB_TESTING_BORROWED_DEVICE_H_
