// The part of a device that holds extents, as labels and device records state it.
#ifndef BRAID_LIB_FORMAT_DEVICE_RANGE_H_
#define BRAID_LIB_FORMAT_DEVICE_RANGE_H_

#include <cstdint>

#include "absl/status/status.h"

namespace braid {

// InvalidArgument unless [data_offset, data_offset + data_bytes) is whole large extents,
// at least one, behind the labels, within the device, and within what a map's word can
// address.
absl::Status CheckDeviceRange(uint64_t device_bytes, uint64_t data_offset, uint64_t data_bytes);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_DEVICE_RANGE_H_
