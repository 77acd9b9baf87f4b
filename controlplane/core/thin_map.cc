#include "controlplane/core/thin_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid {
namespace {

std::pair<uint32_t, uint64_t> KeyOf(uint32_t column, uint32_t leg, ColumnUnit first) {
  return {column * kMaxLegs + leg, first.value()};
}

std::pair<DeviceIndex, DeviceUnit> KeyOf(const Grant& grant) {
  return {grant.legs[0].device, grant.legs[0].unit};
}

// `count` units of a grant, `skip` units into it.
Grant Part(const Grant& grant, uint64_t skip, uint64_t count) {
  Grant part = grant;
  part.count = count;
  for (UnitPlace& leg : part.legs) leg.unit = leg.unit + skip;
  return part;
}

bool Continues(const GrantRecord& a, const GrantRecord& b) {
  return a.handed_out == b.handed_out && Part(a.grant, a.grant.count, 0).legs == b.grant.legs;
}

absl::Status Unfit(const MapChange& change, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("map change of ", change.count, " units from ",
                                                 change.first.value(), " in column ", change.column,
                                                 ": ", why));
}

}  // namespace

MapRun ThinDelta::ToRun(const RunKey& key, const RunValue& value) {
  return {.column = key.first / kMaxLegs,
          .leg = key.first % kMaxLegs,
          .first = ColumnUnit(key.second),
          .count = value.count,
          .device = value.device,
          .unit = value.unit,
          .stale = value.stale};
}

void ThinDelta::AddTo(const Uuid& volume, MetadataBatch& batch) const {
  for (const auto& entry : runs_) {
    if (entry.after) {
      batch.PutRun(volume, ToRun(entry.key, *entry.after));
    } else {
      batch.DeleteRun(volume, entry.key.first / kMaxLegs, entry.key.first % kMaxLegs,
                      ColumnUnit(entry.key.second));
    }
  }
  for (const auto& entry : grants_) {
    if (entry.after) {
      batch.PutGrant(volume, *entry.after);
    } else {
      batch.DeleteGrant(volume, entry.before->grant.legs[0]);
    }
  }
}

void ThinDelta::ForEachGranted(absl::FunctionRef<void(const DeviceUnits&, bool comes)> fn) const {
  const auto each = [&fn](const std::optional<GrantRecord>& record, bool comes) {
    if (!record) return;
    for (const UnitPlace& leg : record->grant.legs) {
      fn({leg.device, {leg.unit, record->grant.count}}, comes);
    }
  };
  for (const auto& entry : grants_) each(entry.before, false);
  for (const auto& entry : grants_) each(entry.after, true);
}

ThinMap::ThinMap(uint32_t legs, const std::vector<MapRun>& runs,
                 const std::vector<GrantRecord>& grants)
    : legs_(legs) {
  absl::MutexLock lock(&mu_);
  for (const MapRun& run : runs) {
    PutRun(KeyOf(run.column, run.leg, run.first),
           RunValue{run.count, run.unit, run.device, run.stale});
  }
  for (const GrantRecord& grant : grants) PutGrant(KeyOf(grant.grant), grant);
}

void ThinMap::PutRun(const RunKey& key, const std::optional<RunValue>& value) {
  const auto count = [this, &key](const RunValue& run, bool comes) {
    mu_.AssertHeld();
    const uint64_t units = comes ? run.count : 0 - run.count;  // modulo 2^64
    if (key.first % kMaxLegs == 0) counts_.mapped_units += units;
    if (run.stale) counts_.stale_units += units;
  };
  const auto found = runs_.find(key);
  if (found != runs_.end()) count(found->second, false);
  if (value) {
    count(*value, true);
    runs_.insert_or_assign(key, *value);
  } else if (found != runs_.end()) {
    runs_.erase(found);
  }
}

void ThinMap::PutGrant(const GrantKey& key, const std::optional<GrantRecord>& value) {
  const auto count = [this](const GrantRecord& grant, bool comes) {
    mu_.AssertHeld();
    const uint64_t units = comes ? grant.grant.count : 0 - grant.grant.count;  // modulo 2^64
    counts_.granted_units += units;
    if (!grant.handed_out) counts_.set_aside_units += units;
  };
  const auto found = grants_.find(key);
  if (found != grants_.end()) count(found->second, false);
  if (value) {
    count(*value, true);
    grants_.insert_or_assign(key, *value);
  } else if (found != grants_.end()) {
    grants_.erase(found);
  }
}

