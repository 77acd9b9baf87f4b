#include "nbdkit-plugin/devices.h"

#include <sys/resource.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/blockdev/file_device.h"
#include "lib/blockdev/memory_device.h"
#include "lib/format/label.h"
#include "nbdkit-plugin/error_log.h"

namespace braid {
namespace {

// The bytes at one of the label's places; none when they cannot be read, which the
// decoder takes for a damaged copy.
std::string ReadLabelCopy(BlockDevice& device, uint64_t offset) {
  // Aligned for devices that ask for it.
  struct alignas(kLabelBytes) Page {
    char bytes[kLabelBytes];
  };
  const auto page = std::make_unique<Page>();
  if (!device.Read(offset, absl::MakeSpan(page->bytes)).ok()) return "";
  return std::string(page->bytes, kLabelBytes);
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenOne(const DeviceIdentity& identity,
                                                     bool read_only) {
  // Not exclusive: other volumes' servers have the same device open.
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      OpenFileDevice(identity.path, FileDeviceOptions{.read_only = read_only});
  if (!device.ok()) return device.status();
  const absl::StatusOr<Label> label = ChooseLabel(ReadLabelCopy(**device, kLabelOffsets[0]),
                                                  ReadLabelCopy(**device, kLabelOffsets[1]));
  if (!label.ok())
    return absl::Status(label.status().code(),
                        absl::StrCat(identity.path, ": ", label.status().message()));
  if (label->device != identity.id)
    return absl::FailedPreconditionError(
        absl::StrCat(identity.path, " carries the label of another device, ",
                     label->device.ToString(), "; put the right device there"));
  const uint64_t size_bytes = (*device)->traits().size_bytes;
  if (size_bytes < identity.size_bytes)
    return absl::FailedPreconditionError(absl::StrCat(identity.path, " has shrunk from ",
                                                      identity.size_bytes, " to ", size_bytes,
                                                      " bytes; give it its size again"));
  return device;
}

// A device takes a handful of descriptors, and a striped volume may have hundreds of
// devices; the usual soft limit of 1024 is for programs that use select(2).
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  // Without it a device too many is reported as missing.
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

OpenedDevices OpenDevices(absl::Span<const DeviceIdentity> identities, bool read_only,
                          const Surroundings& surroundings) {
  RaiseDescriptorLimit();
  OpenedDevices opened;
  for (const DeviceIdentity& identity : identities) {
    absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenOne(identity, read_only);
    opened.is_missing.push_back(!device.ok());
    if (device.ok()) {
      opened.devices.push_back(*std::move(device));
      continue;
    }
    surroundings.log(absl::StrCat("going on without device ", identity.name, " (",
                                  identity.id.ToString(),
                                  "): ", OneLine(device.status().message())));
    ++opened.missing;
    opened.devices.push_back(MakeMissingDevice(identity.name, identity.size_bytes));
  }
  return opened;
}

}  // namespace braid
