#include "controlplane/core/labelled_device.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace braid {
namespace {

// GPT keeps its second table in the last 33 sectors, Linux RAID its superblock within the
// last 128 KiB, ZFS two labels in the last 512 KiB.
constexpr uint64_t kTailBytes = kMiB;

absl::StatusOr<std::string> ReadBytes(BlockDevice& device, uint64_t offset, uint64_t length) {
  std::string bytes(length, '\0');
  absl::Status status = device.Read(offset, absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  return bytes;
}

}  // namespace

absl::StatusOr<Label> ReadLabel(BlockDevice& device) {
  std::string copies[2];
  for (int i = 0; i < 2; ++i) {
    // A device too short for a copy has none there.
    if (device.traits().size_bytes < kLabelOffsets[i] + kLabelBytes) {
      copies[i].assign(kLabelBytes, '\0');
      continue;
    }
    absl::StatusOr<std::string> bytes = ReadBytes(device, kLabelOffsets[i], kLabelBytes);
    if (!bytes.ok()) return bytes.status();
    copies[i] = *std::move(bytes);
  }
  return ChooseLabel(copies[0], copies[1]);
}

absl::Status WriteLabel(BlockDevice& device, const Label& label) {
  const uint64_t size = device.traits().size_bytes;
  const uint64_t tail = std::max(kLabelDataOffset, size - std::min(size, kTailBytes));
  absl::Status status = device.Zero(0, kLabelDataOffset, /*may_unmap=*/true);
  if (status.ok()) status = device.Zero(tail, size - tail, /*may_unmap=*/true);
  if (status.ok()) status = device.Flush();
  const std::string bytes = EncodeLabel(label);
  for (uint64_t offset : kLabelOffsets) {
    if (status.ok()) status = device.Write(offset, absl::MakeConstSpan(bytes));
    if (status.ok()) status = device.Flush();
  }
  return status;
}

absl::Status WipeLabel(BlockDevice& device) {
  absl::Status status;
  for (uint64_t offset : kLabelOffsets) {
    if (status.ok()) status = device.Zero(offset, kLabelBytes, /*may_unmap=*/false);
  }
  if (status.ok()) status = device.Flush();
  return status;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenLabelled(Host& host, const Uuid& cluster,
                                                          const DeviceRecord& record,
                                                          const FileDeviceOptions& options) {
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = host.OpenDevice(record.path, options);
  if (!device.ok()) return device.status();
  absl::StatusOr<Label> label = ReadLabel(**device);
  if (absl::IsNotFound(label.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(record.path, ": no Braid label; another device may be at this path now"));
  }
  if (!label.ok()) {
    return absl::Status(label.status().code(),
                        absl::StrCat(record.path, ": ", label.status().message()));
  }
  if (label->cluster != cluster || label->device != record.id) {
    return absl::FailedPreconditionError(
        absl::StrCat(record.path, ": carries the label of device ", label->device.ToString(),
                     ", not of ", record.id.ToString(), "; another device is at this path now"));
  }
  const uint64_t size = (*device)->traits().size_bytes;
  if (size < record.data_offset + record.data_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(record.path, ": shrank to ", size,
                                                      " bytes, was ", record.device_bytes,
                                                      "; its extents reach past the end"));
  }
  return device;
}

}  // namespace braid
