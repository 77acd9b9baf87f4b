#include "controlplane/core/inventory.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controlplane/core/labelled_device.h"
#include "lib/base/size_text.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

// An answer names this many volumes at most.
constexpr size_t kNamesShown = 5;

// With default values filled in.
DeviceSpec Completed(DeviceSpec spec, const SiteState& state) {
  if (spec.name.empty()) spec.name = spec.path.substr(spec.path.find_last_of('/') + 1);
  if (spec.node.empty()) spec.node = state.node();
  return spec;
}

std::string VolumesOn(const SiteState& state, const Uuid& device) {
  std::vector<std::string> names;
  size_t more = 0;
  for (const VolumePtr& volume : state.VolumesAfter("", SIZE_MAX)) {
    const std::vector<Uuid>& devices = volume->record.devices;
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) continue;
    if (names.size() < kNamesShown) {
      names.push_back(volume->record.name);
    } else {
      ++more;
    }
  }
  std::string text = absl::StrJoin(names, ", ");
  if (more > 0) absl::StrAppend(&text, " and ", more, " more");
  return text;
}

}  // namespace

std::string DeviceProblem(const SiteState& state, const DeviceRecord& record) {
  return std::string(
      OpenLabelled(state.host(), state.cluster(), record, {.read_only = true}).status().message());
}

absl::Status Inventory::CheckSpec(const DeviceSpec& spec) const {
  absl::Status status = CheckPath("device path", spec.path);
  if (!status.ok()) return status;
  if (!std::all_of(spec.path.begin(), spec.path.end(),
                   [](unsigned char c) { return !absl::ascii_iscntrl(c); })) {
    return absl::InvalidArgumentError("the path has control characters in it; rename the file");
  }
  status = CheckName("device class", spec.device_class);
  if (status.ok()) status = CheckName("device name", spec.name);
  if (status.ok()) status = CheckName("node name", spec.node);
  if (status.ok() && Uuid::Parse(spec.name).ok()) {
    status = absl::InvalidArgumentError(
        "a device name must not look like a UUID; give another with --name");
  }
  return status;
}

absl::Status Inventory::CheckNotInPool(const DeviceSpec& spec) const {
  absl::StatusOr<DeviceIdentity> identity = state_.host().Identify(spec.path);
  if (!identity.ok()) return identity.status();
  for (const DeviceUse& use : state_.Devices()) {
    const DeviceRecord& other = *use.record;
    if (other.path == spec.path) {
      return absl::AlreadyExistsError(absl::StrCat(
          spec.path, " is in the pool already, as device '", other.name, "'; give another device"));
    }
    absl::StatusOr<DeviceIdentity> its = state_.host().Identify(other.path);
    if (its.ok() && Overlap(*its, *identity)) {
      return absl::AlreadyExistsError(absl::StrCat(spec.path, " is the same device as ", other.path,
                                                   ", which is in the pool already as '",
                                                   other.name, "'; give another device"));
    }
    if (other.name == spec.name) {
      return absl::AlreadyExistsError(absl::StrCat("a device '", spec.name,
                                                   "' is in the pool already (", other.path,
                                                   "); choose another with --name"));
    }
  }
  return absl::OkStatus();
}

absl::Status Inventory::CheckFoundLabel(const DeviceSpec& spec, BlockDevice& device) const {
  constexpr absl::string_view kForce = "use --force to take it and lose what is on it";
  absl::StatusOr<Label> label = ReadLabel(device);
  if (absl::IsNotFound(label.status())) return absl::OkStatus();
  if (absl::IsDataLoss(label.status())) {
    if (spec.force) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(spec.path, ": its Braid label is damaged (",
                                            label.status().message(), "); ", kForce));
  }
  if (absl::IsUnimplemented(label.status())) {
    if (spec.force) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(spec.path, ": a newer Braid labelled it (",
                                                      label.status().message(), "); ", kForce));
  }
  if (!label.ok()) {
    return absl::Status(label.status().code(),
                        absl::StrCat(spec.path, ": ", label.status().message()));
  }
  if (label->cluster != state_.cluster()) {
    if (spec.force) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(spec.path, ": belongs to another cluster (", label->cluster.ToString(),
                     ", site '", absl::CHexEscape(label->site), "'); ", kForce));
  }
  if (DevicePtr known = state_.FindDevice(label->device); known != nullptr) {
    // Not even with force: should the recorded path be gone, this is where its data is.
    return absl::AlreadyExistsError(absl::StrCat(
        spec.path, ": carries the label of device '", known->name, "', which is in the pool as ",
        known->path, "; if this is a copy, wipe its first 128 KiB before adding it"));
  }
  if (spec.force) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(spec.path, ": labelled by this cluster as device ", label->device.ToString(),
                   ", which the store does not know: an add or remove was cut short, or the store "
                   "lost it; ",
                   kForce));
}

