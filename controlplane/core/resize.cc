#include "controlplane/core/resize.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controlplane/core/volumes.h"
#include "lib/base/checked.h"
#include "lib/base/size_text.h"

namespace braid {

uint64_t ColumnBytes(const Geometry& g, uint32_t column) {
  if (g.columns() == 1) return g.size_bytes();
  const uint64_t stripes = g.size_bytes() / g.stripe_bytes();
  const uint64_t rounds = stripes / g.columns();
  const uint64_t whole = rounds * g.stripe_bytes();
  const uint64_t rest = stripes % g.columns();  // columns with one stripe unit more
  if (column < rest) return whole + g.stripe_bytes();
  return column == rest ? whole + g.size_bytes() % g.stripe_bytes() : whole;
}

std::vector<ColumnRange> LostRanges(const Geometry& before, const Geometry& after) {
  std::vector<ColumnRange> lost;
  for (uint32_t column = 0; column < before.columns(); ++column) {
    const ColumnRange range{column, ColumnBytes(after, column), ColumnBytes(before, column)};
    if (range.begin < range.end) lost.push_back(range);
  }
  return lost;
}

MapRun PartOf(const MapRun& run, const ColumnRange& range) {
  MapRun part = run;
  part.count = 0;
  if (run.column != range.column) return part;
  const uint64_t run_end = run.first.value() + run.count;
  const uint64_t first = std::max(run.first.value(), range.begin / kSmallExtentBytes);
  const uint64_t end = std::min(run_end, DivideUp(range.end, kSmallExtentBytes));
  if (first >= end) return part;
  part.first = ColumnUnit(first);
  part.unit = run.unit + (first - run.first.value());
  part.count = end - first;
  return part;
}

namespace {

// Units of a column that have a place after the change, the last perhaps in part.
uint64_t KeptUnits(const VolumeEntry& volume, const Geometry& after, uint32_t column) {
  if (volume.thin == nullptr) return after.units_per_column();
  return DivideUp(ColumnBytes(after, column), kSmallExtentBytes);
}

void CutThin(const VolumeEntry& volume, const Geometry& after, ThinEdit& edit) {
  const uint64_t units = volume.geometry.units_per_column();
  for (uint32_t column = 0; column < after.columns(); ++column) {
    const uint64_t kept = KeptUnits(volume, after, column);
    if (kept < units) edit.Unbind(column, ColumnUnit(kept), units - kept);
  }
  edit.FreeSurplus();
}

// As it would be, for a dry run: nothing is shared with the volume that is.
VolumePtr Imagine(const VolumeEntry& volume, VolumeRecord record, const Geometry& geometry,
                  std::vector<MapRun> runs) {
  VolumeEntry entry{.record = std::move(record), .geometry = geometry};
  if (volume.thin != nullptr) {
    entry.thin =
        std::make_shared<ThinMap>(entry.record.legs, volume.thin->Runs(), volume.thin->Grants());
    ThinEdit edit(*entry.thin, ReserveUnits(entry.record));
    CutThin(volume, geometry, edit);
    const ThinDelta delta = edit.Finish();
    entry.thin->Show(delta);
  } else {
    entry.runs = std::make_shared<const std::vector<MapRun>>(std::move(runs));
  }
  return std::make_shared<const VolumeEntry>(std::move(entry));
}

}  // namespace

absl::StatusOr<VolumePtr> Volumes::FindResizable(const Uuid& id) const {
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  const VolumeRecord& record = (*volume)->record;
  if (record.state != VolumeState::kReady) {
    return absl::FailedPreconditionError(absl::StrCat(
        "volume '", record.name, "' is not ready; try again when braid volume show says READY"));
  }
  if (absl::Status s = attachments_.CheckNotHeld(**volume); !s.ok()) return s;
  // What its journal notes is still to be settled, in the volume as it was then.
  if (record.attachment.held) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", record.name,
                     "' was not detached cleanly; attach it for writing and detach it first"));
  }
  return volume;
}

