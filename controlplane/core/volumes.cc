#include "controlplane/core/volumes.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/map_sweep.h"

namespace braid {
namespace {

// A step of zeroing ends within seconds unless the device hangs; see kStepBytes.
constexpr absl::Duration kStopPatience = absl::Seconds(30);

void SetShape(const Geometry& shape, VolumeRecord& record) {
  record.columns = shape.columns();
  record.stripe_bytes = shape.stripe_bytes();
  record.legs = shape.legs();
}

}  // namespace

VolumeStatus Volumes::Describe(const VolumePtr& volume) const {
  const VolumeRecord& record = volume->record;
  VolumeStatus status{.volume = volume};
  if (volume->thin != nullptr) {
    const ThinCounts counts = volume->thin->counts();
    status.allocated_bytes = counts.mapped_units * record.legs * kSmallExtentBytes;
    status.stale_bytes = counts.stale_units * kSmallExtentBytes;
    // The last unit may reach past the volume's end.
    status.mapped_bytes = std::min(counts.mapped_units * kSmallExtentBytes, record.size_bytes);
    status.reserved_bytes = counts.granted_units * record.legs * kSmallExtentBytes;
  } else {
    status.allocated_bytes = volume->geometry.allocated_bytes();
    status.stale_bytes = StaleBytes(*volume->runs);
    status.mapped_bytes = record.size_bytes;
  }
  if (!record.fault.empty()) {
    status.health = VolumeHealth::kFaulty;
  } else if (status.stale_bytes > 0) {
    status.health = VolumeHealth::kDegraded;
  }
  if (record.state == VolumeState::kPreparing) {
    status.prepared_bytes = preparer_.PreparedBytes(record.id);
  }
  status.alive = attachments_.HolderAlive(record).value_or(true);
  for (const Uuid& id : record.devices) {
    DevicePtr device = state_.FindDevice(id);
    status.device_names.push_back(device == nullptr ? id.ToString() : device->name);
  }
  return status;
}

std::vector<DeviceShare> Volumes::SharesOf(const VolumeEntry& volume) const {
  std::vector<DeviceShare> shares;
  for (const Uuid& id : volume.record.devices) shares.push_back({state_.FindDevice(id), 0});
  const std::shared_ptr<const std::vector<MapRun>> runs = RunsOf(volume);
  for (const MapRun& run : *runs) {
    shares[run.device.value()].bytes += run.count * kSmallExtentBytes;
  }
  if (volume.thin == nullptr) return shares;
  for (const GrantRecord& record : volume.thin->Grants()) {
    for (const UnitPlace& leg : record.grant.legs) {
      shares[leg.device.value()].bytes += record.grant.count * kSmallExtentBytes;
    }
  }
  return shares;
}

absl::Status Volumes::Online::Explain(const absl::Status& status) const {
  if (missing.empty()) return status;
  return absl::Status(status.code(), absl::StrCat(status.message(), " (not counting ",
                                                  absl::StrJoin(missing, ", "), ", missing)"));
}

Volumes::Online Volumes::LookForDevices() const {
  Online online;
  for (const DeviceUse& use : state_.Devices()) {
    if (DeviceProblem(state_, *use.record).empty()) {
      online.devices.insert(use.record->id);
    } else {
      online.missing.push_back(use.record->name);
    }
  }
  return online;
}

absl::StatusOr<VolumePtr> Volumes::PlaceThick(Change& change, const VolumePlan& plan,
                                              VolumeRecord record, const Online& online) const {
  absl::StatusOr<Placement> placement;
  Geometry shape;
  for (const Geometry& candidate : plan.shapes) {
    shape = candidate;
    placement = change.TakeExtents({candidate, record.device_class},
                                   [&](const Uuid& id) { return online.Has(id); });
    if (placement.ok()) break;
  }
  if (!placement.ok()) return online.Explain(placement.status());
  SetShape(shape, record);
  record.devices = std::move(placement->devices);
  record.state = VolumeState::kPreparing;
  if (absl::Status s = CheckVolume(record); !s.ok()) return s;
  change.AddVolume(record, shape, placement->runs);
  return std::make_shared<const VolumeEntry>(
      VolumeEntry{.record = std::move(record),
                  .geometry = shape,
                  .runs = std::make_shared<const std::vector<MapRun>>(std::move(placement->runs))});
}

absl::StatusOr<VolumePtr> Volumes::PlaceThin(Change& change, const VolumePlan& plan,
                                             VolumeRecord record, const Online& online) const {
  // A volume that no device could ever serve is refused now, not at its first write. However
  // full they are: space may be added.
  std::vector<FreeSpace> empty;
  std::vector<PlacementDevice> devices;
  const std::vector<DeviceUse> uses = state_.Devices();
  empty.reserve(uses.size());
  for (const DeviceUse& use : uses) {
    const DeviceRecord& device = *use.record;
    if (!online.Has(device.id)) continue;
    empty.emplace_back(device.data_offset, device.data_bytes);
    devices.push_back({device.id, device.name, device.node, device.device_class, &empty.back()});
  }
  absl::Status possible;
  Geometry shape;
  for (const Geometry& candidate : plan.shapes) {
    shape = candidate;
    possible = CheckDeviceCount({candidate, record.device_class}, devices);
    if (possible.ok()) break;
  }
  if (!possible.ok()) return online.Explain(possible);
  SetShape(shape, record);
  record.state = VolumeState::kReady;
  std::vector<GrantRecord> set_aside;
  if (record.reserve_bytes > 0) {
    absl::StatusOr<std::vector<Grant>> grants = change.TakeGrants(
        {.legs = record.legs,
         .columns = record.columns,
         .units = ReserveUnits(record),
         .device_class = record.device_class,
         .all = true},
        record.devices, [&](const DeviceRecord& device) { return online.Has(device.id); });
    if (!grants.ok()) return online.Explain(grants.status());
    for (Grant& grant : *grants) set_aside.push_back({std::move(grant), /*handed_out=*/false});
  }
  if (absl::Status s = CheckVolume(record); !s.ok()) return s;
  change.AddThinVolume(record, shape, set_aside);
  return std::make_shared<const VolumeEntry>(VolumeEntry{
      .record = record,
      .geometry = shape,
      .thin = std::make_shared<ThinMap>(record.legs, std::vector<MapRun>(), set_aside)});
}

absl::StatusOr<CreatedVolume> Volumes::Create(const VolumeSpec& spec, bool dry_run) {
  absl::StatusOr<VolumePlan> plan = PlanVolume(spec);
  if (!plan.ok()) return plan.status();
  const Online online = LookForDevices();
  VolumeRecord record{.id = state_.host().NewUuid(),
                      .name = spec.name,
                      .size_bytes = spec.size_bytes,
                      .layout = plan->layout,
                      .device_class = spec.device_class,
                      .thin = spec.thin,
                      .reserve_bytes = spec.reserve_bytes,
                      .on_full = spec.on_full.value_or(OnFull::kFail),
                      .full_timeout_seconds = spec.full_timeout_seconds,
                      .created_unix_seconds = state_.host().NowUnixSeconds()};
  const Uuid id = record.id;

  Change change(state_);
  if (absl::Status s = change.Ready(); !s.ok()) return s;
  if (state_.FindVolume(absl::StrCat(state_.name(), "/", spec.name)).ok()) {
    return absl::AlreadyExistsError(absl::StrCat("a volume '", spec.name, "' exists in site '",
                                                 state_.name(), "'; choose another name"));
  }
  absl::StatusOr<VolumePtr> volume = spec.thin
                                         ? PlaceThin(change, *plan, std::move(record), online)
                                         : PlaceThick(change, *plan, std::move(record), online);
  if (!volume.ok()) return volume.status();
  // What was taken goes back with the change.
  if (dry_run) return CreatedVolume{Describe(*volume), SharesOf(**volume)};
  if (absl::Status s = change.Commit(); !s.ok()) return s;
  volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  // Within the change: a Delete that finds the volume also finds its preparation.
  if (!spec.thin) preparer_.Start(*volume);
  return CreatedVolume{Describe(*volume), SharesOf(**volume)};
}

absl::StatusOr<VolumeStatus> Volumes::AwaitReady(const Uuid& id,
                                                 absl::FunctionRef<bool()> cancelled) const {
  preparer_.Wait(id, cancelled);
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  const VolumeRecord& record = (*volume)->record;
  if (record.state == VolumeState::kPreparing && !record.fault.empty()) {
    return absl::UnavailableError(absl::StrCat("volume '", record.name, "' ", record.fault,
                                               "; delete it, or restart braidd to try again"));
  }
  // Prepared perhaps, but it could not be committed.
  if (record.state == VolumeState::kPreparing && !state_.health().ok()) return state_.health();
  return Describe(*volume);
}

absl::StatusOr<VolumeStatus> Volumes::Get(absl::string_view name) const {
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(name);
  if (!volume.ok()) return volume.status();
  return Describe(*volume);
}

std::vector<VolumeStatus> Volumes::List(absl::string_view after, size_t limit) const {
  std::vector<VolumeStatus> all;
  for (const VolumePtr& volume : state_.VolumesAfter(after, limit)) {
    all.push_back(Describe(volume));
  }
  return all;
}

absl::StatusOr<VolumeStatus> Volumes::Delete(absl::string_view name, bool dry_run) {
  absl::StatusOr<VolumePtr> named = state_.FindVolume(name);
  if (!named.ok()) return named.status();
  const Uuid id = (*named)->record.id;
  // Its extents must not be free while a preparation may still zero them. Stopped before
  // the change begins, since the preparation ends with a change of its own.
  if (!dry_run) {
    if (absl::Status s = preparer_.Stop(id, kStopPatience); !s.ok()) return s;
  }
  VolumeStatus deleted;
  absl::Status status;
  {
    Change change(state_);
    absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
    if (!volume.ok()) return volume.status();
    deleted = Describe(*volume);
    status = change.Ready();
    if (status.ok()) status = attachments_.CheckNotHeld(**volume);
    if (dry_run || !status.ok()) {
      if (!dry_run && (*volume)->record.state == VolumeState::kPreparing) preparer_.Start(*volume);
      if (!status.ok()) return status;
      return deleted;
    }
    change.DeleteVolume(**volume);
    if (status = change.Commit(); !status.ok()) return status;
  }
  attachments_.Forget(id);
  return deleted;
}

}  // namespace braid
