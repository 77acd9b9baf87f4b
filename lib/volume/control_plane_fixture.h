// A control plane of one thin volume, in memory: keeps runs, grants and the number of the last
// change applied as braidd does, and checks every change strictly. What it frees it fills
// with garbage at once, and zeroes it when it grants it: a plugin that still uses what it
// gave up, or shows what it was not given, shows it. Failures of its checks are failures
// of the test.
#ifndef BRAID_LIB_VOLUME_CONTROL_PLANE_FIXTURE_H_
#define BRAID_LIB_VOLUME_CONTROL_PLANE_FIXTURE_H_

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "lib/base/mutex.h"
#include "lib/mapping/map_run.h"
#include "lib/volume/map_authority.h"

namespace braid {

// A device as its control plane sees it: raw, whatever the data plane's view of it does.
struct RawDevice {
  std::function<std::unique_ptr<BlockDevice>()> open;  // for the data plane
  std::function<void(uint64_t offset, uint64_t length, char byte)> fill;
  std::function<std::string(uint64_t offset, uint64_t length)> read;
  uint64_t units = 0;  // in the pool
};

class FakeControlPlane final : public MapAuthority {
 public:
  static constexpr char kGarbage = static_cast<char>(0xdb);

  FakeControlPlane(const Geometry& geometry, std::vector<RawDevice> devices)
      : geometry_(geometry), devices_(std::move(devices)), free_(devices_.size()) {
    for (size_t d = 0; d < devices_.size(); ++d) {
      for (uint64_t u = 0; u < devices_[d].units; ++u) free_[d].insert(u);
    }
  }

  // ------------------------------------------------------------------ as MapAuthority

  absl::Status MarkStale(DeviceIndex device, absl::string_view) override {
    MutexLock l(&mu_);
    while (held_up_) changed_.Wait(&mu_);
    if (Off()) return absl::CancelledError("no power");
    stale_.insert(device);
    for (auto& [unit, legs] : map_) MarkUnit(legs, device);
    return absl::OkStatus();
  }

  void ReportFault(absl::string_view what) override {
    MutexLock l(&mu_);
    faults_.emplace_back(what);
  }