// The new extents of every column are a volume's of their own, placed and then put behind.
absl::Status Volumes::GrowThick(Change& change, const VolumeEntry& volume, const Online& online,
                                Resized& resized) const {
  const Geometry& before = volume.geometry;
  const uint64_t extents = resized.geometry.extents_per_column() - before.extents_per_column();
  absl::StatusOr<Geometry> added =
      Geometry::Make(extents * before.columns() * kExtentBytes, before.columns(),
                     before.stripe_bytes(), before.legs());
  if (!added.ok()) return added.status();
  absl::StatusOr<Placement> placement = change.TakeExtents(
      {*added, volume.record.device_class}, [&](const Uuid& id) { return online.Has(id); });
  if (!placement.ok()) return online.Explain(placement.status());
  std::vector<Uuid>& devices = resized.record.devices;
  for (MapRun run : placement->runs) {
    const Uuid& id = placement->devices[run.device.value()];
    resized.grown.emplace_back(id, UnitRun{run.unit, run.count});
    auto known = std::find(devices.begin(), devices.end(), id);
    if (known == devices.end()) known = devices.insert(devices.end(), id);
    run.device = DeviceIndex(static_cast<DeviceIndex::rep>(known - devices.begin()));
    run.first = run.first + before.units_per_column();
    resized.runs.push_back(run);
  }
  resized.runs = Normalize(std::move(resized.runs));
  return absl::OkStatus();
}

absl::StatusOr<Volumes::Resized> Volumes::PlanResize(Change& change, const VolumeEntry& volume,
                                                     uint64_t size_bytes, bool allow_data_loss,
                                                     const Online& online) const {
  const Geometry& before = volume.geometry;
  absl::StatusOr<Geometry> after =
      Geometry::Make(size_bytes, before.columns(), before.stripe_bytes(), before.legs());
  if (!after.ok()) return after.status();
  Resized resized{.record = volume.record, .geometry = *after};
  resized.record.size_bytes = size_bytes;
  resized.record.reserve_bytes =
      std::min(resized.record.reserve_bytes, size_bytes / kSmallExtentBytes * kSmallExtentBytes);
  const std::shared_ptr<const std::vector<MapRun>> runs = RunsOf(volume);

  uint64_t lost_bytes = 0;
  for (const ColumnRange& lost : LostRanges(before, *after)) {
    const uint64_t kept_bytes = KeptUnits(volume, *after, lost.column) * kSmallExtentBytes;
    const ColumnRange tail{lost.column, lost.begin, std::min(lost.end, kept_bytes)};
    for (const MapRun& run : *runs) {
      if (run.leg == 0) lost_bytes += PartOf(run, lost).count * kSmallExtentBytes;
      // A stale copy is not read before it is copied whole.
      const MapRun part = tail.begin < tail.end ? PartOf(run, tail) : MapRun();
      if (part.count == 0 || run.stale) continue;
      const uint64_t part_begin = part.first.value() * kSmallExtentBytes;
      const uint64_t begin = std::max(part_begin, tail.begin);
      const uint64_t end = std::min(part_begin + part.count * kSmallExtentBytes, tail.end);
      resized.tails.push_back({volume.record.devices[run.device.value()],
                               part.unit.value() * kSmallExtentBytes + (begin - part_begin),
                               end - begin});
    }
  }
  if (lost_bytes > 0 && !allow_data_loss) {
    return absl::FailedPreconditionError(absl::StrCat(
        "volume '", volume.record.name, "' has ", FormatSize(lost_bytes),
        " of space behind the new end, which would be lost; allow the loss of data, or keep it at ",
        FormatSize(before.size_bytes())));
  }
  if (volume.thin != nullptr) return resized;

  const ColumnUnit end(after->units_per_column());
  for (MapRun run : *runs) {
    const uint64_t kept = run.first < end ? std::min(run.count, end - run.first) : 0;
    if (kept < run.count) {
      resized.cut_off.emplace_back(volume.record.devices[run.device.value()],
                                   UnitRun{run.unit + kept, run.count - kept});
    }
    run.count = kept;
    if (kept > 0) resized.runs.push_back(run);
  }
  if (after->extents_per_column() > before.extents_per_column()) {
    if (absl::Status s = GrowThick(change, volume, online, resized); !s.ok()) return s;
  }
  return resized;
}

