// What changes in the map of a thin volume, and the space such changes may use: what the
// data plane notes and sends, and the control plane commits. docs/ALLOCATION.md.
#ifndef BRAID_LIB_MAPPING_MAP_CHANGE_H_
#define BRAID_LIB_MAPPING_MAP_CHANGE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"

namespace braid {

// Where one leg of something lies.
struct UnitPlace {
  DeviceIndex device;
  DeviceUnit unit;
  // A leg that missed a write while the change was made: bound, never read.
  bool stale = false;
  friend bool operator==(const UnitPlace&, const UnitPlace&) = default;
};

// `count` units that follow each other on each leg, the legs on different devices; zero,
// durably, and the volume's own until it binds or returns them.
struct Grant {
  uint64_t count = 0;
  std::vector<UnitPlace> legs;  // one for each leg of the volume, none stale
  friend bool operator==(const Grant&, const Grant&) = default;
};

// One change of the map of a thin volume, of the units [first, first + count) of a column,
// on all legs.
struct MapChange {
  enum class Kind : uint8_t {
    kBind = 1,    // units without space get granted ones
    kUnbind = 2,  // give up what they have; units without space among them are no error
    kMove = 3,    // units that have space get granted ones in its place (same content)
  };
  Kind kind = Kind::kBind;
  uint32_t column = 0;
  ColumnUnit first;
  uint32_t count = 0;  // at least 1
  // By leg: the first unit's place. Of kBind and kMove.
  std::array<UnitPlace, kMaxLegs> legs{};
  friend bool operator==(const MapChange&, const MapChange&) = default;
};

// InvalidArgument unless the change lies within the geometry, its kind is one of those above,
// and, for kBind and kMove, its legs' devices are below `device_count`, differ from each
// other, their units lie below kMaxDeviceUnits, and one leg at least is not stale.
absl::Status CheckMapChange(const Geometry& geometry, const MapChange& change,
                            uint64_t device_count);
// Likewise for a grant to a volume of this geometry.
absl::Status CheckGrant(const Geometry& geometry, const Grant& grant, uint64_t device_count);

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_MAP_CHANGE_H_
