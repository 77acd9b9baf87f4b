#include "controlplane/core/attachments.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/map_sweep.h"

namespace braid {
namespace {

absl::Status NotReady(const VolumeRecord& volume) {
  return absl::FailedPreconditionError(absl::StrCat(
      "volume '", volume.name, "' is not ready: ",
      volume.fault.empty() ? "its extents are being zeroed; try again when braid volume show "
                             "says READY"
                           : volume.fault));
}

// One line that a terminal can show.
std::string OneLine(absl::string_view text) {
  std::string line(text.substr(0, kMaxFaultBytes));
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return absl::ascii_iscntrl(c); }, ' ');
  return line;
}

}  // namespace

std::string Attachments::PathOf(const Uuid& volume) const {
  return absl::StrCat(lock_dir_, "/", volume.ToString(), ".lock");
}

absl::StatusOr<std::string> Attachments::Prepare(const VolumeRecord& volume) const {
  if (volume.state != VolumeState::kReady) return NotReady(volume);
  std::string path = PathOf(volume.id);
  if (absl::Status status = state_.host().MakeLock(path); !status.ok()) return status;
  return path;
}

absl::StatusOr<bool> Attachments::HolderAlive(const VolumeRecord& volume) const {
  const AttachmentRecord& last = volume.attachment;
  if (!last.held) return false;
  if (last.boot_id == state_.host().BootId()) return state_.host().LockHeld(PathOf(volume.id));
  // This machine restarted since, and no process outlives that.
  if (last.node == state_.node()) return false;
  return absl::FailedPreconditionError(
      absl::StrCat("node '", last.node, "' holds volume '", volume.name,
                   "', and whether it still runs cannot be seen from here; detach it there"));
}

absl::Status Attachments::CheckNotHeld(const VolumeEntry& volume) const {
  const VolumeRecord& record = volume.record;
  absl::StatusOr<bool> alive = HolderAlive(record);
  if (!alive.ok()) return alive.status();
  if (*alive) {
    return absl::FailedPreconditionError(absl::StrCat("volume '", record.name,
                                                      "' is attached by process ",
                                                      record.attachment.pid, "; detach it first"));
  }
  if (volume.thin != nullptr && volume.thin->zeroing()) {
    return absl::UnavailableError(
        absl::StrCat("space of volume '", record.name, "' is being zeroed; try again in a moment"));
  }
  return CheckNotKept(record);
}

absl::Status Attachments::CheckNotKept(const VolumeRecord& volume) const {
  absl::MutexLock lock(&mu_);
  if (!kept_.contains(volume.id)) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("volume '", volume.name, "' is being resized; try again when that is done"));
}

absl::StatusOr<std::unique_ptr<Attachments::Detached>> Attachments::KeepDetached(
    const VolumeEntry& volume) {
  if (absl::Status status = CheckNotHeld(volume); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  kept_.insert(volume.record.id);
  return std::unique_ptr<Detached>(new Detached(this, volume.record.id));
}

Attachments::Detached::~Detached() {
  absl::MutexLock lock(&attachments_.mu_);
  attachments_.kept_.erase(volume_);
}

void Attachments::Forget(const Uuid& volume) { state_.host().RemoveLock(PathOf(volume)); }

absl::StatusOr<Opened> Attachments::Open(const Uuid& id, const HolderSpec& holder) {
  absl::StatusOr<VolumePtr> before = state_.FindVolume(id);
  if (!before.ok()) return before.status();
  if (holder.boot_id != state_.host().BootId()) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", (*before)->record.name, "' can only be attached on node '",
                     state_.node(), "', where its control plane runs"));
  }
  // Before any lock is taken, for a device may take its time.
  std::vector<bool> there;
  for (const Uuid& device : (*before)->record.devices) {
    DevicePtr record = state_.FindDevice(device);
    there.push_back(record != nullptr && DeviceProblem(state_, *record).empty());
  }
  const auto present = [&](DeviceIndex device) { return there[device.value()]; };

  Change change(state_);
  absl::Status status = change.Ready();
  if (!status.ok()) return status;
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  VolumeRecord record = (*volume)->record;
  if (record.state != VolumeState::kReady) return NotReady(record);
  if (status = CheckNotKept(record); !status.ok()) return status;
  absl::StatusOr<bool> locked = state_.host().LockHeld(PathOf(id));
  if (!locked.ok()) return locked.status();
  if (!*locked) {
    return absl::FailedPreconditionError(absl::StrCat("nobody holds the lock ", PathOf(id),
                                                      "; lock it before opening the attachment"));
  }
  if (record.devices.size() != there.size()) {
    return absl::UnavailableError(
        absl::StrCat("volume '", record.name, "' was given more devices meanwhile; try again"));
  }
  const AttachmentRecord last = record.attachment;
  if (last.held && last.boot_id != holder.boot_id && last.node != state_.node()) {
    return HolderAlive(record).status();
  }

  const bool same_boot = last.boot_id == holder.boot_id;
  const bool takes_over = !holder.read_only && same_boot && holder.settles != Epoch() &&
                          (holder.settles == last.epoch || holder.settles == last.journal);
  const bool unsettled = last.held && !last.read_only && !takes_over;
  if (record.thin && unsettled && same_boot && holder.read_only) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", record.name,
                     "' was not detached cleanly; attach it for writing once, and detach it"));
  }
  Opened opened{.runs = RunsOf(**volume), .takes_over = takes_over};
  bool restated = false;
  if (unsettled && record.legs > 1) {
    std::vector<MapRun> kept = KeepOneLeg(*opened.runs, present);
    restated = kept != *opened.runs;
    if (restated) opened.runs = std::make_shared<const std::vector<MapRun>>(std::move(kept));
  }
  status = CheckReadable((*volume)->geometry, record.thin ? Coverage::kHoles : Coverage::kWhole,
                         *opened.runs, present, [&](DeviceIndex index) {
                           DevicePtr device = state_.FindDevice(record.devices[index.value()]);
                           return device == nullptr ? record.devices[index.value()].ToString()
                                                    : device->name;
                         });
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("volume '", record.name, "': ", status.message()));
  }
  record.attachment = {.epoch = last.epoch + 1,
                       .held = true,
                       .read_only = holder.read_only,
                       .journal = takes_over ? holder.settles : Epoch(),
                       .node = state_.node(),
                       .boot_id = holder.boot_id,
                       .pid = holder.pid,
                       .since_unix_seconds = state_.host().NowUnixSeconds()};
  if (record.thin && unsettled) {
    if (same_boot && record.fault.empty() && !(*volume)->thin->HandedOut().empty()) {
      record.fault =
          "its server ended without its journal being found by the next; writes that were "
          "acknowledged and not flushed may be lost";
      state_.host().Warn(absl::StrCat("volume '", record.name, "': ", record.fault));
    }
    ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
    edit.ReturnAll();
    if (restated) edit.Restate(*opened.runs);
    change.PutThin(**volume, std::move(record), edit.Finish());
  } else if (restated) {
    change.PutVolume(**volume, std::move(record), *opened.runs);
  } else {
    change.PutVolume(**volume, std::move(record));
  }
  if (status = change.Commit(); !status.ok()) return status;
  volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  opened.volume = *std::move(volume);
  if (opened.volume->thin != nullptr) opened.grants = opened.volume->thin->HandedOut();
  return opened;
}