absl::Status Inventory::CheckNoData(const DeviceSpec& spec) const {
  if (spec.force) return absl::OkStatus();
  absl::StatusOr<std::string> found = state_.host().RecogniseData(spec.path);
  if (!found.ok()) return found.status();
  if (found->empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      spec.path, ": holds ", *found, "; use --force to take it and lose what is on it"));
}

absl::StatusOr<DeviceStatus> Inventory::AddDevice(const DeviceSpec& given) {
  const DeviceSpec spec = Completed(given, state_);
  absl::Status status = CheckSpec(spec);
  if (!status.ok()) return status;
  absl::MutexLock lock(&mu_);
  status = CheckNotInPool(spec);
  if (!status.ok()) return status;
  // Stays open, and so out of others' hands, until the record is committed.
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      state_.host().OpenDevice(spec.path, {.exclusive = true});
  if (!device.ok()) return device.status();
  const uint64_t size = (*device)->traits().size_bytes;
  if (size < kMinDeviceBytes) {
    return absl::InvalidArgumentError(absl::StrCat(spec.path, ": ", FormatSize(size),
                                                   " is too small; a device needs at least ",
                                                   FormatSize(kMinDeviceBytes)));
  }
  status = CheckFoundLabel(spec, **device);
  if (status.ok()) status = CheckNoData(spec);
  if (!status.ok()) return status;

  // Not one label is written for a change that will be refused.
  if (status = state_.health(); !status.ok()) return absl::UnavailableError(status.message());

  const uint64_t mappable = std::min(size, (kMaxDeviceUnits - 1) * kSmallExtentBytes);
  DeviceRecord record{.id = state_.host().NewUuid(),
                      .name = spec.name,
                      .node = spec.node,
                      .path = spec.path,
                      .device_class = spec.device_class,
                      .device_bytes = mappable,
                      .data_offset = kLabelDataOffset,
                      .data_bytes = (mappable - kLabelDataOffset) / kExtentBytes * kExtentBytes,
                      .created_unix_seconds = state_.host().NowUnixSeconds()};
  status = WriteLabel(**device, {.device = record.id,
                                 .cluster = state_.cluster(),
                                 .site = state_.name(),
                                 .device_name = record.name,
                                 .device_class = record.device_class,
                                 .device_bytes = record.device_bytes,
                                 .data_offset = record.data_offset,
                                 .data_bytes = record.data_bytes,
                                 .created_unix_seconds = record.created_unix_seconds,
                                 .sequence = 1});
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(spec.path, ": cannot be labelled: ", status.message()));
  }
  Change change(state_);
  if (status = change.Ready(); !status.ok()) return status;
  change.AddDevice(record);
  // A commit that failed may have happened, so the label stays.
  if (status = change.Commit(); !status.ok()) return status;
  absl::StatusOr<DeviceUse> use = state_.FindDevice(record.name);
  if (!use.ok()) return use.status();
  return DeviceStatus{*std::move(use), ""};
}

std::vector<DeviceStatus> Inventory::ListDevices() const {
  std::vector<DeviceStatus> all;
  for (DeviceUse& use : state_.Devices()) {
    std::string problem = DeviceProblem(state_, *use.record);
    all.push_back({std::move(use), std::move(problem)});
  }
  return all;
}

absl::StatusOr<DeviceStatus> Inventory::RemoveDevice(absl::string_view name, bool dry_run) {
  absl::MutexLock lock(&mu_);
  DeviceStatus removed;
  {
    Change change(state_);
    absl::Status status = change.Ready();
    if (!status.ok()) return status;
    absl::StatusOr<DeviceUse> use = state_.FindDevice(name);
    if (!use.ok()) return use.status();
    if (use->volume_count > 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("device '", use->record->name, "' has extents of ",
                       VolumesOn(state_, use->record->id), "; delete these volumes first"));
    }
    if (use->taken_bytes > 0) {
      return absl::UnavailableError(absl::StrCat("space on device '", use->record->name,
                                                 "' is being zeroed for a volume; try again"));
    }
    removed.use = *std::move(use);
    if (!dry_run) {
      change.DeleteDevice(removed.use.record->id);
      if (status = change.Commit(); !status.ok()) return status;
    }
  }
  if (dry_run) {
    removed.problem = DeviceProblem(state_, *removed.use.record);
    return removed;
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      OpenLabelled(state_.host(), state_.cluster(), *removed.use.record, {.exclusive = true});
  absl::Status wiped = device.ok() ? WipeLabel(**device) : device.status();
  if (!wiped.ok()) {
    removed.problem = absl::StrCat("removed, but its label was not wiped: ", wiped.message(),
                                   "; taking it in again will need --force");
    state_.host().Warn(absl::StrCat("device '", removed.use.record->name, "' ", removed.problem));
  }
  return removed;
}

}  // namespace braid
