// Rows of the map as runs: what the store keeps, the API sends and people read.
#ifndef BRAID_LIB_MAPPING_MAP_RUN_H_
#define BRAID_LIB_MAPPING_MAP_RUN_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"

namespace braid {

// `count` units (of kSmallExtentBytes) of one leg of one column, from `first` on, lie one
// after the other on one device from `unit` on. Large extents are runs as well: whole rows
// of the page table, as far as one run covers them.
struct MapRun {
  uint32_t column = 0;
  uint32_t leg = 0;
  ColumnUnit first;
  uint64_t count = 0;  // units, at least 1
  DeviceIndex device;
  DeviceUnit unit;
  bool stale = false;  // missed a write: never read until copied whole

  friend bool operator==(const MapRun&, const MapRun&) = default;
};

// InvalidArgument unless the run lies within the geometry, its device below
// device_count and its units below kMaxDeviceUnits.
absl::Status CheckRun(const Geometry& geometry, const MapRun& run, uint64_t device_count);

// The two ways in which legs become stale. Both return the whole new list of runs,
// ordered by (column, leg, first), split where staleness begins or ends and joined
// where neighbours continue each other. Input runs do not overlap within a leg. Never
// makes a unit's last in-sync copy stale.

// After `device` missed a write: its copies, but for those of units that have no other in
// sync.
std::vector<MapRun> MarkDeviceStale(std::vector<MapRun> runs, DeviceIndex device);

// After an unclean end: of every unit's in-sync legs one stays, the others may differ
// from it and become stale. The lowest on a device that is `present` stays, or the lowest
// of all where none is.
std::vector<MapRun> KeepOneLeg(std::vector<MapRun> runs,
                               absl::FunctionRef<bool(DeviceIndex)> present);

// `b` goes on where `a` ends, in its column and on its device: both are one run.
bool Continues(const MapRun& a, const MapRun& b);

// Ordered and joined as above, nothing else changed.
std::vector<MapRun> Normalize(std::vector<MapRun> runs);

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_MAP_RUN_H_
