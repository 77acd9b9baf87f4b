#include "controlplane/core/spaces.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controlplane/core/zeroer.h"

namespace braid {
namespace {

// Of the free space one call gets at most one part in so many, while that is a row or more:
// others may be about to ask, and who needs more asks again.
constexpr uint64_t kShare = 4;

uint64_t UnitsOf(const std::vector<Grant>& grants) {
  uint64_t units = 0;
  for (const Grant& grant : grants) units += grant.count;
  return units;
}

}  // namespace

// Space on its way to a volume.
struct Spaces::Taking {
  VolumePtr volume;  // as it was when this began
  std::unique_ptr<ThinMap::Zeroing> zeroing;
  std::vector<Uuid> devices;  // the volume's, and the new ones
  std::vector<Grant> set_aside;
  std::vector<Grant> fresh;
  TakenSpace taken;  // of fresh
};

absl::StatusOr<VolumePtr> Spaces::Held(const Uuid& id, Epoch epoch) const {
  absl::StatusOr<VolumePtr> volume = attachments_.Held(id, epoch);
  if (!volume.ok()) return volume.status();
  const VolumeRecord& record = (*volume)->record;
  if (!record.thin) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", record.name, "' is not thin: it has all its space"));
  }
  if (record.attachment.read_only) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", record.name, "' is attached for reading only"));
  }
  return volume;
}

absl::StatusOr<uint64_t> Spaces::CommitMap(const Uuid& id, Epoch epoch, uint64_t first_sequence,
                                           absl::Span<const MapChange> changes) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = Held(id, epoch);
  if (!volume.ok()) return volume.status();
  // Before the answer that needs no commit too, as in Attachments::MarkStale.
  if (absl::Status status = change.Ready(); !status.ok()) return status;
  VolumeRecord record = (*volume)->record;
  const uint64_t applied = record.map_sequence;
  if (first_sequence == 0 || changes.size() > UINT64_MAX - first_sequence) {
    return absl::InvalidArgumentError(
        absl::StrCat("map changes cannot have numbers from ", first_sequence, " on"));
  }
  if (first_sequence - 1 > applied) {
    return absl::InvalidArgumentError(absl::StrCat(
        "map change ", first_sequence, " cannot follow on ", applied, ", the last one applied"));
  }
  const uint64_t known = applied - (first_sequence - 1);
  if (known >= changes.size()) return applied;
  changes.remove_prefix(static_cast<size_t>(known));

  ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
  for (const MapChange& one : changes) {
    absl::Status status = CheckMapChange((*volume)->geometry, one, record.devices.size());
    if (status.ok()) status = edit.Apply(one);
    if (!status.ok()) return status;
  }
  record.map_sequence = applied + changes.size();
  const uint64_t now = record.map_sequence;
  change.PutThin(**volume, std::move(record), edit.Finish());
  if (absl::Status status = change.Commit(); !status.ok()) return status;
  return now;
}

absl::StatusOr<Spaces::Taken> Spaces::Take(const Uuid& id, Epoch epoch, uint64_t units,
                                           uint32_t known_devices) {
  if (units == 0) return absl::InvalidArgumentError("no space was asked for");
  // Devices that could not be zeroed.
  absl::flat_hash_set<Uuid> failed;
  for (;;) {
    absl::StatusOr<Taking> taking = Choose(id, epoch, units, failed);
    if (absl::IsResourceExhausted(taking.status())) {
      absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
      if (volume.ok()) pools_.NoteFull((*volume)->record.device_class);
      pools_.Look();
    }
    if (!taking.ok()) return taking.status();
    const std::vector<Uuid>& devices = taking->devices;
    if (known_devices > taking->volume->record.devices.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the volume has fewer devices than ", known_devices));
    }
    std::vector<std::pair<Uuid, UnitRun>> to_zero;
    for (const std::vector<Grant>* grants : {&taking->set_aside, &taking->fresh}) {
      for (const Grant& grant : *grants) {
        for (const UnitPlace& leg : grant.legs) {
          to_zero.push_back({devices[leg.device.value()], {leg.unit, grant.count}});
        }
      }
    }
    std::vector<Uuid> unwritable;
    if (absl::Status zeroed = ZeroUnits(state_, to_zero, FileBlocks::kKeep, &unwritable);
        !zeroed.ok()) {
      if (unwritable.empty()) return zeroed;
      state_.host().Warn(
          absl::StrCat("no space is given out where it cannot be zeroed: ", zeroed.message()));
      failed.insert(unwritable.begin(), unwritable.end());
      continue;
    }

    absl::Status kept = Keep(id, epoch, *taking);
    if (!kept.ok()) return kept;
    Taken taken{.grants = std::move(taking->set_aside), .first_device = known_devices};
    taken.grants.insert(taken.grants.end(), taking->fresh.begin(), taking->fresh.end());
    for (size_t i = known_devices; i < devices.size(); ++i) {
      taken.devices.push_back(state_.FindDevice(devices[i]));
    }
    pools_.Look();
    return taken;
  }
}

