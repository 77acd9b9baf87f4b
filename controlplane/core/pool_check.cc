// Walks all records of the store, as they were at one moment between two changes, and notes
// who says that he has which units. Sorted by place, two owners of one unit are neighbours; and
// what nobody has must be what the state calls free, to the unit. The counters are compared
// last, with sums of their own.
//
// The snapshot and the state's own view of things are taken within one Change, for a moment;
// the walk holds nothing up. Space on its way into a record (TakenSpace) is known by its amount
// only: it is neither owned nor free.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/map_sweep.h"
#include "controlplane/core/pools.h"
#include "lib/base/checked.h"

namespace braid {
namespace {

// A damaged store may contradict itself everywhere.
constexpr size_t kMaxFindings = 1000;

// What someone says is his, on one device.
struct Claim {
  UnitRun units;
  uint32_t volume = 0;  // its place in the walk
  bool granted = false;
};

struct Device {
  DeviceRecord record;
  std::vector<Claim> claims;
};

// As the state has it at the moment of the snapshot.
struct Picture {
  std::unique_ptr<MetadataReader> records;
  std::vector<SiteState::FreeRuns> devices;
  absl::flat_hash_map<Uuid, VolumePtr> volumes;
  absl::flat_hash_map<Uuid, ThinCounts> counts;
};

Picture TakePicture(SiteState& state) {
  Change change(state);
  Picture picture{.records = state.store().Snapshot(), .devices = state.AllFreeRuns()};
  for (const VolumePtr& volume : state.VolumesAfter("", SIZE_MAX)) {
    picture.volumes[volume->record.id] = volume;
    if (volume->thin != nullptr) picture.counts[volume->record.id] = volume->thin->counts();
  }
  return picture;
}

std::string Show(uint64_t first, uint64_t end) {
  return absl::StrCat("units ", first, " to ", end - 1);
}

class Walk {
 public:
  explicit Walk(Picture picture) : picture_(std::move(picture)) {}

  absl::StatusOr<PoolCheck> Run() {
    absl::Status status = picture_.records->ForEachDevice([this](const DeviceRecord& record) {
      ++check_.devices;
      devices_[record.id].record = record;
      return absl::OkStatus();
    });
    if (!Tolerate(status)) return status;
    status = picture_.records->ForEachVolume(
        [this](const VolumeRecord& record) { return WalkVolume(record); });
    if (!Tolerate(status)) return status;
    for (const auto& [id, volume] : picture_.volumes) {
      Find(absl::StrCat("volume '", volume->record.name, "' is in use, and not in the store"));
    }
    absl::flat_hash_set<Uuid> known;
    for (const SiteState::FreeRuns& free : picture_.devices) known.insert(free.use.record->id);
    for (auto& [id, device] : devices_) {
      CheckOwners(device);
      if (known.contains(id)) continue;
      Find(absl::StrCat("device '", device.record.name,
                        "' is in the store, and not known to the site"));
    }
    for (const SiteState::FreeRuns& free : picture_.devices) CheckFree(free);
    std::sort(check_.findings.begin(), check_.findings.end());
    if (left_out_ > 0) check_.findings.push_back(absl::StrCat("and ", left_out_, " more"));
    return std::move(check_);
  }

 private:
  void Find(std::string finding) {
    if (check_.findings.size() < kMaxFindings) {
      check_.findings.push_back(std::move(finding));
    } else {
      ++left_out_;
    }
  }

  // Damage is a finding; a disk that does not answer is an error.
  bool Tolerate(const absl::Status& status) {
    if (status.ok()) return true;
    if (!absl::IsDataLoss(status) && !absl::IsUnimplemented(status)) return false;
    Find(absl::StrCat(status.message(), "; what follows it was not looked at"));
    return true;
  }