ThinCounts ThinMap::counts() const {
  absl::ReaderMutexLock lock(&mu_);
  ThinCounts counts = counts_;
  counts.runs = runs_.size();
  counts.grants = grants_.size();
  return counts;
}

std::vector<MapRun> ThinMap::Runs() const {
  std::vector<MapRun> all;
  absl::ReaderMutexLock lock(&mu_);
  all.reserve(runs_.size());
  for (const auto& [key, value] : runs_) all.push_back(ThinDelta::ToRun(key, value));
  return all;
}

std::vector<GrantRecord> ThinMap::Grants() const {
  std::vector<GrantRecord> all;
  absl::ReaderMutexLock lock(&mu_);
  all.reserve(grants_.size());
  for (const auto& [key, grant] : grants_) all.push_back(grant);
  return all;
}

std::vector<Grant> ThinMap::HandedOut() const {
  std::vector<Grant> all;
  absl::ReaderMutexLock lock(&mu_);
  for (const auto& [key, grant] : grants_) {
    if (grant.handed_out) all.push_back(grant.grant);
  }
  return all;
}

std::vector<Grant> ThinMap::SetAside(uint64_t units,
                                     absl::FunctionRef<bool(DeviceIndex)> usable) const {
  std::vector<Grant> some;
  {
    absl::ReaderMutexLock lock(&mu_);
    for (const auto& [key, record] : grants_) {
      const std::vector<UnitPlace>& legs = record.grant.legs;
      if (!record.handed_out && std::all_of(legs.begin(), legs.end(), [&](const UnitPlace& leg) {
            return usable(leg.device);
          })) {
        some.push_back(record.grant);
      }
    }
  }
  std::stable_sort(some.begin(), some.end(),
                   [](const Grant& a, const Grant& b) { return a.count > b.count; });
  size_t kept = 0;
  for (; kept < some.size() && units > 0; ++kept) {
    some[kept].count = std::min(some[kept].count, units);
    units -= some[kept].count;
  }
  some.resize(kept);
  return some;
}

void ThinMap::Show(const ThinDelta& delta) {
  absl::MutexLock lock(&mu_);
  for (const auto& entry : delta.runs_) PutRun(entry.key, entry.after);
  for (const auto& entry : delta.grants_) PutGrant(entry.key, entry.after);
}

std::unique_ptr<ThinMap::Zeroing> ThinMap::BeginZeroing(const std::shared_ptr<ThinMap>& map) {
  absl::MutexLock lock(&map->mu_);
  if (map->zeroing_) return nullptr;
  map->zeroing_ = true;
  return std::unique_ptr<Zeroing>(new Zeroing(map));
}

ThinMap::Zeroing::~Zeroing() {
  absl::MutexLock lock(&map_->mu_);
  map_->zeroing_ = false;
}

bool ThinMap::zeroing() const {
  absl::ReaderMutexLock lock(&mu_);
  return zeroing_;
}

ThinEdit::ThinEdit(ThinMap& map, uint64_t reserve_units)
    : map_(map), reserve_units_(reserve_units), lock_(std::in_place, &map.mu_) {}

ThinEdit::~ThinEdit() {
  if (lock_) Undo();
}

void ThinEdit::Undo() {
  map_.mu_.AssertHeld();
  for (const auto& [key, before] : runs_before_) map_.PutRun(key, before);
  for (const auto& [key, before] : grants_before_) map_.PutGrant(key, before);
}

ThinDelta ThinEdit::Finish() {
  map_.mu_.AssertHeld();
  // What a tree holds now under each key that was touched, where that is something else.
  const auto compare = [](auto& touched, const auto& tree, auto& entries) {
    for (auto& [key, before] : touched) {
      const auto found = tree.find(key);
      std::remove_reference_t<decltype(before)> after;
      if (found != tree.end()) after = found->second;
      if (after != before) entries.push_back({key, before, std::move(after)});
    }
  };
  ThinDelta delta;
  compare(runs_before_, map_.runs_, delta.runs_);
  compare(grants_before_, map_.grants_, delta.grants_);
  delta.freed_ = std::move(freed_);
  Undo();
  lock_.reset();
  return delta;
}

