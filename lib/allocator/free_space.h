// The free extents of one device, in memory. No I/O, no locks: the owner locks.
#ifndef BRAID_LIB_ALLOCATOR_FREE_SPACE_H_
#define BRAID_LIB_ALLOCATOR_FREE_SPACE_H_

#include <cstdint>
#include <optional>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "lib/base/units.h"

namespace braid {

// Units of 64 KiB that follow each other.
struct UnitRun {
  DeviceUnit first;
  uint64_t count = 0;
  friend bool operator==(const UnitRun&, const UnitRun&) = default;
};

class FreeSpace {
 public:
  // All of [data_offset, data_offset + data_bytes) is free. Both multiples of 4 MiB.
  FreeSpace(uint64_t data_offset_bytes, uint64_t data_bytes);

  uint64_t capacity_units() const { return capacity_units_; }
  uint64_t free_units() const { return free_units_; }
  // Large extents that could be taken now (aligned whole ones).
  uint64_t free_large_extents() const { return free_large_; }
  // Large extents in the longest free run.
  uint64_t longest_large_run() const;

  // Takes up to `extents` large extents that follow each other: a run that fits them
  // all when there is one (the shortest such), else the longest run. nullopt when there
  // is none. The result's first unit is a multiple of kSmallPerExtent.
  std::optional<UnitRun> TakeLarge(uint64_t extents);
  // Takes one small extent, from a broken large extent when there is one.
  std::optional<UnitRun> TakeSmall();
  // Takes exactly this run, as when a store is loaded. Not free or outside: DataLoss.
  absl::Status Take(UnitRun run);
  // Gives back. Already free or outside: DataLoss, and nothing changes.
  absl::Status Give(UnitRun run);

 private:
  void Insert(uint64_t first, uint64_t count);
  void Erase(absl::btree_map<uint64_t, uint64_t>::iterator it);

  uint64_t first_unit_;
  uint64_t capacity_units_;
  uint64_t free_units_ = 0;
  uint64_t free_large_ = 0;
  absl::btree_map<uint64_t, uint64_t> free_;  // first unit -> units
};

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_FREE_SPACE_H_
