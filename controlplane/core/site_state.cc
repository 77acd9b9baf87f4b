#include "controlplane/core/site_state.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "controlplane/core/map_sweep.h"

namespace braid {
namespace {

absl::Status Contradiction(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(
      "the store contradicts itself: ", what,
      "; nothing was changed: keep a copy of the data directory and look with braid-inspect"));
}

UnitRun UnitsOf(const MapRun& run) { return {run.unit, run.count}; }

}  // namespace

std::shared_ptr<const std::vector<MapRun>> RunsOf(const VolumeEntry& volume) {
  if (volume.thin == nullptr) return volume.runs;
  return std::make_shared<const std::vector<MapRun>>(volume.thin->Runs());
}

uint64_t ReserveUnits(const VolumeRecord& record) {
  return record.reserve_bytes / kSmallExtentBytes;
}

absl::StatusOr<std::unique_ptr<SiteState>> SiteState::Load(MetadataStore* store, Host* host,
                                                           const Options& options) {
  auto state = std::unique_ptr<SiteState>(new SiteState(store, host));
  state->node_ = options.node;
  absl::Status status = state->ReadOrInitialiseSite(options);
  if (!status.ok()) return status;
  absl::MutexLock lock(&state->mu_);
  SiteState& s = *state;
  s.mu_.AssertHeld();
  status = store->ForEachDevice([&](const DeviceRecord& record) {
    s.mu_.AssertHeld();
    return s.LoadDevice(record);
  });
  if (!status.ok()) return status;
  status = store->ForEachVolume([&](const VolumeRecord& record) {
    s.mu_.AssertHeld();
    return s.LoadVolume(record);
  });
  if (!status.ok()) return status;
  return state;
}

absl::Status SiteState::ReadOrInitialiseSite(const Options& options) {
  absl::StatusOr<SiteRecord> site = store_.ReadSite();
  if (absl::IsNotFound(site.status())) {
    if (options.name.empty()) {
      return absl::InvalidArgumentError("a new site needs a name; give one with --site");
    }
    absl::Status status = CheckName("site name", options.name);
    if (!status.ok()) return status;
    SiteRecord fresh{.cluster = host_.NewUuid(),
                     .site = host_.NewUuid(),
                     .name = options.name,
                     .revision = Revision(1)};
    MetadataBatch batch;
    batch.PutSite(fresh);
    status = store_.Commit(batch);
    if (!status.ok()) return status;
    site = fresh;
  }
  if (!site.ok()) return site.status();
  if (!options.name.empty() && options.name != site->name) {
    return absl::FailedPreconditionError(
        absl::StrCat("this data directory belongs to site '", site->name, "', not '", options.name,
                     "'; give --site ", site->name, " or another --data-dir"));
  }
  name_ = site->name;
  id_ = site->site;
  cluster_ = site->cluster;
  absl::MutexLock lock(&mu_);
  revision_ = site->revision;
  return absl::OkStatus();
}

absl::Status SiteState::LoadDevice(const DeviceRecord& record) {
  const std::string what = absl::StrCat("device '", record.name, "' (", record.id.ToString(), ")");
  if (record.revision > revision_)
    return Contradiction(absl::StrCat(what, " is newer than its site"));
  if (devices_by_name_.contains(record.name)) {
    return Contradiction(absl::StrCat("two devices have the name of ", what));
  }
  auto slot =
      std::make_unique<DeviceSlot>(DeviceSlot{std::make_shared<const DeviceRecord>(record),
                                              FreeSpace(record.data_offset, record.data_bytes)});
  devices_by_name_[record.name] = slot.get();
  devices_[record.id] = std::move(slot);
  return absl::OkStatus();
}

