#include <utility>

#include "absl/strings/str_cat.h"
#include "controlplane/core/site_state.h"

namespace braid {

Change::Change(SiteState& state)
    : state_(state), lock_(&state.change_mu_), revision_(state.revision() + 1) {}

Change::~Change() {
  if (committed_) return;
  absl::MutexLock lock(&state_.mu_);
  for (const Placement& placement : taken_) state_.Free(placement.devices, placement.runs);
}

absl::Status Change::Ready() const {
  absl::Status health = state_.health();
  if (health.ok()) return health;
  return absl::UnavailableError(health.message());
}

absl::StatusOr<Placement> Change::TakeExtents(const PlacementRequest& request,
                                              absl::FunctionRef<bool(const Uuid&)> usable) {
  absl::MutexLock lock(&state_.mu_);
  std::vector<PlacementDevice> devices;
  for (const auto& [name, slot] : state_.devices_by_name_) {
    if (!usable(slot->record->id)) continue;
    devices.push_back({.id = slot->record->id,
                       .name = name,
                       .node = slot->record->node,
                       .device_class = slot->record->device_class,
                       .space = &slot->space});
  }
  absl::StatusOr<Placement> placement = Place(request, devices);
  if (placement.ok()) taken_.push_back(*placement);
  return placement;
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
  record.revision = revision_;
  batch_.PutVolume(record);
  batch_.ReplaceRuns(record.id, runs);
  put_volumes_.push_back(std::make_shared<const VolumeEntry>(VolumeEntry{
      std::move(record), geometry, std::make_shared<const std::vector<MapRun>>(std::move(runs))}));
}

void Change::PutVolume(const VolumeEntry& before, VolumeRecord record) {
  record.revision = revision_;
  batch_.PutVolume(record);
  put_volumes_.push_back(std::make_shared<const VolumeEntry>(
      VolumeEntry{std::move(record), before.geometry, before.runs}));
}

void Change::PutVolume(const VolumeEntry& before, VolumeRecord record, std::vector<MapRun> runs) {
  AddVolume(std::move(record), before.geometry, std::move(runs));
}

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
  committed_ = true;
  state_.revision_ = revision_;
  for (const DevicePtr& record : added_devices_) {
    auto slot = std::make_unique<SiteState::DeviceSlot>(
        SiteState::DeviceSlot{record, FreeSpace(record->data_offset, record->data_bytes)});
    state_.devices_by_name_[record->name] = slot.get();
    state_.devices_[record->id] = std::move(slot);
  }
  for (VolumePtr& volume : put_volumes_) state_.ShowVolume(std::move(volume));
  for (const Uuid& id : deleted_volumes_) state_.HideVolume(id);
  for (const Uuid& id : deleted_devices_) {
    auto found = state_.devices_.find(id);
    state_.devices_by_name_.erase(found->second->record->name);
    state_.devices_.erase(found);
  }
  return absl::OkStatus();
}

}  // namespace braid
