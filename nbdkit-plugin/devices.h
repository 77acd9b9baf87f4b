// Opens the devices of an attachment, and makes sure that each is the one it should be.
#ifndef BRAID_NBDKIT_PLUGIN_DEVICES_H_
#define BRAID_NBDKIT_PLUGIN_DEVICES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "lib/blockdev/block_device.h"
#include "nbdkit-plugin/attachment.h"

namespace braid {

struct OpenedDevices {
  std::vector<std::unique_ptr<BlockDevice>> devices;  // as many as were asked for
  std::vector<bool> is_missing;                       // of each, whether it is a stand-in
  uint32_t missing = 0;                               // how many are
};

// A device that is not there, cannot be opened, is too small, or whose label names
// another device is logged and replaced by one whose every request fails: a mirror then
// goes on without it just as if it had failed later. Never writes to a device.
OpenedDevices OpenDevices(absl::Span<const DeviceIdentity> identities, bool read_only,
                          const Surroundings& surroundings);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_DEVICES_H_
