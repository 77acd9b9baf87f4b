#include "lib/allocator/free_space.h"

#include <algorithm>
#include <cassert>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid {
namespace {

uint64_t RoundUp(uint64_t unit) { return DivideUp(unit, kSmallPerExtent) * kSmallPerExtent; }
uint64_t RoundDown(uint64_t unit) { return unit / kSmallPerExtent * kSmallPerExtent; }

// Whole large extents within a run.
uint64_t LargeIn(uint64_t first, uint64_t count) {
  const uint64_t begin = RoundUp(first), end = RoundDown(first + count);
  return end > begin ? (end - begin) / kSmallPerExtent : 0;
}

absl::Status Refuse(UnitRun run, absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat(run.count, " units of a device from ", run.first.value(), " on ", why));
}

}  // namespace

FreeSpace::FreeSpace(uint64_t data_offset_bytes, uint64_t data_bytes)
    : first_unit_(data_offset_bytes / kSmallExtentBytes),
      capacity_units_(data_bytes / kSmallExtentBytes) {
  assert(data_offset_bytes % kExtentBytes == 0 && data_bytes % kExtentBytes == 0);
  if (capacity_units_ > 0) Insert(first_unit_, capacity_units_);
}

void FreeSpace::Insert(uint64_t first, uint64_t count) {
  const uint64_t large = LargeIn(first, count);
  free_.emplace(first, count);
  if (large > 0) by_large_.emplace(large, first);
  if (large * kSmallPerExtent != count) broken_.insert(first);
  free_units_ += count;
  free_large_ += large;
}

void FreeSpace::Erase(Runs::iterator it) {
  const auto [first, count] = *it;
  const uint64_t large = LargeIn(first, count);
  by_large_.erase({large, first});
  broken_.erase(first);
  free_units_ -= count;
  free_large_ -= large;
  free_.erase(it);
}

void FreeSpace::Cut(Runs::iterator it, uint64_t first, uint64_t count) {
  const auto [whole_first, whole_count] = *it;
  const uint64_t end = first + count, whole_end = whole_first + whole_count;
  Erase(it);
  if (whole_first < first) Insert(whole_first, first - whole_first);
  if (end < whole_end) Insert(end, whole_end - end);
}

uint64_t FreeSpace::longest_large_run() const {
  return by_large_.empty() ? 0 : by_large_.rbegin()->first;
}

std::vector<UnitRun> FreeSpace::FreeRuns() const {
  std::vector<UnitRun> runs;
  runs.reserve(free_.size());
  for (const auto& [first, count] : free_) runs.push_back({DeviceUnit(first), count});
  return runs;
}

std::optional<UnitRun> FreeSpace::TakeLarge(uint64_t extents) {
  assert(extents > 0);
  if (by_large_.empty()) return std::nullopt;
  auto found = by_large_.lower_bound({extents, 0});
  if (found == by_large_.end()) --found;
  const auto [large, run_first] = *found;
  const uint64_t first = RoundUp(run_first);
  const uint64_t count = std::min(extents, large) * kSmallPerExtent;
  Cut(free_.find(run_first), first, count);
  return UnitRun{DeviceUnit(first), count};
}

std::optional<UnitRun> FreeSpace::TakeSmall(uint64_t units) {
  assert(units > 0);
  if (free_.empty()) return std::nullopt;
  Runs::iterator it;
  uint64_t unit = 0;
  if (!broken_.empty()) {
    it = free_.find(*broken_.begin());
    const auto [first, count] = *it;
    const bool begins_whole = first % kSmallPerExtent == 0 && count >= kSmallPerExtent;
    unit = begins_whole ? RoundDown(first + count) : first;
  } else {
    it = free_.find(by_large_.begin()->second);
    unit = it->first;
  }
  const uint64_t end = std::min(RoundDown(unit) + kSmallPerExtent, it->first + it->second);
  const uint64_t count = std::min(units, end - unit);
  Cut(it, unit, count);
  return UnitRun{DeviceUnit(unit), count};
}

absl::Status FreeSpace::CheckInside(UnitRun run) const {
  if (run.count == 0) return Refuse(run, "are none");
  if (run.first.value() < first_unit_ ||
      !RangeFits(run.first.value() - first_unit_, run.count, capacity_units_)) {
    return Refuse(run, "lie outside of its extents");
  }
  return absl::OkStatus();
}

absl::Status FreeSpace::Take(UnitRun run) {
  if (absl::Status s = CheckInside(run); !s.ok()) return s;
  const uint64_t first = run.first.value();
  auto it = free_.upper_bound(first);
  if (it == free_.begin()) return Refuse(run, "are taken already");
  --it;
  if (!RangeFits(first - it->first, run.count, it->second)) {
    return Refuse(run, "are taken already");
  }
  Cut(it, first, run.count);
  return absl::OkStatus();
}

absl::Status FreeSpace::Give(UnitRun run) {
  if (absl::Status s = CheckInside(run); !s.ok()) return s;
  uint64_t first = run.first.value(), end = first + run.count;
  auto after = free_.lower_bound(first);
  if (after != free_.end() && after->first < end) return Refuse(run, "are free already");
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    const uint64_t before_end = before->first + before->second;
    if (before_end > first) return Refuse(run, "are free already");
    if (before_end == first) first = before->first;
  }
  if (after != free_.end() && after->first == end) {
    end += after->second;
    Erase(after);
  }
  if (first != run.first.value()) Erase(free_.find(first));
  Insert(first, end - first);
  return absl::OkStatus();
}

}  // namespace braid
