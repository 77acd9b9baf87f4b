#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controlplane/core/site_state.h"
#include "lib/mapping/page_table.h"

namespace braid {

TakenSpace::TakenSpace(TakenSpace&& other) noexcept
    : state_(other.state_), pieces_(std::exchange(other.pieces_, {})) {}

TakenSpace& TakenSpace::operator=(TakenSpace&& other) noexcept {
  if (this == &other) return *this;
  GiveBack();
  state_ = other.state_;
  pieces_ = std::exchange(other.pieces_, {});
  return *this;
}

void TakenSpace::GiveBack() {
  if (pieces_.empty()) return;
  absl::MutexLock lock(&state_->mu_);
  for (const auto& [device, units] : pieces_) {
    SiteState::DeviceSlot* slot = state_->FindSlot(device);
    if (slot != nullptr) slot->taken_units -= units.count;
    state_->Free(device, units);
  }
  pieces_.clear();
}

Change::Change(SiteState& state)
    : state_(state), lock_(&state.change_mu_), revision_(state.revision() + 1), taken_(&state) {}

absl::Status Change::Ready() const {
  absl::Status health = state_.health();
  if (health.ok()) return health;
  return absl::UnavailableError(health.message());
}

std::vector<PlacementDevice> Change::Offer(
    absl::FunctionRef<bool(const DeviceRecord&)> usable) const {
  std::vector<PlacementDevice> devices;
  for (const auto& [name, slot] : state_.devices_by_name_) {
    if (!usable(*slot->record)) continue;
    devices.push_back({.id = slot->record->id,
                       .name = name,
                       .node = slot->record->node,
                       .device_class = slot->record->device_class,
                       .space = &slot->space});
  }
  return devices;
}

void Change::NoteTaken(const Uuid& device, UnitRun units) {
  state_.FindSlot(device)->taken_units += units.count;
  taken_.pieces_.emplace_back(device, units);
}

absl::StatusOr<Placement> Change::TakeExtents(const PlacementRequest& request,
                                              absl::FunctionRef<bool(const Uuid&)> usable) {
  absl::MutexLock lock(&state_.mu_);
  absl::StatusOr<Placement> placement =
      Place(request, Offer([&](const DeviceRecord& device) { return usable(device.id); }));
  if (!placement.ok()) return placement;
  for (const MapRun& run : placement->runs) {
    NoteTaken(placement->devices[run.device.value()], {run.unit, run.count});
  }
  return placement;
}

absl::StatusOr<std::vector<Grant>> Change::TakeGrants(
    const GrantRequest& request, std::vector<Uuid>& devices,
    absl::FunctionRef<bool(const DeviceRecord&)> usable) {
  absl::MutexLock lock(&state_.mu_);
  const auto place = [&](const Uuid& id) {
    return static_cast<size_t>(std::find(devices.begin(), devices.end(), id) - devices.begin());
  };
  // The map has kMaxDevices numbers for a volume's devices.
  uint64_t room = kMaxDevices - devices.size();
  const absl::StatusOr<std::vector<PlacedGrant>> placed =
      ChooseGrants(request, Offer([&](const DeviceRecord& device) {
                     if (!usable(device)) return false;
                     if (place(device.id) < devices.size()) return true;
                     if (room == 0) return false;
                     --room;
                     return true;
                   }));
  if (!placed.ok()) return placed.status();
  std::vector<Grant> grants;
  for (const PlacedGrant& one : *placed) {
    Grant grant{.count = one.count, .legs = {}};
    for (const auto& [id, first] : one.legs) {
      const size_t index = place(id);
      if (index == devices.size()) devices.push_back(id);
      grant.legs.push_back({DeviceIndex(static_cast<DeviceIndex::rep>(index)), first});
      NoteTaken(id, {first, one.count});
    }
    grants.push_back(std::move(grant));
  }
  return grants;
}

absl::Status Change::Adopt(TakenSpace taken) {
  for (const auto& [device, units] : taken.pieces_) {
    if (state_.FindDevice(device) == nullptr) {
      return absl::UnavailableError("a device left the pool while space on it was being zeroed");
    }
  }
  taken_.pieces_.insert(taken_.pieces_.end(), taken.pieces_.begin(), taken.pieces_.end());
  taken.pieces_.clear();
  return absl::OkStatus();
}

void Change::AddDevice(DeviceRecord record) {
  record.revision = revision_;
  batch_.PutDevice(record);
  added_devices_.push_back(std::make_shared<const DeviceRecord>(std::move(record)));
}

void Change::DeleteDevice(const Uuid& id) {
  batch_.DeleteDevice(id);
  deleted_devices_.push_back(id);
}

void Change::AddVolume(VolumeRecord record, const Geometry& geometry, std::vector<MapRun> runs) {
  batch_.ReplaceRuns(record.id, runs);
  Put({.record = std::move(record),
       .geometry = geometry,
       .runs = std::make_shared<const std::vector<MapRun>>(std::move(runs))});
}

void Change::AddThinVolume(VolumeRecord record, const Geometry& geometry,
                           const std::vector<GrantRecord>& grants) {
  VolumeEntry entry{.geometry = geometry, .thin = std::make_shared<ThinMap>(record.legs)};
  ThinEdit edit(*entry.thin, ReserveUnits(record));
  for (const GrantRecord& grant : grants) {
    // They come out of the free space, which has no unit twice.
    [[maybe_unused]] const absl::Status status = edit.AddGrant(grant);
    assert(status.ok());
  }
  PutThin(entry, std::move(record), edit.Finish());
}

void Change::PutVolume(const VolumeEntry& before, VolumeRecord record) {
  Put({std::move(record), before.geometry, before.runs, before.thin});
}

void Change::PutVolume(const VolumeEntry& before, VolumeRecord record, std::vector<MapRun> runs) {
  AddVolume(std::move(record), before.geometry, std::move(runs));
}

void Change::PutVolume(const VolumeEntry& /*before*/, VolumeRecord record, const Geometry& geometry,
                       std::vector<MapRun> runs) {
  AddVolume(std::move(record), geometry, std::move(runs));
}

void Change::PutThin(const VolumeEntry& before, VolumeRecord record, ThinDelta delta) {
  PutThin(before, std::move(record), before.geometry, std::move(delta));
}

void Change::PutThin(const VolumeEntry& before, VolumeRecord record, const Geometry& geometry,
                     ThinDelta delta) {
  delta.AddTo(record.id, batch_);
  for (const DeviceUnits& freed : delta.freed()) {
    FreeUnits(record.devices[freed.device.value()], freed.units);
  }
  Put({.record = std::move(record), .geometry = geometry, .thin = before.thin});
  put_maps_.emplace_back(put_volumes_.back(), std::move(delta));
}

void Change::Put(VolumeEntry entry) {
  entry.record.revision = revision_;
  batch_.PutVolume(entry.record);
  put_volumes_.push_back(std::make_shared<const VolumeEntry>(std::move(entry)));
}

void Change::FreeUnits(const Uuid& device, UnitRun units) { freed_.emplace_back(device, units); }

void Change::DeleteVolume(const VolumeEntry& volume) {
  batch_.DeleteVolume(volume.record.id);
  deleted_volumes_.push_back(volume.record.id);
}

absl::Status Change::Commit() {
  batch_.PutSite({.cluster = state_.cluster_,
                  .site = state_.id_,
                  .name = state_.name_,
                  .revision = revision_});
  absl::Status status = state_.store_.Commit(batch_);
  absl::MutexLock lock(&state_.mu_);
  if (!status.ok()) {
    state_.health_ = absl::UnavailableError(
        absl::StrCat("the site takes no changes since its store failed (", status.message(),
                     "); see to the disk of the data directory, then restart braidd"));
    return state_.health_;
  }
  state_.revision_ = revision_;
  for (const auto& [device, units] : taken_.pieces_) {
    state_.FindSlot(device)->taken_units -= units.count;
  }
  taken_.pieces_.clear();
  for (const DevicePtr& record : added_devices_) {
    auto slot = std::make_unique<SiteState::DeviceSlot>(
        SiteState::DeviceSlot{record, FreeSpace(record->data_offset, record->data_bytes)});
    state_.devices_by_name_[record->name] = slot.get();
    state_.devices_[record->id] = std::move(slot);
  }
  for (VolumePtr& volume : put_volumes_) state_.ShowVolume(std::move(volume));
  for (const auto& [volume, delta] : put_maps_) state_.ShowMap(*volume, delta);
  for (const auto& [device, units] : freed_) state_.Free(device, units);
  for (const Uuid& id : deleted_volumes_) state_.HideVolume(id);
  for (const Uuid& id : deleted_devices_) {
    auto found = state_.devices_.find(id);
    state_.devices_by_name_.erase(found->second->record->name);
    state_.devices_.erase(found);
  }
  return absl::OkStatus();
}

}  // namespace braid