  absl::Status WalkVolume(const VolumeRecord& record) {
    ++check_.volumes;
    const auto index = static_cast<uint32_t>(names_.size());
    names_.push_back(absl::StrCat("volume '", record.name, "'"));
    const std::string& name = names_.back();
    for (const Uuid& device : record.devices) {
      if (!devices_.contains(device)) {
        Find(absl::StrCat(name, " lies on device ", device.ToString(), ", which is unknown"));
      }
    }
    const absl::StatusOr<Geometry> geometry =
        Geometry::Make(record.size_bytes, record.columns, record.stripe_bytes, record.legs);
    if (!geometry.ok()) return geometry.status();  // CheckVolume has seen it

    ThinCounts counts;
    std::vector<MapRun> runs;
    bool sound = true;
    absl::Status status = picture_.records->ForEachRun(record.id, [&](const MapRun& run) {
      ++check_.runs;
      ++counts.runs;
      if (run.leg == 0) counts.mapped_units += run.count;
      if (run.stale) counts.stale_units += run.count;
      if (absl::Status s = CheckRun(*geometry, run, record.devices.size()); !s.ok()) {
        sound = false;
        Find(absl::StrCat(name, ": ", s.message()));
      } else {
        Claims(record, run.device, {{run.unit, run.count}, index, /*granted=*/false});
      }
      runs.push_back(run);
      return absl::OkStatus();
    });
    if (!Tolerate(status)) return status;
    if (sound && status.ok()) CheckMap(name, *geometry, record.thin, runs);

    status = picture_.records->ForEachGrant(record.id, [&](const GrantRecord& grant) {
      ++check_.grants;
      ++counts.grants;
      counts.granted_units += grant.grant.count;
      if (!grant.handed_out) counts.set_aside_units += grant.grant.count;
      CheckGrant(record, index, grant.grant);
      return absl::OkStatus();
    });
    if (!Tolerate(status)) return status;
    CompareWithState(name, record, runs, counts);
    return absl::OkStatus();
  }

  void CheckMap(const std::string& name, const Geometry& geometry, bool thin,
                const std::vector<MapRun>& runs) {
    for (size_t i = 1; i < runs.size(); ++i) {
      const MapRun &a = runs[i - 1], &b = runs[i];
      if (a.column != b.column || a.leg != b.leg || a.first + a.count <= b.first) continue;
      Find(absl::StrCat(name, ": two runs of column ", b.column, ", leg ", b.leg,
                        " overlap from unit ", b.first.value(), " on"));
      return;
    }
    const absl::Status swept = SweepMap(
        geometry, thin ? Coverage::kHoles : Coverage::kWhole, runs, [&](const MapStretch& stretch) {
          for (size_t i = 0; i < stretch.legs.size(); ++i) {
            for (size_t j = 0; j < i; ++j) {
              if (stretch.legs[i]->device != stretch.legs[j]->device) continue;
              Find(absl::StrCat(name, ": legs ", j, " and ", i, " of unit ", stretch.first.value(),
                                " of column ", stretch.column, " lie on one device"));
            }
          }
          return absl::OkStatus();
        });
    if (!swept.ok()) Find(absl::StrCat(name, ": ", swept.message()));
  }

  void CheckGrant(const VolumeRecord& record, uint32_t index, const Grant& grant) {
    const std::string& name = names_[index];
    if (!record.thin) Find(absl::StrCat(name, " has grants, and is not thin"));
    if (grant.legs.size() != record.legs) {
      Find(absl::StrCat(name, " has ", record.legs, " legs, and a grant of ", grant.legs.size()));
    }
    for (const UnitPlace& leg : grant.legs) {
      if (leg.device.value() >= record.devices.size()) {
        Find(absl::StrCat(name, " has a grant on none of its devices"));
        continue;
      }
      Claims(record, leg.device, {{leg.unit, grant.count}, index, /*granted=*/true});
    }
  }

  void Claims(const VolumeRecord& record, DeviceIndex index, const Claim& claim) {
    const auto found = devices_.find(record.devices[index.value()]);
    if (found != devices_.end()) found->second.claims.push_back(claim);
  }

  void CompareWithState(const std::string& name, const VolumeRecord& record,
                        const std::vector<MapRun>& runs, const ThinCounts& counts) {
    const auto found = picture_.volumes.find(record.id);
    if (found == picture_.volumes.end()) {
      Find(absl::StrCat(name, " is in the store, and not known to the site"));
      return;
    }
    const VolumePtr volume = std::move(found->second);
    picture_.volumes.erase(found);
    if (record != volume->record) {
      Find(absl::StrCat(name, ": its record in the store is another than the site's"));
    }
    if (volume->thin == nullptr) {
      if (runs != *volume->runs) Find(absl::StrCat(name, ": its map is another than the site's"));
      return;
    }
    const ThinCounts& known = picture_.counts.at(record.id);
    const auto compare = [&](const char* what, uint64_t there, uint64_t counted) {
      if (there == counted) return;
      Find(absl::StrCat(name, ": the store has ", there, " ", what, ", the site counts ", counted));
    };
    compare("units in its map", counts.mapped_units, known.mapped_units);
    compare("units granted", counts.granted_units, known.granted_units);
    compare("units set aside", counts.set_aside_units, known.set_aside_units);
    compare("stale units", counts.stale_units, known.stale_units);
    compare("runs", counts.runs, known.runs);
    compare("grants", counts.grants, known.grants);
  }

