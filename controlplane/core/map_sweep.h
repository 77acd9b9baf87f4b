// Walks a volume's map range by range, all legs at once.
#ifndef BRAID_CONTROLPLANE_CORE_MAP_SWEEP_H_
#define BRAID_CONTROLPLANE_CORE_MAP_SWEEP_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"

namespace braid {

// Units [first, first + count) of a column; legs[i] is the run in which leg i lies.
struct MapStretch {
  uint32_t column = 0;
  ColumnUnit first;
  uint64_t count = 0;
  absl::Span<const MapRun* const> legs;
};

// What a sound map covers.
enum class Coverage {
  kWhole,  // every unit of every leg exactly once: all space was taken when it was made
  kHoles,  // a unit has a copy on every leg, exactly one, or on none: space comes with writes
};

// Calls fn for every stretch over which no leg changes its run, by (column, first), until
// fn returns an error, which ends the walk. Units without copies are in no stretch. `runs`
// are ordered by (column, leg, first). DataLoss, in words, when they do not cover what
// `coverage` says.
absl::Status SweepMap(const Geometry& geometry, Coverage coverage, const std::vector<MapRun>& runs,
                      absl::FunctionRef<absl::Status(const MapStretch&)> fn);

// Bytes of device space in stale copies.
uint64_t StaleBytes(const std::vector<MapRun>& runs);

// OK when every unit that has copies has one in sync on a present device, else
// FailedPrecondition;
// `name_of` says what a device is called.
absl::Status CheckReadable(const Geometry& geometry, Coverage coverage,
                           const std::vector<MapRun>& runs,
                           absl::FunctionRef<bool(DeviceIndex)> present,
                           absl::FunctionRef<std::string(DeviceIndex)> name_of);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_MAP_SWEEP_H_