absl::Status SiteState::LoadVolume(const VolumeRecord& record) {
  const std::string what = absl::StrCat("volume '", record.name, "' (", record.id.ToString(), ")");
  if (record.revision > revision_)
    return Contradiction(absl::StrCat(what, " is newer than its site"));
  if (volumes_by_name_.contains(record.name)) {
    return Contradiction(absl::StrCat("two volumes have the name of ", what));
  }
  for (const Uuid& device : record.devices) {
    if (!devices_.contains(device)) {
      return Contradiction(
          absl::StrCat(what, " lies on device ", device.ToString(), ", which is unknown"));
    }
  }
  absl::StatusOr<Geometry> geometry =
      Geometry::Make(record.size_bytes, record.columns, record.stripe_bytes, record.legs);
  if (!geometry.ok()) return Contradiction(absl::StrCat(what, ": ", geometry.status().message()));

  absl::StatusOr<std::vector<MapRun>> runs = LoadRuns(record, *geometry, what);
  if (!runs.ok()) return runs.status();
  absl::StatusOr<std::vector<GrantRecord>> grants = LoadGrants(record, *geometry, what);
  if (!grants.ok()) return grants.status();
  VolumeEntry entry{.record = record, .geometry = *geometry};
  if (record.thin) {
    entry.thin = std::make_shared<ThinMap>(record.legs, *runs, *grants);
  } else {
    entry.runs = std::make_shared<const std::vector<MapRun>>(*std::move(runs));
  }
  ShowVolume(std::make_shared<const VolumeEntry>(std::move(entry)));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MapRun>> SiteState::LoadRuns(const VolumeRecord& record,
                                                        const Geometry& geometry,
                                                        absl::string_view what) {
  std::vector<MapRun> runs;
  absl::Status status = store_.ForEachRun(record.id, [&](const MapRun& run) {
    runs.push_back(run);
    return CheckRun(geometry, run, record.devices.size());
  });
  if (absl::IsInvalidArgument(status)) {
    return Contradiction(absl::StrCat(what, ": ", status.message()));
  }
  if (!status.ok()) return status;
  status = SweepMap(geometry, record.thin ? Coverage::kHoles : Coverage::kWhole, runs,
                    [](const MapStretch&) { return absl::OkStatus(); });
  if (!status.ok()) return Contradiction(absl::StrCat(what, ": ", status.message()));
  for (const MapRun& run : runs) {
    DeviceSlot& slot = *devices_.at(record.devices[run.device.value()]);
    status = slot.space.Take(UnitsOf(run));
    if (!status.ok()) {
      return Contradiction(
          absl::StrCat(what, " has extents on device '", slot.record->name,
                       "' that another volume has too, or that do not exist: ", status.message()));
    }
  }
  return runs;
}

absl::StatusOr<std::vector<GrantRecord>> SiteState::LoadGrants(const VolumeRecord& record,
                                                               const Geometry& geometry,
                                                               absl::string_view what) {
  std::vector<GrantRecord> grants;
  absl::Status status = store_.ForEachGrant(record.id, [&](const GrantRecord& grant) {
    grants.push_back(grant);
    if (!record.thin) return absl::InvalidArgumentError("it has grants, and is not thin");
    return CheckGrant(geometry, grant.grant, record.devices.size());
  });
  if (absl::IsInvalidArgument(status)) {
    return Contradiction(absl::StrCat(what, ": ", status.message()));
  }
  if (!status.ok()) return status;
  for (const GrantRecord& grant : grants) {
    for (const UnitPlace& leg : grant.grant.legs) {
      DeviceSlot& slot = *devices_.at(record.devices[leg.device.value()]);
      status = slot.space.Take({leg.unit, grant.grant.count});
      if (!status.ok()) {
        return Contradiction(
            absl::StrCat(what, " is granted extents on device '", slot.record->name,
                         "' that have another use too, or that do not exist: ", status.message()));
      }
      slot.granted_units += grant.grant.count;
    }
  }
  return grants;
}

void SiteState::ShowVolume(VolumePtr volume) {
  const VolumeRecord& record = volume->record;
  const auto before = volumes_.find(record.id);
  // Devices are only ever added behind those there are.
  const size_t known = before == volumes_.end() ? 0 : before->second->record.devices.size();
  for (size_t i = known; i < record.devices.size(); ++i) {
    ++devices_.at(record.devices[i])->volume_count;
  }
  volumes_by_name_[record.name] = volume;
  volumes_[record.id] = std::move(volume);
}

void SiteState::ShowMap(const VolumeEntry& volume, const ThinDelta& delta) {
  volume.thin->Show(delta);
  delta.ForEachGranted([&](const DeviceUnits& leg, bool comes) {
    mu_.AssertHeld();
    uint64_t& granted = devices_.at(volume.record.devices[leg.device.value()])->granted_units;
    granted += comes ? leg.units.count : 0 - leg.units.count;  // modulo 2^64
  });
}

void SiteState::HideVolume(const Uuid& id) {
  auto found = volumes_.find(id);
  const VolumePtr volume = found->second;
  const std::vector<Uuid>& devices = volume->record.devices;
  for (const Uuid& device : devices) --devices_.at(device)->volume_count;
  volumes_by_name_.erase(volume->record.name);
  volumes_.erase(found);
  const std::shared_ptr<const std::vector<MapRun>> runs = RunsOf(*volume);
  for (const MapRun& run : *runs) Free(devices[run.device.value()], UnitsOf(run));
  if (volume->thin == nullptr) return;
  for (const GrantRecord& record : volume->thin->Grants()) {
    for (const UnitPlace& leg : record.grant.legs) {
      const Uuid& device = devices[leg.device.value()];
      devices_.at(device)->granted_units -= record.grant.count;
      Free(device, {leg.unit, record.grant.count});
    }
  }
}

SiteState::DeviceSlot* SiteState::FindSlot(const Uuid& id) {
  const auto found = devices_.find(id);
  return found == devices_.end() ? nullptr : found->second.get();
}

void SiteState::Free(const Uuid& device, UnitRun units) {
  DeviceSlot* slot = FindSlot(device);
  if (slot == nullptr) return;
  absl::Status status = slot->space.Give(units);
  // Memory disagrees with itself: a mistake of this program. Giving out more extents could hurt
  // a volume, so nothing changes any more.
  if (!status.ok() && health_.ok()) {
    health_ = absl::InternalError(absl::StrCat("free space is inconsistent: ", status.message(),
                                               "; restart braidd and report this"));
  }
}

Revision SiteState::revision() const {
  absl::ReaderMutexLock lock(&mu_);
  return revision_;
}

absl::Status SiteState::health() const {
  absl::ReaderMutexLock lock(&mu_);
  return health_;
}

absl::StatusOr<VolumePtr> SiteState::FindVolume(absl::string_view name) const {
  absl::string_view short_name = name;
  const size_t slash = name.find('/');
  if (slash != absl::string_view::npos) {
    if (name.substr(0, slash) != name_) {
      return absl::NotFoundError(absl::StrCat("no site '", name.substr(0, slash),
                                              "' is known here; this is site '", name_, "'"));
    }
    short_name = name.substr(slash + 1);
  }
  absl::ReaderMutexLock lock(&mu_);
  auto by_name = volumes_by_name_.find(short_name);
  if (by_name != volumes_by_name_.end()) return by_name->second;
  if (absl::StatusOr<Uuid> id = Uuid::Parse(short_name); id.ok()) {
    auto by_id = volumes_.find(*id);
    if (by_id != volumes_.end()) return by_id->second;
  }
  return absl::NotFoundError(absl::StrCat("no volume '", short_name, "' in site '", name_,
                                          "'; braid volume list shows them"));
}

absl::StatusOr<VolumePtr> SiteState::FindVolume(const Uuid& id) const {
  absl::ReaderMutexLock lock(&mu_);
  auto found = volumes_.find(id);
  if (found != volumes_.end()) return found->second;
  return absl::NotFoundError(absl::StrCat("no volume ", id.ToString(), " in site '", name_,
                                          "'; it may have been deleted"));
}

std::vector<VolumePtr> SiteState::VolumesAfter(absl::string_view name, size_t limit) const {
  std::vector<VolumePtr> found;
  absl::ReaderMutexLock lock(&mu_);
  for (auto it = volumes_by_name_.upper_bound(name);
       it != volumes_by_name_.end() && found.size() < limit; ++it) {
    found.push_back(it->second);
  }
  return found;
}

uint64_t SiteState::volume_count() const {
  absl::ReaderMutexLock lock(&mu_);
  return volumes_.size();
}

DeviceUse SiteState::Use(const DeviceSlot& slot) {
  return {.record = slot.record,
          .capacity_bytes = slot.space.capacity_units() * kSmallExtentBytes,
          .free_bytes = slot.space.free_units() * kSmallExtentBytes,
          .largest_free_bytes = slot.space.longest_large_run() * kExtentBytes,
          .reserved_bytes = (slot.granted_units + slot.taken_units) * kSmallExtentBytes,
          .taken_bytes = slot.taken_units * kSmallExtentBytes,
          .volume_count = slot.volume_count};
}

absl::StatusOr<DeviceUse> SiteState::FindDevice(absl::string_view name) const {
  absl::ReaderMutexLock lock(&mu_);
  auto by_name = devices_by_name_.find(name);
  if (by_name != devices_by_name_.end()) return Use(*by_name->second);
  if (absl::StatusOr<Uuid> id = Uuid::Parse(name); id.ok()) {
    auto by_id = devices_.find(*id);
    if (by_id != devices_.end()) return Use(*by_id->second);
  }
  return absl::NotFoundError(
      absl::StrCat("no device '", name, "' in the pool; braid device list shows them"));
}

DevicePtr SiteState::FindDevice(const Uuid& id) const {
  absl::ReaderMutexLock lock(&mu_);
  auto found = devices_.find(id);
  return found == devices_.end() ? nullptr : found->second->record;
}

std::vector<DeviceUse> SiteState::Devices() const {
  std::vector<DeviceUse> all;
  absl::ReaderMutexLock lock(&mu_);
  all.reserve(devices_by_name_.size());
  for (const auto& [name, slot] : devices_by_name_) all.push_back(Use(*slot));
  return all;
}

std::vector<SiteState::FreeRuns> SiteState::AllFreeRuns() const {
  std::vector<FreeRuns> all;
  absl::ReaderMutexLock lock(&mu_);
  for (const auto& [name, slot] : devices_by_name_) {
    all.push_back({Use(*slot), slot->space.FreeRuns()});
  }
  return all;
}

}  // namespace braid
