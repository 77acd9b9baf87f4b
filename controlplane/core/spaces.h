// Space for thin volumes: grants it to their holders, and takes in what they made of it.
//
// To take units is, in this order: out of the free space in memory, so that nobody else gets
// them; zeroed and the devices flushed, with no lock held; then the commit that makes them the
// volume's. A crash in between leaves them free. Units are zeroed by who takes them and
// never by who frees them (docs/ALLOCATION.md).
#ifndef BRAID_CONTROLPLANE_CORE_SPACES_H_
#define BRAID_CONTROLPLANE_CORE_SPACES_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/site_state.h"
#include "lib/mapping/map_change.h"

namespace braid {

// Thread-safe.
class Spaces {
 public:
  // All outlive it.
  Spaces(SiteState* state, Attachments* attachments, Pools* pools)
      : state_(*state), attachments_(*attachments), pools_(*pools) {}

  // Errors of all: NotFound; FailedPrecondition: the epoch is over, or the volume is not
  // thin; Unavailable: the site takes no changes now.

  // See CommitMap in attachment.proto. The number of the last change applied.
  absl::StatusOr<uint64_t> CommitMap(const Uuid& volume, Epoch epoch, uint64_t first_sequence,
                                     absl::Span<const MapChange> changes);

  struct Taken {
    std::vector<Grant> grants;
    // The volume's devices from here on are new to it.
    uint32_t first_device = 0;
    std::vector<DevicePtr> devices;
  };
  // Up to `units` for each leg: whole rows in runs as long as can be, single units where
  // there are no whole rows any more; what is set aside for the volume first. The legs of a
  // grant lie on different devices, and on different nodes where there is room for that.
  // A share of what is free, not all of it, while other volumes may want some too.
  // The holder knows the first `known_devices` of the volume's list; InvalidArgument when that is
  // more than there are. ResourceExhausted: nothing. An answer that is lost leaves its grants
  // with the volume: a clean end gives them back, and the next holder finds them.
  absl::StatusOr<Taken> Take(const Uuid& volume, Epoch epoch, uint64_t units,
                             uint32_t known_devices);

  absl::Status Return(const Uuid& volume, Epoch epoch, const std::vector<Grant>& grants);

 private:
  struct Taking;
  // The thin volume that is held for writing under this epoch.
  absl::StatusOr<VolumePtr> Held(const Uuid& volume, Epoch epoch) const;
  // The steps of Take before and after the zeroing.
  absl::StatusOr<Taking> Choose(const Uuid& volume, Epoch epoch, uint64_t units,
                                const absl::flat_hash_set<Uuid>& failed);
  absl::Status Keep(const Uuid& volume, Epoch epoch, Taking& taking);

  SiteState& state_;
  Attachments& attachments_;
  Pools& pools_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_SPACES_H_
