// Devices and their labels: nothing of Braid is written to a device before the label on
// it was read and is the expected one.
#ifndef BRAID_CONTROLPLANE_CORE_LABELLED_DEVICE_H_
#define BRAID_CONTROLPLANE_CORE_LABELLED_DEVICE_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controlplane/core/host.h"
#include "lib/blockdev/block_device.h"
#include "lib/format/label.h"
#include "lib/format/records.h"

namespace braid {

// A device must hold its labels and one large extent.
inline constexpr uint64_t kMinDeviceBytes = kLabelDataOffset + kExtentBytes;

// The label on an open device; errors as ChooseLabel, or of the reads.
absl::StatusOr<Label> ReadLabel(BlockDevice& device);

// Makes `label` the only thing on the device that anyone would recognise, durably: the
// space before the extents and the end of the device, where partition tables and RAID keep
// their second copies, become zeros first.
absl::Status WriteLabel(BlockDevice& device, const Label& label);

// Zeros over both copies, durably.
absl::Status WipeLabel(BlockDevice& device);

// Opens the device of a record and makes sure that it is that device: its label names
// this cluster and device, and it is as large as it was. The error says what is there
// instead; it is the reason why the device is missing.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenLabelled(Host& host, const Uuid& cluster,
                                                          const DeviceRecord& record,
                                                          const FileDeviceOptions& options);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_LABELLED_DEVICE_H_
