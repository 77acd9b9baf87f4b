#include "controlplane/core/volumes.h"

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

}  // namespace

VolumeStatus Volumes::Describe(const VolumePtr& volume) const {
  const VolumeRecord& record = volume->record;
  VolumeStatus status{.volume = volume, .stale_bytes = StaleBytes(*volume->runs)};
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
  for (const MapRun& run : *volume.runs) {
    shares[run.device.value()].bytes += run.count * kSmallExtentBytes;
  }
  return shares;
}

absl::StatusOr<CreatedVolume> Volumes::Create(const VolumeSpec& spec, bool dry_run) {
  absl::StatusOr<VolumePlan> plan = PlanVolume(spec);
  if (!plan.ok()) return plan.status();
  // Devices that are not there get no extents. Looked at before any lock is taken, for a
  // device may take its time; one that goes missing later is found by the preparation.
  absl::flat_hash_set<Uuid> online;
  std::vector<std::string> missing;
  for (const DeviceUse& use : state_.Devices()) {
    if (DeviceProblem(state_, *use.record).empty()) {
      online.insert(use.record->id);
    } else {
      missing.push_back(use.record->name);
    }
  }

  Change change(state_);
  if (absl::Status s = change.Ready(); !s.ok()) return s;
  if (state_.FindVolume(absl::StrCat(state_.name(), "/", spec.name)).ok()) {
    return absl::AlreadyExistsError(absl::StrCat("a volume '", spec.name, "' exists in site '",
                                                 state_.name(), "'; choose another name"));
  }
  absl::StatusOr<Placement> placement;
  Geometry shape;
  for (const Geometry& candidate : plan->shapes) {
    shape = candidate;
    placement = change.TakeExtents({candidate, spec.device_class},
                                   [&](const Uuid& id) { return online.contains(id); });
    if (placement.ok()) break;
  }
  if (!placement.ok()) {
    if (missing.empty()) return placement.status();
    return absl::Status(placement.status().code(),
                        absl::StrCat(placement.status().message(), " (not counting ",
                                     absl::StrJoin(missing, ", "), ", missing)"));
  }
  VolumeRecord record{.id = state_.host().NewUuid(),
                      .name = spec.name,
                      .size_bytes = spec.size_bytes,
                      .layout = plan->layout,
                      .columns = shape.columns(),
                      .stripe_bytes = shape.stripe_bytes(),
                      .legs = shape.legs(),
                      .device_class = spec.device_class,
                      .devices = std::move(placement->devices),
                      .state = VolumeState::kPreparing,
                      .created_unix_seconds = state_.host().NowUnixSeconds()};
  if (absl::Status s = CheckVolume(record); !s.ok()) return s;
  if (dry_run) {
    // What was taken goes back with the change.
    const auto imagined = std::make_shared<const VolumeEntry>(
        VolumeEntry{std::move(record), shape,
                    std::make_shared<const std::vector<MapRun>>(std::move(placement->runs))});
    return CreatedVolume{Describe(imagined), SharesOf(*imagined)};
  }
  const Uuid id = record.id;
  change.AddVolume(std::move(record), shape, std::move(placement->runs));
  if (absl::Status s = change.Commit(); !s.ok()) return s;
  absl::StatusOr<VolumePtr> created = state_.FindVolume(id);
  if (!created.ok()) return created.status();
  // Within the change: a Delete that finds the volume also finds its preparation.
  preparer_.Start(*created);
  return CreatedVolume{Describe(*created), SharesOf(**created)};
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
    if (status.ok()) status = attachments_.CheckNotHeld((*volume)->record);
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