void ThinEdit::PutRun(const RunKey& key, const std::optional<RunValue>& value) {
  map_.mu_.AssertHeld();
  const auto found = map_.runs_.find(key);
  runs_before_.try_emplace(
      key, found == map_.runs_.end() ? std::nullopt : std::optional<RunValue>(found->second));
  map_.PutRun(key, value);
}

void ThinEdit::PutGrant(const GrantKey& key, const std::optional<GrantRecord>& value) {
  map_.mu_.AssertHeld();
  const auto found = map_.grants_.find(key);
  grants_before_.try_emplace(
      key, found == map_.grants_.end() ? std::nullopt : std::optional<GrantRecord>(found->second));
  map_.PutGrant(key, value);
}

ThinEdit::RunIterator ThinEdit::FirstRun(uint32_t column, uint32_t leg, ColumnUnit first) const {
  map_.mu_.AssertHeld();
  const RunKey key = KeyOf(column, leg, first);
  auto it = map_.runs_.upper_bound(key);
  if (it == map_.runs_.begin()) return it;
  auto before = std::prev(it);
  const bool reaches = before->first.first == key.first &&
                       before->first.second + before->second.count > first.value();
  return reaches ? before : it;
}

bool ThinEdit::AllMapped(uint32_t column, ColumnUnit first, uint64_t count) const {
  map_.mu_.AssertHeld();
  const uint64_t end = first.value() + count;
  uint64_t at = first.value();
  for (auto it = FirstRun(column, 0, first); at < end; ++it) {
    if (it == map_.runs_.end() || it->first.first != column * kMaxLegs || it->first.second > at) {
      return false;
    }
    at = it->first.second + it->second.count;
  }
  return true;
}

bool ThinEdit::NoneMapped(uint32_t column, ColumnUnit first, uint64_t count) const {
  map_.mu_.AssertHeld();
  const auto it = FirstRun(column, 0, first);
  return it == map_.runs_.end() || it->first.first != column * kMaxLegs ||
         it->first.second >= first.value() + count;
}

std::vector<MapRun> ThinEdit::CutRuns(uint32_t column, uint32_t leg, ColumnUnit first,
                                      uint64_t count) {
  map_.mu_.AssertHeld();
  const ColumnUnit end = first + count;
  std::vector<MapRun> pieces;
  for (auto it = FirstRun(column, leg, first);
       it != map_.runs_.end() && it->first < KeyOf(column, leg, end); ++it) {
    pieces.push_back(ThinDelta::ToRun(it->first, it->second));
  }
  for (MapRun& run : pieces) {
    const RunKey key = KeyOf(column, leg, run.first);
    const ColumnUnit run_end = run.first + run.count;
    if (run_end > end) {
      PutRun(KeyOf(column, leg, end),
             RunValue{run_end - end, run.unit + (end - run.first), run.device, run.stale});
      run.count = end - run.first;
    }
    if (run.first < first) {
      const uint64_t stays = first - run.first;
      PutRun(key, RunValue{stays, run.unit, run.device, run.stale});
      run.first = first;
      run.unit = run.unit + stays;
      run.count -= stays;
    } else {
      PutRun(key, std::nullopt);
    }
  }
  return pieces;
}

void ThinEdit::InsertRun(MapRun run) {
  map_.mu_.AssertHeld();
  auto next = map_.runs_.lower_bound(KeyOf(run.column, run.leg, run.first));
  std::optional<MapRun> before, after;
  if (next != map_.runs_.end()) after = ThinDelta::ToRun(next->first, next->second);
  if (next != map_.runs_.begin()) {
    const auto previous = std::prev(next);
    before = ThinDelta::ToRun(previous->first, previous->second);
  }
  if (after && Continues(run, *after)) {
    PutRun(KeyOf(after->column, after->leg, after->first), std::nullopt);
    run.count += after->count;
  }
  if (before && Continues(*before, run)) {
    before->count += run.count;
    run = *before;
  }
  PutRun(KeyOf(run.column, run.leg, run.first),
         RunValue{run.count, run.unit, run.device, run.stale});
}

