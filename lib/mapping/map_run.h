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

// `count` large extents of one leg of one column, from `first` on, lie one after the
// other on one device from `unit` on.
struct MapRun {
  uint32_t column = 0;
  uint32_t leg = 0;
  ExtentIndex first;
  uint64_t count = 0;  // large extents, at least 1
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
// makes an extent's last in-sync copy stale.

// After `device` missed a write: its rows, but for those that have no other in-sync copy.
std::vector<MapRun> MarkDeviceStale(std::vector<MapRun> runs, DeviceIndex device);

// After an unclean end: of every extent's in-sync legs one stays, the others may differ
// from it and become stale. The lowest on a device that is `present` stays, or the lowest
// of all where none is.
std::vector<MapRun> KeepOneLeg(std::vector<MapRun> runs,
                               absl::FunctionRef<bool(DeviceIndex)> present);

// Ordered and joined as above, nothing else changed.
std::vector<MapRun> Normalize(std::vector<MapRun> runs);

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_MAP_RUN_H_