  absl::Status CommitMap(uint64_t first, absl::Span<const MapChange> changes) override {
    MutexLock l(&mu_);
    while (held_up_ && !ending_) changed_.Wait(&mu_);
    if (ending_ || Off()) return absl::CancelledError("no power");
    EXPECT_FALSE(changes.empty());
    for (const MapChange& change : changes) {
      const uint64_t number = first++;
      if (number <= applied_) continue;
      EXPECT_EQ(number, applied_ + 1) << "a gap";
      const std::string fault = Apply(change);
      EXPECT_EQ(fault, "") << "change " << number;
      if (!fault.empty()) return absl::InvalidArgumentError(fault);
      applied_ = number;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Space> TakeSpace(uint64_t units) override {
    MutexLock l(&mu_);
    if (unreachable_) return absl::UnavailableError("no control plane");
    if (Off()) return absl::CancelledError("no power");
    Space space;
    while (units > 0) {
      std::optional<Grant> grant = Choose(units);
      if (!grant.has_value()) break;
      for (UnitPlace& leg : grant->legs) {
        const size_t d = leg.device.value();  // of devices_
        devices_[d].fill(leg.unit.value() * kSmallExtentBytes, grant->count * kSmallExtentBytes, 0);
        leg.device = Known(d, &space);
      }
      units -= grant->count;
      grants_.push_back(*grant);
      space.grants.push_back(*std::move(grant));
    }
    if (Off()) return absl::CancelledError("no power");
    if (space.grants.empty()) return absl::ResourceExhaustedError("full");
    return space;
  }

  void ReturnSpace(const std::vector<Grant>& grants) override {
    MutexLock l(&mu_);
    if (Off()) return;
    for (const Grant& grant : grants) {
      EXPECT_TRUE(TakeGrant(grant)) << "returned what it does not have";
      for (const UnitPlace& leg : grant.legs) {
        const size_t d = known_[leg.device.value()];
        const uint64_t bytes = grant.count * kSmallExtentBytes;
        EXPECT_TRUE(devices_[d].read(leg.unit.value() * kSmallExtentBytes, bytes) ==
                    std::string(bytes, '\0'))
            << "returned what was written";
      }
      FreeGrant(grant);
    }
  }

  // --------------------------------------------------------------------- for the test

  // Commits nothing until told otherwise; space it gives.
  void HoldUp(bool yes) { Set(held_up_, yes); }
  void SetUnreachable(bool yes) { Set(unreachable_, yes); }
  // Commits that are held up end: the process is about to die. Undone by BeginHolder.
  void EndHolder() { Set(ending_, true); }
  void BeginHolder() {
    Set(ending_, false);
    MutexLock l(&mu_);
    stale_.clear();  // the next one may find the device well
  }
  // Nothing is committed any more when this says so.
  void SetPower(std::function<bool()> is_on) {
    MutexLock l(&mu_);
    power_is_on_ = std::move(is_on);
  }
  // The longest piece granted; 64 units give whole rows.
  void SetLongestPiece(uint64_t units) {
    MutexLock l(&mu_);
    longest_piece_ = units;
  }
  // `units` more for every device.
  void Extend(uint64_t units) {
    MutexLock l(&mu_);
    for (size_t d = 0; d < devices_.size(); ++d) {
      for (uint64_t u = 0; u < units; ++u) free_[d].insert(devices_[d].units++);
    }
  }

  // After the machine has crashed: grants are worth nothing, and of every unit one leg
  // stays, chosen by `choose` among those in sync; the others are made equal to it, as a
  // resynchronisation would.
  void Crash(const std::function<uint64_t(uint64_t)>& choose) {
    MutexLock l(&mu_);
    for (const Grant& grant : std::exchange(grants_, {})) FreeGrant(grant);
    for (auto& [unit, legs] : map_) {
      std::vector<uint32_t> good;
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
        if (!legs[leg].stale) good.push_back(leg);
      }
      ASSERT_FALSE(good.empty());
      const UnitPlace& kept = legs[good[choose(good.size())]];
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) CopyUnit(kept, legs[leg]);
    }
    stale_.clear();
  }

  // What the next holder is told.
  std::vector<MapRun> runs() const {
    MutexLock l(&mu_);
    std::vector<MapRun> runs;
    for (const auto& [unit, legs] : map_) {
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
        runs.push_back({.column = unit.first,
                        .leg = leg,
                        .first = ColumnUnit(unit.second),
                        .count = 1,
                        .device = legs[leg].device,
                        .unit = legs[leg].unit,
                        .stale = legs[leg].stale});
      }
    }
    return Normalize(std::move(runs));
  }
  std::vector<Grant> grants() const {
    MutexLock l(&mu_);
    return grants_;
  }
  uint64_t applied() const {
    MutexLock l(&mu_);
    return applied_;
  }
  std::vector<std::unique_ptr<BlockDevice>> OpenDevices() const {
    MutexLock l(&mu_);
    std::vector<std::unique_ptr<BlockDevice>> open;
    for (size_t d : known_) open.push_back(devices_[d].open());
    return open;
  }

