#include "nbdkit-plugin/attachment_codec.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "lib/mapping/page_table.h"
#include "nbdkit-plugin/error_log.h"

namespace braid {
namespace {

bool IsShownName(absl::string_view name) {
  return !name.empty() && name.size() <= 255 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c)) != 0;
  });
}

absl::StatusOr<DeviceIndex> DecodeDeviceIndex(uint32_t index) {
  if (index > std::numeric_limits<DeviceIndex::rep>::max())
    return Impossible(absl::StrCat("space on device ", index));
  return DeviceIndex(static_cast<DeviceIndex::rep>(index));
}

absl::StatusOr<Grant> DecodeGrant(const Geometry& geometry,
                                  absl::Span<const DeviceIdentity> devices, const v1::Grant& row) {
  Grant grant;
  grant.count = row.unit_count();
  for (const v1::UnitPlace& leg : row.legs()) {
    const absl::StatusOr<DeviceIndex> device = DecodeDeviceIndex(leg.device_index());
    if (!device.ok()) return device.status();
    grant.legs.push_back({*device, DeviceUnit(leg.device_unit()), leg.stale()});
  }
  const absl::Status fits = CheckGrant(geometry, grant, devices.size());
  if (!fits.ok()) return Impossible(absl::StrCat("impossible space (", fits.message(), ")"));
  for (const UnitPlace& leg : grant.legs) {
    const DeviceIdentity& device = devices[leg.device.value()];
    const uint64_t device_units = device.size_bytes / kSmallExtentBytes;
    if (leg.unit.value() > device_units || grant.count > device_units - leg.unit.value())
      return Impossible(absl::StrCat("space past the end of device ", device.name));
  }
  return grant;
}

}  // namespace

absl::Status Impossible(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the control plane granted ", what,
                   "; check that braidd and this plugin are of one version"));
}

absl::StatusOr<MapRun> DecodeAttachedRun(const Geometry& geometry, uint64_t device_count,
                                         const v1::AttachedRun& row) {
  const absl::StatusOr<DeviceIndex> device = DecodeDeviceIndex(row.device_index());
  if (!device.ok()) return device.status();
  MapRun run;
  run.column = row.column();
  run.leg = row.leg();
  run.first = ColumnUnit(row.first_unit());
  run.count = row.unit_count();
  run.device = *device;
  run.unit = DeviceUnit(row.device_unit());
  run.stale = row.stale();
  const absl::Status fits = CheckRun(geometry, run, device_count);
  if (!fits.ok()) return Impossible(absl::StrCat("an impossible run (", fits.message(), ")"));
  return run;
}

absl::StatusOr<std::vector<Grant>> DecodeGrants(
    const Geometry& geometry, absl::Span<const DeviceIdentity> devices,
    const google::protobuf::RepeatedPtrField<v1::Grant>& rows) {
  std::vector<Grant> grants;
  grants.reserve(static_cast<size_t>(rows.size()));
  for (const v1::Grant& row : rows) {
    absl::StatusOr<Grant> grant = DecodeGrant(geometry, devices, row);
    if (!grant.ok()) return grant.status();
    grants.push_back(*std::move(grant));
  }
  return grants;
}

absl::Status DecodeDevices(const google::protobuf::RepeatedPtrField<v1::AttachedDevice>& rows,
                           std::vector<DeviceIdentity>& devices) {
  if (static_cast<uint64_t>(rows.size()) > kMaxDevices - devices.size())
    return Impossible(absl::StrCat(rows.size(), " devices beside ", devices.size()));
  absl::flat_hash_set<Uuid> known;
  for (const DeviceIdentity& device : devices) known.insert(device.id);
  std::vector<DeviceIdentity> added;
  for (const v1::AttachedDevice& row : rows) {
    const absl::StatusOr<Uuid> id = Uuid::Parse(row.id());
    if (!id.ok() || row.path().empty())
      return Impossible(absl::StrCat("a device without id or path (", OneLine(row.name()), ")"));
    if (!known.insert(*id).second)
      return Impossible(absl::StrCat("device ", id->ToString(), " twice"));
    added.push_back({*id, OneLine(row.name()), row.path(), row.size_bytes()});
  }
  std::move(added.begin(), added.end(), std::back_inserter(devices));
  return absl::OkStatus();
}

