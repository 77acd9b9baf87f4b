// What goes over all rows of a page table: the map as runs, staleness of a whole device.
#include <bit>
#include <cassert>
#include <optional>

#include "lib/mapping/page_table.h"

namespace braid {
namespace {

static_assert(kSmallPerExtent == 64, "a set of a row's units is one word");
constexpr uint64_t kAllUnits = ~uint64_t{0};

}  // namespace

void PageTable::ForEachRun(absl::FunctionRef<void(const MapRun&)> fn) const {
  std::optional<MapRun> open;  // may go on
  const auto add = [&](const MapRun& run) {
    if (open && Continues(*open, run)) {
      open->count += run.count;
      return;
    }
    if (open) fn(*open);
    open = run;
  };
  for (uint32_t column = 0; column < geometry().columns(); ++column) {
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      for (ExtentIndex extent; extent.value() < geometry().extents_per_column(); ++extent) {
        const MapWord word = Word(geometry().Row(column, extent), leg);
        if (word.is_extent()) {
          add({column, leg, FirstUnit(extent), kSmallPerExtent, word.device(), word.unit(),
               word.is_stale()});
        }
        if (!word.is_table()) continue;
        for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
          const MapWord unit = UnitWord(word, small);
          if (unit.is_hole()) continue;
          add({column, leg, FirstUnit(extent) + small, 1, unit.device(), unit.unit(),
               unit.is_stale()});
        }
      }
    }
  }
  if (open) fn(*open);
}

std::vector<uint64_t> PageTable::CountLive(uint64_t device_count) const {
  std::vector<uint64_t> live(device_count, 0);
  const auto count = [&live](MapWord word, uint64_t units) {
    assert(word.device().value() < live.size());
    if (!word.is_stale()) live[word.device().value()] += units;
  };
  for (uint64_t row = 0; row < geometry().rows(); ++row) {
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      const MapWord word = Word(row, leg);
      if (word.is_extent()) count(word, kSmallPerExtent);
      if (!word.is_table()) continue;
      for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
        const MapWord unit = UnitWord(word, small);
        if (!unit.is_hole()) count(unit, 1);
      }
    }
  }
  return live;
}

absl::Status PageTable::MarkDeviceStale(DeviceIndex device) {
  for (uint64_t row = 0; row < geometry().rows(); ++row) {
    if (absl::Status status = MarkRowStale(row, device); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status PageTable::MarkRowStale(uint64_t row, DeviceIndex device) {
  const uint32_t legs = geometry().legs();
  // Of each leg the units in sync, and of these the ones on the device.
  uint64_t in_sync[kMaxLegs] = {};
  uint64_t here[kMaxLegs] = {};
  uint64_t any_here = 0;
  for (uint32_t leg = 0; leg < legs; ++leg) {
    const MapWord word = Word(row, leg);
    if (word.is_extent()) {
      if (word.is_stale()) continue;
      in_sync[leg] = kAllUnits;
      here[leg] = word.device() == device ? kAllUnits : 0;
    } else if (word.is_table()) {
      for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
        const MapWord unit = UnitWord(word, small);
        if (unit.is_hole() || unit.is_stale()) continue;
        in_sync[leg] |= uint64_t{1} << small;
        if (unit.device() == device) here[leg] |= uint64_t{1} << small;
      }
    }
    any_here |= here[leg];
  }
  if (any_here == 0) return absl::OkStatus();
  // From the highest leg down, as in map_run.cc: of copies that are all here the lowest
  // stays.
  for (uint32_t leg = legs; leg-- > 0;) {
    uint64_t others = 0;
    for (uint32_t other = 0; other < legs; ++other) {
      if (other != leg) others |= in_sync[other];
    }
    const uint64_t turns = here[leg] & others;
    if (turns == 0) continue;
    in_sync[leg] &= ~turns;
    if (Word(row, leg).is_extent()) {
      if (turns == kAllUnits) {
        SetStale(row, leg, true);
        continue;
      }
      if (absl::Status status = Split(row, leg); !status.ok()) return status;
    }
    uint64_t* const table = Word(row, leg).table();
    for (uint64_t rest = turns; rest != 0; rest &= rest - 1) {
      uint64_t& word = table[std::countr_zero(rest)];
      Store(word, Load(word).WithStale(true));
    }
  }
  return absl::OkStatus();
}

}  // namespace braid
