// A volume as its client sees it: the request path of the data plane.
//
// State: the page table (which leg of which extent lies where, and whether it is stale),
// the open devices, the ranges now being written. Every client request is split into
// pieces, each piece looked up once, the pieces of each device gathered into one vectored
// request, all devices' requests submitted before any is waited for.
//
// Mirrored volumes keep three promises beyond that:
//
//   One order.   Writes (and zeroes, trims) that overlap run one after the other, so all
//                legs end with the same bytes.
//   No way back. A read returns only bytes that every in-sync leg has, so whichever leg
//                is asked next, or is left after a crash of this process, cannot give an
//                older answer. Reads that meet no write take no lock: they look at the
//                count of writes begun before and after; the others wait in the range
//                lock.
//   Stale first. When a leg misses a write, the authority makes that staleness durable
//                before the write completes. An extent's last in-sync copy is never made
//                stale: its error goes to the client.
//
// A failed flush means that the device may have dropped what it had taken: its legs
// become stale, or, where they were the only copies, the volume has lost data and fails
// every later write and flush with EIO until it is attached again.
#ifndef BRAID_LIB_VOLUME_VOLUME_H_
#define BRAID_LIB_VOLUME_VOLUME_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/blockdev/block_device.h"
#include "lib/mapping/map_run.h"
#include "lib/mapping/page_table.h"

namespace braid {

// Who owns the durable state of legs: the control plane, seen from the data plane.
class LegAuthority {
 public:
  virtual ~LegAuthority() = default;

  // Device `device` of this volume missed a write. Returns, once it is durable, the runs
  // of the whole map as they are now (MarkDeviceStale in map_run.h). Waits as long as
  // the authority cannot be reached: the write that asks is not acknowledged before.
  // FailedPrecondition: this holder's epoch is over; nothing was changed and the volume
  // must stop writing. Thread-safe.
  virtual absl::StatusOr<std::vector<MapRun>> MarkStale(DeviceIndex device,
                                                        absl::string_view reason) = 0;

  // The only copy of something was lost, in words. Best effort; does not wait long.
  virtual void ReportFault(absl::string_view what) = 0;
};

struct VolumeStats {
  std::atomic<uint64_t> reads{0}, writes{0}, zeroes{0}, trims{0}, flushes{0};
  std::atomic<uint64_t> read_bytes{0}, written_bytes{0};
  std::atomic<uint64_t> device_errors{0};
};

class Volume {
 public:
  struct ZeroOptions {
    bool fua = false;
    bool may_trim = false;
    bool only_fast = false;  // NBD_CMD_FLAG_FAST_ZERO
  };

  // `devices` by DeviceIndex; `map` entered and complete; `authority` outlives the
  // volume. InvalidArgument when the map names a device that is not given.
  static absl::StatusOr<std::unique_ptr<Volume>> Open(
      std::unique_ptr<PageTable> map, std::vector<std::unique_ptr<BlockDevice>> devices,
      LegAuthority* authority, bool read_only);
  virtual ~Volume() = default;

  virtual const Geometry& geometry() const = 0;
  virtual bool can_trim() const = 0;
  virtual bool can_zero_fast() const = 0;
  virtual bool rotational() const = 0;

  // All ranges lie within the volume (OutOfRange otherwise); any alignment that the
  // devices take. Every call may come from any thread at any time.
  virtual absl::Status Read(uint64_t offset, absl::Span<char> data) = 0;
  virtual absl::Status Write(uint64_t offset, absl::Span<const char> data, bool fua) = 0;
  // Unimplemented (EOPNOTSUPP) when only_fast and no fast way, before anything changed.
  virtual absl::Status Zero(uint64_t offset, uint64_t length, const ZeroOptions& options) = 0;
  virtual absl::Status Trim(uint64_t offset, uint64_t length, bool fua) = 0;
  // Everything acknowledged before the call is durable on every in-sync leg after it.
  virtual absl::Status Flush() = 0;
  virtual absl::Status Cache(uint64_t offset, uint64_t length) = 0;
  // fn(offset, length, is_hole), in order, until fn returns false.
  virtual absl::Status Extents(uint64_t offset, uint64_t length,
                               absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) = 0;

  virtual const VolumeStats& stats() const = 0;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_VOLUME_H_