absl::Status Attachments::FreeAfterRestart() {
  for (const VolumePtr& seen : state_.VolumesAfter("", SIZE_MAX)) {
    if (seen->thin == nullptr) continue;
    Change change(state_);
    absl::StatusOr<VolumePtr> volume = state_.FindVolume(seen->record.id);
    if (!volume.ok()) continue;
    VolumeRecord record = (*volume)->record;
    const AttachmentRecord& last = record.attachment;
    if (!last.held || last.node != state_.node() || last.boot_id == state_.host().BootId()) {
      continue;
    }
    ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
    edit.ReturnAll();
    ThinDelta delta = edit.Finish();
    if (delta.empty()) continue;
    if (absl::Status status = change.Ready(); !status.ok()) return status;
    change.PutThin(**volume, std::move(record), std::move(delta));
    if (absl::Status status = change.Commit(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<VolumePtr> Attachments::Held(const Uuid& id, Epoch epoch) const {
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  const AttachmentRecord& now = (*volume)->record.attachment;
  if (now.epoch != epoch || !now.held) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch.value(), " of volume '", (*volume)->record.name,
                     "' is over; the last one granted is ", now.epoch.value()));
  }
  return volume;
}

absl::Status Attachments::MarkStale(const Uuid& id, Epoch epoch, DeviceIndex device) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = Held(id, epoch);
  if (!volume.ok()) return volume.status();
  if (device.value() >= (*volume)->record.devices.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("volume '", (*volume)->record.name, "' has no device ", device.value()));
  }
  // Before the answer that needs no commit too: a commit whose outcome is not known may
  // have marked it already, and only the next start will tell.
  if (absl::Status status = change.Ready(); !status.ok()) return status;
  const std::shared_ptr<const std::vector<MapRun>> before = RunsOf(**volume);
  std::vector<MapRun> runs = MarkDeviceStale(*before, device);
  if (runs == *before) return absl::OkStatus();
  VolumeRecord record = (*volume)->record;
  if (record.thin) {
    ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
    edit.Restate(runs);
    change.PutThin(**volume, std::move(record), edit.Finish());
  } else {
    change.PutVolume(**volume, std::move(record), std::move(runs));
  }
  return change.Commit();
}

absl::Status Attachments::ReportFault(const Uuid& id, Epoch epoch, absl::string_view what) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = Held(id, epoch);
  if (!volume.ok()) return volume.status();
  if (absl::Status status = change.Ready(); !status.ok()) return status;
  VolumeRecord record = (*volume)->record;
  if (!record.fault.empty()) return absl::OkStatus();
  record.fault = OneLine(what.empty() ? "data was lost; its holder did not say what" : what);
  change.PutVolume(**volume, std::move(record));
  return change.Commit();
}

absl::Status Attachments::Close(const Uuid& id, Epoch epoch) {
  Change change(state_);
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  if (absl::Status status = change.Ready(); !status.ok()) return status;
  VolumeRecord record = (*volume)->record;
  if (record.attachment.epoch != epoch || epoch == Epoch()) return Held(id, epoch).status();
  // A second close of the same epoch: the answer to the first one was lost.
  if (!record.attachment.held) return absl::OkStatus();
  record.attachment.held = false;
  if (record.thin) {
    ThinEdit edit(*(*volume)->thin, ReserveUnits(record));
    edit.ReturnAll();
    change.PutThin(**volume, std::move(record), edit.Finish());
  } else {
    change.PutVolume(**volume, std::move(record));
  }
  return change.Commit();
}

}  // namespace braid