absl::StatusOr<Spaces::Taking> Spaces::Choose(const Uuid& id, Epoch epoch, uint64_t units,
                                              const absl::flat_hash_set<Uuid>& failed) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = Held(id, epoch);
  if (!volume.ok()) return volume.status();
  if (absl::Status status = change.Ready(); !status.ok()) return status;
  const VolumeRecord& record = (*volume)->record;
  Taking taking{.volume = *volume,
                .zeroing = ThinMap::BeginZeroing((*volume)->thin),
                .devices = record.devices};
  if (taking.zeroing == nullptr) {
    return absl::UnavailableError(absl::StrCat("space for volume '", record.name,
                                               "' is being zeroed for another call; ask again"));
  }
  taking.set_aside = (*volume)->thin->SetAside(
      units, [&](DeviceIndex device) { return !failed.contains(record.devices[device.value()]); });
  units -= UnitsOf(taking.set_aside);
  if (units == 0) return taking;

  const auto usable = [&](const DeviceRecord& device) {
    return !failed.contains(device.id) &&
           (record.device_class.empty() || device.device_class == record.device_class);
  };
  uint64_t free_units = 0;
  for (const DeviceUse& use : state_.Devices()) {
    if (usable(*use.record)) free_units += use.free_bytes / kSmallExtentBytes;
  }
  const uint64_t share = free_units / record.legs / kShare / kSmallPerExtent * kSmallPerExtent;
  absl::StatusOr<std::vector<Grant>> fresh =
      change.TakeGrants({.legs = record.legs,
                         .columns = record.columns,
                         .units = std::min(units, std::max<uint64_t>(share, kSmallPerExtent)),
                         .device_class = record.device_class},
                        taking.devices, usable);
  if (fresh.ok()) {
    taking.fresh = *std::move(fresh);
    taking.taken = change.HoldTaken();
  } else if (taking.set_aside.empty()) {
    return absl::Status(fresh.status().code(), absl::StrCat("no space for volume '", record.name,
                                                            "': ", fresh.status().message()));
  }
  return taking;
}

absl::Status Spaces::Keep(const Uuid& id, Epoch epoch, Taking& taking) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = Held(id, epoch);
  if (!volume.ok()) return volume.status();
  absl::Status status = change.Ready();
  if (status.ok()) status = change.Adopt(std::move(taking.taken));
  if (!status.ok()) return status;
  VolumeRecord record = (*volume)->record;
  record.devices = taking.devices;
  ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
  for (const Grant& grant : taking.set_aside) {
    if (status.ok()) status = edit.HandOut(grant);
  }
  for (const Grant& grant : taking.fresh) {
    if (status.ok()) status = edit.AddGrant({grant, /*handed_out=*/true});
  }
  if (!status.ok()) return absl::InternalError(status.message());
  change.PutThin(**volume, std::move(record), edit.Finish());
  return change.Commit();
}

absl::Status Spaces::Return(const Uuid& id, Epoch epoch, const std::vector<Grant>& grants) {
  {
    Change change(state_);
    absl::StatusOr<VolumePtr> volume = Held(id, epoch);
    if (!volume.ok()) return volume.status();
    if (absl::Status status = change.Ready(); !status.ok()) return status;
    VolumeRecord record = (*volume)->record;
    ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
    for (const Grant& grant : grants) {
      absl::Status status = CheckGrant((*volume)->geometry, grant, record.devices.size());
      if (status.ok()) status = edit.Return(grant);
      if (!status.ok()) return status;
    }
    ThinDelta delta = edit.Finish();
    if (delta.empty()) return absl::OkStatus();
    change.PutThin(**volume, std::move(record), std::move(delta));
    if (absl::Status status = change.Commit(); !status.ok()) return status;
  }
  pools_.Look();
  return absl::OkStatus();
}

}  // namespace braid