  // Units bound, of each leg.
  uint64_t bound_units() const {
    MutexLock l(&mu_);
    return map_.size();
  }
  uint64_t granted_units() const {
    MutexLock l(&mu_);
    uint64_t units = 0;
    for (const Grant& grant : grants_) units += grant.count;
    return units;
  }
  uint64_t moves() const {
    MutexLock l(&mu_);
    return moves_;
  }
  std::vector<std::string> faults() const {
    MutexLock l(&mu_);
    return faults_;
  }
  // "" when all legs in sync of every bound unit hold the same bytes.
  std::string CompareLegs() const {
    MutexLock l(&mu_);
    for (const auto& [unit, legs] : map_) {
      std::optional<std::string> first;
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
        if (legs[leg].stale) continue;
        const std::string bytes = ReadUnit(legs[leg]);
        if (first.has_value() && *first != bytes) {
          return absl::StrCat("legs of column ", unit.first, " unit ", unit.second, " differ");
        }
        first = bytes;
      }
    }
    return "";
  }
  // "" when every granted unit is zero.
  std::string CheckGrantsZero() const {
    MutexLock l(&mu_);
    for (const Grant& grant : grants_) {
      for (const UnitPlace& leg : grant.legs) {
        for (uint64_t u = 0; u < grant.count; ++u) {
          const UnitPlace at{leg.device, leg.unit + u};
          if (ReadUnit(at) != std::string(kSmallExtentBytes, '\0')) {
            return absl::StrCat("granted unit ", at.unit.value(), " of device ", at.device.value(),
                                " is not zero");
          }
        }
      }
    }
    return "";
  }

 private:
  using Legs = std::array<UnitPlace, kMaxLegs>;

  void Set(bool& flag, bool yes) {
    MutexLock l(&mu_);
    flag = yes;
    changed_.SignalAll();
  }
  bool Off() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return power_is_on_ && !power_is_on_(); }

  void Free(size_t d, uint64_t unit) {
    devices_[d].fill(unit * kSmallExtentBytes, kSmallExtentBytes, kGarbage);
    EXPECT_TRUE(free_[d].insert(unit).second) << "freed twice";
  }
  void FreeGrant(const Grant& grant) {
    for (const UnitPlace& leg : grant.legs) {
      for (uint64_t u = 0; u < grant.count; ++u) {
        Free(known_[leg.device.value()], leg.unit.value() + u);
      }
    }
  }
  std::string ReadUnit(const UnitPlace& at) const {
    return devices_[known_[at.device.value()]].read(at.unit.value() * kSmallExtentBytes,
                                                    kSmallExtentBytes);
  }
  void CopyUnit(const UnitPlace& from, UnitPlace& to) {
    to.stale = false;
    const std::string bytes = ReadUnit(from);
    if (bytes == ReadUnit(to)) return;
    std::unique_ptr<BlockDevice> device = devices_[known_[to.device.value()]].open();
    EXPECT_TRUE(device->Write(to.unit.value() * kSmallExtentBytes, bytes).ok());
    EXPECT_TRUE(device->Flush().ok());
  }

  DeviceIndex Known(size_t d, Space* space) {
    auto at = std::find(known_.begin(), known_.end(), d);
    if (at == known_.end()) {
      space->devices.push_back(devices_[d].open());
      known_.push_back(d);
      at = known_.end() - 1;
    }
    return DeviceIndex(static_cast<uint16_t>(at - known_.begin()));
  }

  // The units first free on a device that lie one after the other.
  std::pair<uint64_t, uint64_t> FirstRun(size_t d) const {
    uint64_t count = 0;
    const uint64_t first = *free_[d].begin();
    for (auto at = free_[d].begin(); at != free_[d].end() && *at == first + count; ++at) ++count;
    return {first, count};
  }
  // Takes up to `units` on the devices with most free; legs named by their place in devices_.
  std::optional<Grant> Choose(uint64_t units) {
    std::vector<size_t> order;
    for (size_t d = 0; d < devices_.size(); ++d) {
      if (!free_[d].empty()) order.push_back(d);
    }
    if (order.size() < geometry_.legs()) return std::nullopt;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return free_[a].size() > free_[b].size(); });
    Grant grant{.count = std::min(units, longest_piece_)};
    for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
      const auto [first, count] = FirstRun(order[leg]);
      grant.count = std::min(grant.count, count);
      grant.legs.push_back(
          {DeviceIndex(static_cast<uint16_t>(order[leg])), DeviceUnit(first), false});
    }
    for (const UnitPlace& leg : grant.legs) {
      for (uint64_t u = 0; u < grant.count; ++u) {
        free_[leg.device.value()].erase(leg.unit.value() + u);
      }
    }
    return grant;
  }

  // Takes exactly these units out of one grant.
  bool TakeGrant(const Grant& wanted) {
    for (auto at = grants_.begin(); at != grants_.end(); ++at) {
      const Grant had = *at;
      if (had.legs[0].device != wanted.legs[0].device || wanted.legs[0].unit < had.legs[0].unit) {
        continue;
      }
      const uint64_t skip = wanted.legs[0].unit - had.legs[0].unit;
      if (skip + wanted.count > had.count) continue;
      for (size_t leg = 0; leg < had.legs.size(); ++leg) {
        if (wanted.legs[leg].device != had.legs[leg].device ||
            wanted.legs[leg].unit != had.legs[leg].unit + skip) {
          return false;
        }
      }
      grants_.erase(at);
      const auto keep = [&](uint64_t from, uint64_t count) {
        if (count == 0) return;
        Grant part{.count = count, .legs = had.legs};
        for (UnitPlace& leg : part.legs) leg.unit = leg.unit + from;
        grants_.push_back(part);
      };
      keep(0, skip);
      keep(skip + wanted.count, had.count - skip - wanted.count);
      return true;
    }
    return false;
  }

  void MarkUnit(Legs& legs, DeviceIndex device) {
    const auto good = std::count_if(legs.begin(), legs.begin() + geometry_.legs(),
                                    [](const UnitPlace& leg) { return !leg.stale; });
    for (uint32_t leg = 0; leg < geometry_.legs() && good > 1; ++leg) {
      if (legs[leg].device == device) legs[leg].stale = true;
    }
  }

  // "" when it was applied.
  std::string Apply(const MapChange& change) {
    if (absl::Status s = CheckMapChange(geometry_, change, known_.size()); !s.ok()) {
      return std::string(s.message());
    }
    const bool binds = change.kind != MapChange::Kind::kUnbind;
    if (binds) {
      Grant grant{.count = change.count};
      uint32_t good_and_sound = 0;
      uint32_t good_and_stale = 0;
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
        const UnitPlace& place = change.legs[leg];
        grant.legs.push_back({place.device, place.unit, false});
        if (!place.stale) ++(stale_.contains(place.device) ? good_and_stale : good_and_sound);
      }
      if (!TakeGrant(grant)) return "binds what was not granted";
      if (good_and_sound > 0 && good_and_stale > 0) return "in sync on a device that is stale";
    }
    for (uint64_t u = 0; u < change.count; ++u) {
      const std::pair<uint32_t, uint64_t> unit{change.column, change.first.value() + u};
      const auto at = map_.find(unit);
      if (change.kind == MapChange::Kind::kBind && at != map_.end()) return "binds what is bound";
      if (change.kind == MapChange::Kind::kMove && at == map_.end()) return "moves a hole";
      if (at != map_.end()) {
        for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) {
          Free(known_[at->second[leg].device.value()], at->second[leg].unit.value());
        }
        map_.erase(at);
      }
      if (!binds) continue;
      Legs legs = change.legs;
      for (uint32_t leg = 0; leg < geometry_.legs(); ++leg) legs[leg].unit = legs[leg].unit + u;
      map_[unit] = legs;
    }
    if (change.kind == MapChange::Kind::kMove) ++moves_;
    return "";
  }

  const Geometry geometry_;
  mutable Mutex mu_;
  CondVar changed_;
  std::function<bool()> power_is_on_ ABSL_GUARDED_BY(mu_);
  std::vector<RawDevice> devices_ ABSL_GUARDED_BY(mu_);
  std::vector<std::set<uint64_t>> free_ ABSL_GUARDED_BY(mu_);  // by place in devices_
  std::vector<size_t> known_ ABSL_GUARDED_BY(mu_);             // by DeviceIndex
  // By column and unit.
  std::map<std::pair<uint32_t, uint64_t>, Legs> map_ ABSL_GUARDED_BY(mu_);
  std::vector<Grant> grants_ ABSL_GUARDED_BY(mu_);
  std::set<DeviceIndex> stale_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> faults_ ABSL_GUARDED_BY(mu_);
  uint64_t applied_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t longest_piece_ ABSL_GUARDED_BY(mu_) = 1024;
  uint64_t moves_ ABSL_GUARDED_BY(mu_) = 0;
  bool held_up_ ABSL_GUARDED_BY(mu_) = false;
  bool unreachable_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_CONTROL_PLANE_FIXTURE_H_
