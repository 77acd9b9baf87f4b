#include "lib/format/device_range.h"

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/base/units.h"
#include "lib/format/label.h"
#include "lib/mapping/page_table.h"

namespace braid {

absl::Status CheckDeviceRange(uint64_t device_bytes, uint64_t data_offset, uint64_t data_bytes) {
  constexpr uint64_t kAddressable = kMaxDeviceUnits * kSmallExtentBytes;
  if (data_offset % kExtentBytes != 0 || data_offset < kLabelDataOffset) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data offset ", data_offset, " is not a multiple of ", kExtentBytes, " behind the labels"));
  }
  if (data_bytes % kExtentBytes != 0 || data_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("data size ", data_bytes, " is not a multiple of ", kExtentBytes, " above 0"));
  }
  if (!RangeFits(data_offset, data_bytes, device_bytes) ||
      !RangeFits(data_offset, data_bytes, kAddressable)) {
    return absl::InvalidArgumentError(absl::StrCat("data of ", data_bytes, " bytes at ",
                                                   data_offset, " does not lie within the ",
                                                   device_bytes, " bytes of the device"));
  }
  return absl::OkStatus();
}

}  // namespace braid
