// The free extents of one device, in memory. No I/O, no locks: the owner locks.
#ifndef BRAID_LIB_ALLOCATOR_FREE_SPACE_H_
#define BRAID_LIB_ALLOCATOR_FREE_SPACE_H_

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "lib/base/units.h"

namespace braid {

// Units of 64 KiB that follow each other.
struct UnitRun {
  DeviceUnit first;
  uint64_t count = 0;
  friend bool operator==(const UnitRun&, const UnitRun&) = default;
};

// Every call but the constructor and FreeRuns takes at most logarithmic time in the number of
// free runs.
class FreeSpace {
 public:
  // All of [data_offset, data_offset + data_bytes) is free. Both multiples of 4 MiB
  // (asserted).
  FreeSpace(uint64_t data_offset_bytes, uint64_t data_bytes);

  uint64_t capacity_units() const { return capacity_units_; }
  uint64_t free_units() const { return free_units_; }
  // Large extents that could be taken now (aligned whole ones).
  uint64_t free_large_extents() const { return free_large_; }
  // Large extents in the longest free run.
  uint64_t longest_large_run() const;
  // In order; no two touch.
  std::vector<UnitRun> FreeRuns() const;

  // Takes up to `extents` (not 0) large extents that follow each other: from a run that
  // fits them all when there is one (the shortest such), else all of the longest run.
  // nullopt when there is none. The result's first unit is a multiple of kSmallPerExtent.
  std::optional<UnitRun> TakeLarge(uint64_t extents);
  // Takes up to `units` (not 0) small extents that follow each other within one large extent:
  // a broken one when there is any, else one of the shortest run of whole ones.
  std::optional<UnitRun> TakeSmall(uint64_t units = 1);
  // Takes exactly this run, as when a store is loaded. Empty, not free or outside:
  // DataLoss, and nothing changes.
  absl::Status Take(UnitRun run);
  // Gives back. Empty, already free or outside: DataLoss, and nothing changes.
  absl::Status Give(UnitRun run);

 private:
  using Runs = absl::btree_map<uint64_t, uint64_t>;  // first unit -> units

  void Insert(uint64_t first, uint64_t count);
  void Erase(Runs::iterator it);
  // Cuts [first, first + count) out of the free run at `it`, which contains it.
  void Cut(Runs::iterator it, uint64_t first, uint64_t count);
  absl::Status CheckInside(UnitRun run) const;

  uint64_t first_unit_;
  uint64_t capacity_units_;
  uint64_t free_units_ = 0;
  uint64_t free_large_ = 0;
  Runs free_;  // no two touch
  // The same runs: those with whole large extents by (how many, first unit), and those
  // with units outside of whole ones by first unit.
  absl::btree_set<std::pair<uint64_t, uint64_t>> by_large_;
  absl::btree_set<uint64_t> broken_;
};

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_FREE_SPACE_H_