  std::string Owner(const Claim& claim) const {
    return absl::StrCat(names_[claim.volume], claim.granted ? " (granted)" : "");
  }

  // Every claim lies within the device's data, and no two meet.
  void CheckOwners(Device& device) {
    const uint64_t begin = device.record.data_offset / kSmallExtentBytes;
    const uint64_t capacity = device.record.data_bytes / kSmallExtentBytes;
    std::sort(device.claims.begin(), device.claims.end(), [](const Claim& a, const Claim& b) {
      return std::pair(a.units.first, a.units.count) < std::pair(b.units.first, b.units.count);
    });
    const Claim* before = nullptr;  // the one that reaches furthest
    for (const Claim& claim : device.claims) {
      const uint64_t first = claim.units.first.value(), end = first + claim.units.count;
      if (first < begin || !RangeFits(first - begin, claim.units.count, capacity)) {
        Find(absl::StrCat(Owner(claim), " has ", Show(first, end), " of device '",
                          device.record.name, "', outside of its data"));
      }
      const uint64_t reached =
          before == nullptr ? 0 : (before->units.first + before->units.count).value();
      if (first < reached) {
        Find(absl::StrCat(Show(first, std::min(end, reached)), " of device '", device.record.name,
                          "' belong to ", Owner(*before), " and to ", Owner(claim)));
      }
      if (end > reached) before = &claim;
    }
  }

  // Owned, free and on their way: together the device, with nothing twice. The claims are in
  // order.
  void CheckFree(const SiteState::FreeRuns& state) {
    const DeviceUse& use = state.use;
    const auto found = devices_.find(use.record->id);
    if (found == devices_.end()) {
      Find(absl::StrCat("device '", use.record->name, "' is in use, and not in the store"));
      return;
    }
    const Device& device = found->second;
    uint64_t owned = 0, granted = 0, free = 0, reached = 0;
    for (const Claim& claim : device.claims) {
      const uint64_t first = claim.units.first.value(), end = first + claim.units.count;
      owned += end - std::min(end, std::max(first, reached));  // what two own counts once
      granted += claim.granted ? claim.units.count : 0;
      reached = std::max(reached, end);
    }
    auto claim = device.claims.begin();
    for (const UnitRun& run : state.runs) {
      free += run.count;
      const uint64_t first = run.first.value(), end = first + run.count;
      // Claims that reach into this run; one may reach into the next as well.
      while (claim != device.claims.end() &&
             (claim->units.first + claim->units.count).value() <= first) {
        ++claim;
      }
      for (auto c = claim; c != device.claims.end() && c->units.first.value() < end; ++c) {
        const uint64_t from = std::max(first, c->units.first.value());
        const uint64_t to = std::min(end, (c->units.first + c->units.count).value());
        if (from >= to) continue;
        Find(absl::StrCat(Show(from, to), " of device '", use.record->name, "' belong to ",
                          Owner(*c), " and are free"));
      }
    }
    const uint64_t capacity = device.record.data_bytes / kSmallExtentBytes;
    const uint64_t taken = use.taken_bytes / kSmallExtentBytes;
    if (owned + free + taken != capacity) {
      Find(absl::StrCat("device '", use.record->name, "' has ", capacity, " units: ", owned,
                        " are somebody's, ", free, " free and ", taken, " being granted, which is ",
                        owned + free + taken));
    }
    if ((use.reserved_bytes - use.taken_bytes) / kSmallExtentBytes != granted) {
      Find(absl::StrCat("device '", use.record->name, "': the store has ", granted,
                        " units granted, the site counts ",
                        (use.reserved_bytes - use.taken_bytes) / kSmallExtentBytes));
    }
    if (use.free_bytes / kSmallExtentBytes != free) {
      Find(absl::StrCat("device '", use.record->name, "' has ", free,
                        " units in its free runs, and counts ",
                        use.free_bytes / kSmallExtentBytes));
    }
  }

  Picture picture_;
  PoolCheck check_;
  uint64_t left_out_ = 0;
  absl::flat_hash_map<Uuid, Device> devices_;
  std::vector<std::string> names_;  // of the volumes, as in a finding
};

}  // namespace

absl::StatusOr<PoolCheck> CheckPools(SiteState& state) { return Walk(TakePicture(state)).Run(); }

}  // namespace braid
