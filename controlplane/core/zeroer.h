// Zeroes space of devices that nobody can read or write, durably: for who is about to own it
// (new volumes, grants, grown volumes), and what a shrunk volume keeps behind its new end. Space
// is zeroed here and nowhere else (docs/ALLOCATION.md).
//
// Devices are opened anew each time and their labels read, which takes far less time than the
// flush at the end; so one that was replaced or went missing is noticed before anything is
// written to what is at its path now.
#ifndef BRAID_CONTROLPLANE_CORE_ZEROER_H_
#define BRAID_CONTROLPLANE_CORE_ZEROER_H_

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "controlplane/core/site_state.h"
#include "lib/allocator/free_space.h"
#include "lib/base/uuid.h"

namespace braid {

// For work that takes its time. Looked at and told a few times a second, on a disk that must
// write every zero.
struct ZeroProgress {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> zeroed_bytes{0};
};

// What becomes of the blocks of a file that a device is: given back to the file system below,
// or kept, for who writes there soon. To punch a hole a file system holds the file's lock while
// it frees, and perhaps discards, every block, and all writes to the device wait for that:
// first writes to a thin volume were four times slower (docs/PERFORMANCE.md).
enum class FileBlocks : uint8_t { kGiveBack, kKeep };

// These read as zeros, durably, when OK. Devices side by side, each flushed once. They lie
// within the data of devices of the site (else Internal). Other errors name the device: it is
// missing, or failed; `failed` gets all such devices.
absl::Status ZeroUnits(SiteState& state, absl::Span<const std::pair<Uuid, UnitRun>> units,
                       FileBlocks blocks, std::vector<Uuid>* failed = nullptr);

// Bytes of a device.
struct DeviceBytes {
  Uuid device;
  uint64_t offset = 0;
  uint64_t length = 0;
};
absl::Status ZeroBytes(SiteState& state, absl::Span<const DeviceBytes> ranges);

// Units of one device. Cancelled when it was told to stop; errors do not name the device.
absl::Status ZeroOnDevice(SiteState& state, const Uuid& device, absl::Span<const UnitRun> units,
                          ZeroProgress& progress);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_ZEROER_H_