absl::Status ThinEdit::CutGrants(const Grant& grant, bool handed_out) {
  map_.mu_.AssertHeld();
  const auto refuse = [&](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat(
        grant.count, " units from ", grant.legs.empty() ? 0 : grant.legs[0].unit.value(),
        " on device ", grant.legs.empty() ? 0 : grant.legs[0].device.value(), " ", why...));
  };
  if (grant.legs.size() != map_.legs_ || grant.count == 0) return refuse("are no grant");
  for (uint64_t done = 0; done < grant.count;) {
    const Grant rest = Part(grant, done, grant.count - done);
    auto it = map_.grants_.upper_bound(KeyOf(rest));
    if (it == map_.grants_.begin()) return refuse("are not granted");
    const GrantRecord whole = std::prev(it)->second;
    const UnitPlace& begin = whole.grant.legs[0];
    const uint64_t skip = rest.legs[0].unit - begin.unit;  // used when it is one
    if (begin.device != rest.legs[0].device || skip >= whole.grant.count) {
      return refuse("are not granted");
    }
    if (Part(whole.grant, skip, 0).legs != rest.legs)
      return refuse("are not side by side on all legs");
    if (whole.handed_out != handed_out) {
      return refuse(handed_out ? "were only set aside" : "were handed out before");
    }
    const uint64_t count = std::min(rest.count, whole.grant.count - skip);
    if (skip + count < whole.grant.count) {
      const Grant tail = Part(whole.grant, skip + count, whole.grant.count - skip - count);
      PutGrant(KeyOf(tail), GrantRecord{tail, handed_out});
    }
    if (skip > 0) {
      PutGrant(KeyOf(whole.grant), GrantRecord{Part(whole.grant, 0, skip), handed_out});
    } else {
      PutGrant(KeyOf(whole.grant), std::nullopt);
    }
    done += count;
  }
  return absl::OkStatus();
}

void ThinEdit::InsertGrant(GrantRecord grant) {
  map_.mu_.AssertHeld();
  const auto next = map_.grants_.lower_bound(KeyOf(grant.grant));
  std::optional<GrantRecord> before, after;
  if (next != map_.grants_.end()) after = next->second;
  if (next != map_.grants_.begin()) before = std::prev(next)->second;
  if (after && Continues(grant, *after)) {
    PutGrant(KeyOf(after->grant), std::nullopt);
    grant.grant.count += after->grant.count;
  }
  if (before && Continues(*before, grant)) {
    before->grant.count += grant.grant.count;
    grant = *before;
  }
  const GrantKey key = KeyOf(grant.grant);
  PutGrant(key, std::move(grant));
}

void ThinEdit::Release(const Grant& grant) {
  map_.mu_.AssertHeld();
  const uint64_t has = map_.counts_.mapped_units + map_.counts_.granted_units;
  const uint64_t keep = has < reserve_units_ ? std::min(reserve_units_ - has, grant.count) : 0;
  if (keep > 0) InsertGrant({Part(grant, 0, keep), /*handed_out=*/false});
  if (keep < grant.count) Free(Part(grant, keep, grant.count - keep));
}

void ThinEdit::Free(const Grant& grant) {
  for (const UnitPlace& leg : grant.legs) {
    freed_.push_back({leg.device, {leg.unit, grant.count}});
  }
}

std::vector<Grant> ThinEdit::CutAllLegs(uint32_t column, ColumnUnit first, uint64_t count) {
  std::vector<std::vector<MapRun>> legs;
  for (uint32_t leg = 0; leg < map_.legs_; ++leg) {
    legs.push_back(CutRuns(column, leg, first, count));
  }
  // Of each leg the pieces are of the same units, but end at other places.
  std::vector<Grant> stretches;
  std::vector<size_t> at(legs.size(), 0);
  while (at[0] < legs[0].size()) {
    Grant stretch{.count = UINT64_MAX};
    for (size_t leg = 0; leg < legs.size(); ++leg) {
      const MapRun& run = legs[leg][at[leg]];
      stretch.count = std::min(stretch.count, run.count);
      stretch.legs.push_back({run.device, run.unit});
    }
    for (size_t leg = 0; leg < legs.size(); ++leg) {
      MapRun& run = legs[leg][at[leg]];
      run.unit = run.unit + stretch.count;
      run.count -= stretch.count;
      if (run.count == 0) ++at[leg];
    }
    stretches.push_back(std::move(stretch));
  }
  return stretches;
}

void ThinEdit::Unbind(uint32_t column, ColumnUnit first, uint64_t count) {
  for (const Grant& stretch : CutAllLegs(column, first, count)) Release(stretch);
}

