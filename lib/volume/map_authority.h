// Who owns the durable state of a volume's map and legs: the control plane, seen from the
// data plane. docs/ALLOCATION.md tells how the calls for space work together.
#ifndef BRAID_LIB_VOLUME_MAP_AUTHORITY_H_
#define BRAID_LIB_VOLUME_MAP_AUTHORITY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"
#include "lib/mapping/map_change.h"

namespace braid {

class MapAuthority {
 public:
  virtual ~MapAuthority() = default;

  // Every call is thread-safe and may block for as long as the authority cannot be reached,
  // unless it says otherwise; Cancelled when the process is shut down meanwhile. Any
  // other error that is not named, such as FailedPrecondition when this holder's epoch is
  // over, stops the volume.

  // Device `device` of this volume missed a write. Durable when OK: its units are stale
  // by the rule of MarkDeviceStale in map_run.h. The write that asks is not acknowledged
  // before. Every map change made before has been committed, or says itself that the leg
  // there is stale (MapLog::MarkStale), and so do those made after.
  virtual absl::Status MarkStale(DeviceIndex device, absl::string_view reason) = 0;

  // The only copy of something was lost, in words. Best effort; does not wait long.
  virtual void ReportFault(absl::string_view what) = 0;

  // The rest is of thin volumes.

  // Makes map changes durable, in order; the first has number `first_sequence`, each next
  // one more. Those whose number was committed before count once. One call at a time.
  virtual absl::Status CommitMap(uint64_t first_sequence, absl::Span<const MapChange> changes) = 0;

  struct Space {
    std::vector<Grant> grants;
    // Devices that the volume had no space on before; their indexes follow those known.
    std::vector<std::unique_ptr<BlockDevice>> devices;
  };
  // Up to `units` for each leg, in large pieces where there are; durable when OK.
  // ResourceExhausted: there is none now. Unavailable, at once, when the authority cannot
  // be reached: the caller asks again. One call at a time.
  virtual absl::StatusOr<Space> TakeSpace(uint64_t units) = 0;

  // Gives back grants, or parts of them, that were never bound or written. Best effort.
  virtual void ReturnSpace(const std::vector<Grant>& grants) = 0;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_MAP_AUTHORITY_H_