absl::Status Volumes::CommitResize(Change& change, const VolumeEntry& volume,
                                   Resized resized) const {
  if (absl::Status s = CheckVolume(resized.record); !s.ok()) return s;
  if (volume.thin != nullptr) {
    ThinEdit edit(*volume.thin, ReserveUnits(resized.record));
    CutThin(volume, resized.geometry, edit);
    ThinDelta delta = edit.Finish();
    change.PutThin(volume, std::move(resized.record), resized.geometry, std::move(delta));
  } else {
    for (const auto& [device, units] : resized.cut_off) change.FreeUnits(device, units);
    change.PutVolume(volume, std::move(resized.record), resized.geometry, std::move(resized.runs));
  }
  return change.Commit();
}

absl::StatusOr<VolumeStatus> Volumes::Resize(absl::string_view name, uint64_t size_bytes,
                                             bool allow_data_loss, bool dry_run) {
  if (absl::Status s = CheckVolumeSize(size_bytes); !s.ok()) return s;
  absl::StatusOr<VolumePtr> named = state_.FindVolume(name);
  if (!named.ok()) return named.status();
  const Uuid id = (*named)->record.id;
  const Online online = LookForDevices();

  Resized resized;
  std::unique_ptr<Attachments::Detached> detached;
  TakenSpace taken;
  {
    Change change(state_);
    if (absl::Status s = change.Ready(); !s.ok()) return s;
    absl::StatusOr<VolumePtr> volume = FindResizable(id);
    if (!volume.ok()) return volume.status();
    if ((*volume)->record.size_bytes == size_bytes) return Describe(*volume);
    absl::StatusOr<Resized> planned =
        PlanResize(change, **volume, size_bytes, allow_data_loss, online);
    if (!planned.ok()) return planned.status();
    resized = *std::move(planned);
    if (dry_run) {
      return Describe(
          Imagine(**volume, std::move(resized.record), resized.geometry, std::move(resized.runs)));
    }
    if (resized.grown.empty() && resized.tails.empty()) {
      absl::Status s = CommitResize(change, **volume, std::move(resized));
      if (!s.ok()) return s;
      volume = state_.FindVolume(id);
      if (!volume.ok()) return volume.status();
      return Describe(*volume);
    }
    absl::StatusOr<std::unique_ptr<Attachments::Detached>> kept =
        attachments_.KeepDetached(**volume);
    if (!kept.ok()) return kept.status();
    detached = *std::move(kept);
    taken = change.HoldTaken();
  }

  // With no lock held, for a device may take its time. Nobody opens, resizes or deletes the
  // volume meanwhile. Zeros first: a crash before the commit leaves the volume with its old size,
  // and at worst without what it was told to lose.
  absl::Status zeroed = ZeroUnits(state_, resized.grown, FileBlocks::kGiveBack);
  if (zeroed.ok()) zeroed = ZeroBytes(state_, resized.tails);
  if (!zeroed.ok()) {
    return absl::UnavailableError(absl::StrCat("volume '", resized.record.name,
                                               "' keeps its size: ", zeroed.message(),
                                               "; see to the device and try again"));
  }

  Change change(state_);
  if (absl::Status s = change.Ready(); !s.ok()) return s;
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  if (absl::Status s = change.Adopt(std::move(taken)); !s.ok()) return s;
  if (absl::Status s = CommitResize(change, **volume, std::move(resized)); !s.ok()) return s;
  volume = state_.FindVolume(id);
  if (!volume.ok()) return volume.status();
  return Describe(*volume);
}

}  // namespace braid