absl::Status ThinEdit::Apply(const MapChange& change) {
  if (change.kind == MapChange::Kind::kUnbind) {
    Unbind(change.column, change.first, change.count);
    return absl::OkStatus();
  }
  const bool move = change.kind == MapChange::Kind::kMove;
  if (move && !AllMapped(change.column, change.first, change.count)) {
    return Unfit(change, "moves units that have no space");
  }
  if (!move && !NoneMapped(change.column, change.first, change.count)) {
    return Unfit(change, "binds units that have space");
  }
  Grant grant{.count = change.count};
  for (uint32_t leg = 0; leg < map_.legs_; ++leg) {
    grant.legs.push_back({change.legs[leg].device, change.legs[leg].unit});
  }
  if (absl::Status status = CutGrants(grant, /*handed_out=*/true); !status.ok()) {
    return Unfit(change, status.message());
  }
  std::vector<Grant> old;
  if (move) old = CutAllLegs(change.column, change.first, change.count);
  for (uint32_t leg = 0; leg < map_.legs_; ++leg) {
    InsertRun({.column = change.column,
               .leg = leg,
               .first = change.first,
               .count = change.count,
               .device = change.legs[leg].device,
               .unit = change.legs[leg].unit,
               .stale = change.legs[leg].stale});
  }
  for (const Grant& stretch : old) Release(stretch);
  return absl::OkStatus();
}

absl::Status ThinEdit::AddGrant(const GrantRecord& grant) {
  map_.mu_.AssertHeld();
  const auto next = map_.grants_.lower_bound(KeyOf(grant.grant));
  // Whether a grant's first leg meets another's. Those of other legs, and the map, are kept
  // apart by the free space, from which the units came.
  const auto meet = [](const Grant& a, const Grant& b) {
    return a.legs[0].device == b.legs[0].device && a.legs[0].unit + a.count > b.legs[0].unit;
  };
  if ((next != map_.grants_.end() && meet(grant.grant, next->second.grant)) ||
      (next != map_.grants_.begin() && meet(std::prev(next)->second.grant, grant.grant))) {
    return absl::InvalidArgumentError("units that were granted before");
  }
  InsertGrant(grant);
  return absl::OkStatus();
}

absl::Status ThinEdit::HandOut(const Grant& grant) {
  absl::Status status = CutGrants(grant, /*handed_out=*/false);
  if (status.ok()) InsertGrant({grant, /*handed_out=*/true});
  return status;
}

absl::Status ThinEdit::Return(const Grant& grant) {
  absl::Status status = CutGrants(grant, /*handed_out=*/true);
  if (status.ok()) Release(grant);
  return status;
}

void ThinEdit::ReturnAll() {
  map_.mu_.AssertHeld();
  std::vector<Grant> all;
  for (const auto& [key, record] : map_.grants_) {
    if (record.handed_out) all.push_back(record.grant);
  }
  for (const Grant& grant : all) PutGrant(KeyOf(grant), std::nullopt);
  for (const Grant& grant : all) Release(grant);
}

void ThinEdit::FreeSurplus() {
  map_.mu_.AssertHeld();
  const uint64_t has = map_.counts_.mapped_units + map_.counts_.granted_units;
  uint64_t surplus = has > reserve_units_ ? has - reserve_units_ : 0;
  std::vector<Grant> some;
  for (const auto& [key, record] : map_.grants_) {
    if (surplus == 0) break;
    if (record.handed_out) continue;
    some.push_back(Part(record.grant, 0, std::min(surplus, record.grant.count)));
    surplus -= some.back().count;
  }
  for (const Grant& grant : some) {
    // Cannot fail: it is part of what was just found.
    if (CutGrants(grant, /*handed_out=*/false).ok()) Free(grant);
  }
}

void ThinEdit::Restate(const std::vector<MapRun>& runs) {
  map_.mu_.AssertHeld();
  std::vector<std::pair<RunKey, std::optional<RunValue>>> changes;
  auto it = map_.runs_.begin();
  for (const MapRun& run : runs) {
    const RunKey key = KeyOf(run.column, run.leg, run.first);
    const RunValue value{run.count, run.unit, run.device, run.stale};
    for (; it != map_.runs_.end() && it->first < key; ++it) {
      changes.emplace_back(it->first, std::nullopt);
    }
    const bool there = it != map_.runs_.end() && it->first == key;
    if (!there || it->second != value) changes.emplace_back(key, value);
    if (there) ++it;
  }
  for (; it != map_.runs_.end(); ++it) changes.emplace_back(it->first, std::nullopt);
  for (const auto& [key, value] : changes) PutRun(key, value);
}

}  // namespace braid
