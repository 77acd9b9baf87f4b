// Chooses device units to grant to a thin volume. Pure: decides on a picture of the pool.
//
// A piece of a grant is a unit on each leg, the legs on different devices; a row is 64 such
// pieces in whole large extents. Rows are what lasts: they stay together on the device, and
// the map needs one word for each. So rows are taken while there are any, in runs as long as
// can be from the roomiest devices, and single units only when no row can be made.
//
// On how many nodes the legs of a piece lie comes before how many pieces there are: what is
// granted is as safe as the pool allows at this moment, and who needs more asks again.
//
// Columns. A stripe should stand on several devices, but a grant does not say for which
// column it will be used. So rows are dealt to as many sets of different devices as the
// volume has columns (fewer where the pool has no room for that), and the reservation in the
// volume's holder picks one for each column.
//
// That something is found whenever `legs` devices have space, and all of it whenever it fits,
// follows from the amounts of spread.h, which are exact, with one column:
// U pieces of L legs fit if and only if the sum over the devices of min(free, U) is at least
// L U (the sum's terms can be trimmed to L U, and then wrapped around L legs of U pieces: no
// device is longer than U, so none meets itself). Rows first may cost pieces that single
// units would have found, where a device's space is all in broken extents; hence the last
// attempt to find all is single units alone.
#ifndef BRAID_LIB_ALLOCATOR_GRANTS_H_
#define BRAID_LIB_ALLOCATOR_GRANTS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/allocator/placement.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"

namespace braid {

struct GrantRequest {
  uint32_t legs = 1;         // 1 to kMaxLegs
  uint32_t columns = 1;      // 1 to kMaxColumns
  uint64_t units = 0;        // for each leg
  std::string device_class;  // "" for any
  bool all = false;          // all units or none
};

// `count` units that follow each other on each leg.
struct PlacedGrant {
  uint64_t count = 0;
  std::vector<std::pair<Uuid, DeviceUnit>> legs;  // a device and the first unit there
  friend bool operator==(const PlacedGrant&, const PlacedGrant&) = default;
};

// As many single units are given at once at most: each may be a record of its own.
inline constexpr uint64_t kMaxSmallGrantUnits = 1024;

// Takes up to `units` from the devices' spaces: whole rows where one can be made, and then
// only those; single units, at most kMaxSmallGrantUnits, where none can, or where less than
// a row is asked for. ResourceExhausted, in words, exactly when fewer than `legs` devices have
// free units; nothing is taken then.
//
// Or all of them: rows as far as they go and single units, each on as many nodes as have room
// for them. ResourceExhausted exactly when they do not fit.
//
// The devices' ids differ, and so do their spaces.
absl::StatusOr<std::vector<PlacedGrant>> ChooseGrants(const GrantRequest& request,
                                                      const std::vector<PlacementDevice>& devices);

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_GRANTS_H_