absl::StatusOr<Attachment> DecodeHeader(const v1::AttachmentHeader& header) {
  const v1::Volume& volume = header.volume();
  Attachment attachment;
  attachment.volume_id = volume.id();
  attachment.site = volume.site();
  attachment.name = volume.name();
  if (!IsShownName(attachment.volume_id) || !IsShownName(attachment.site) ||
      !IsShownName(attachment.name))
    return Impossible("a volume without a proper name");
  if (header.epoch() == 0) return Impossible("epoch 0");
  attachment.epoch = Epoch(header.epoch());
  attachment.takes_over = header.takes_over();
  absl::StatusOr<Geometry> geometry = Geometry::Make(
      volume.size_bytes(), std::max(volume.stripes(), 1U),
      volume.stripe_size_bytes() == 0 ? kDefaultStripeBytes : volume.stripe_size_bytes(),
      std::max(volume.copies(), 1U));
  if (!geometry.ok())
    return Impossible(absl::StrCat("an impossible shape (", geometry.status().message(), ")"));
  attachment.geometry = *geometry;
  attachment.thin = volume.thin();
  // A thin volume gets its devices with its space.
  if (header.devices().empty() && !attachment.thin) return Impossible("no devices");
  if (absl::Status status = DecodeDevices(header.devices(), attachment.devices); !status.ok())
    return status;
  if (!attachment.thin) {
    if (!header.grants().empty()) return Impossible("space to a volume that is not thin");
    return attachment;
  }
  attachment.waits_when_full = volume.on_full() == v1::ON_FULL_WAIT;
  // Longer than anyone lives is no limit, and would overflow.
  constexpr uint64_t kNoLimitSeconds = uint64_t{1} << 32;
  if (volume.full_timeout_seconds() != 0 && volume.full_timeout_seconds() < kNoLimitSeconds)
    attachment.full_timeout = absl::Seconds(static_cast<int64_t>(volume.full_timeout_seconds()));
  attachment.applied_sequence = header.applied_sequence();
  // Numbers only rise; one that leaves no room to rise is no number.
  if (attachment.applied_sequence > std::numeric_limits<uint64_t>::max() / 2)
    return Impossible(absl::StrCat("map change number ", attachment.applied_sequence));
  absl::StatusOr<std::vector<Grant>> grants =
      DecodeGrants(attachment.geometry, attachment.devices, header.grants());
  if (!grants.ok()) return grants.status();
  attachment.grants = *std::move(grants);
  return attachment;
}

void EncodeGrant(const Grant& grant, v1::Grant* row) {
  row->set_unit_count(grant.count);
  for (const UnitPlace& place : grant.legs) {
    v1::UnitPlace* const leg = row->add_legs();
    leg->set_device_index(place.device.value());
    leg->set_device_unit(place.unit.value());
  }
}

void EncodeMapChange(const MapChange& change, uint32_t legs, v1::MapChange* row) {
  switch (change.kind) {
    case MapChange::Kind::kBind:
      row->set_kind(v1::MapChange::KIND_BIND);
      break;
    case MapChange::Kind::kUnbind:
      row->set_kind(v1::MapChange::KIND_UNBIND);
      break;
    case MapChange::Kind::kMove:
      row->set_kind(v1::MapChange::KIND_MOVE);
      break;
  }
  row->set_column(change.column);
  row->set_first_unit(change.first.value());
  row->set_unit_count(change.count);
  if (change.kind == MapChange::Kind::kUnbind) return;
  for (uint32_t i = 0; i < legs; ++i) {
    v1::UnitPlace* const leg = row->add_legs();
    leg->set_device_index(change.legs[i].device.value());
    leg->set_device_unit(change.legs[i].unit.value());
    leg->set_stale(change.legs[i].stale);
  }
}

}  // namespace braid
