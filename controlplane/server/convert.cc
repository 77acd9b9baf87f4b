#include "controlplane/server/convert.h"

#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid {
namespace {

v1::Layout ToProto(Layout layout) {
  switch (layout) {
    case Layout::kLinear:
      return v1::LAYOUT_LINEAR;
    case Layout::kStriped:
      return v1::LAYOUT_STRIPED;
    case Layout::kMirrored:
      return v1::LAYOUT_MIRRORED;
    case Layout::kStripedMirrors:
      return v1::LAYOUT_STRIPED_MIRRORS;
  }
  return v1::LAYOUT_UNSPECIFIED;
}

v1::VolumeState ToProto(VolumeState state) {
  switch (state) {
    case VolumeState::kPreparing:
      return v1::VOLUME_STATE_PREPARING;
    case VolumeState::kReady:
      return v1::VOLUME_STATE_READY;
    case VolumeState::kDeleting:
      return v1::VOLUME_STATE_DELETING;
  }
  return v1::VOLUME_STATE_UNSPECIFIED;
}

v1::VolumeHealth ToProto(VolumeHealth health) {
  switch (health) {
    case VolumeHealth::kGood:
      return v1::VOLUME_HEALTH_GOOD;
    case VolumeHealth::kDegraded:
      return v1::VOLUME_HEALTH_DEGRADED;
    case VolumeHealth::kFaulty:
      return v1::VOLUME_HEALTH_FAULTY;
  }
  return v1::VOLUME_HEALTH_UNSPECIFIED;
}

v1::OnFull ToProto(OnFull on_full) {
  switch (on_full) {
    case OnFull::kFail:
      return v1::ON_FULL_FAIL;
    case OnFull::kWait:
      return v1::ON_FULL_WAIT;
  }
  return v1::ON_FULL_UNSPECIFIED;
}

v1::PoolState ToProto(PoolState state) {
  switch (state) {
    case PoolState::kGood:
      return v1::POOL_STATE_GOOD;
    case PoolState::kLow:
      return v1::POOL_STATE_LOW;
    case PoolState::kCritical:
      return v1::POOL_STATE_CRITICAL;
    case PoolState::kFull:
      return v1::POOL_STATE_FULL;
  }
  return v1::POOL_STATE_UNSPECIFIED;
}

absl::StatusOr<UnitPlace> FromProto(const v1::UnitPlace& place) {
  if (place.device_index() > std::numeric_limits<DeviceIndex::rep>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("device_index ", place.device_index(), " is out of range"));
  }
  return UnitPlace{.device = DeviceIndex(static_cast<DeviceIndex::rep>(place.device_index())),
                   .unit = DeviceUnit(place.device_unit()),
                   .stale = place.stale()};
}

absl::StatusOr<std::optional<OnFull>> OnFullFromProto(v1::OnFull on_full) {
  switch (on_full) {
    case v1::ON_FULL_UNSPECIFIED:
      return std::optional<OnFull>();
    case v1::ON_FULL_FAIL:
      return std::make_optional(OnFull::kFail);
    case v1::ON_FULL_WAIT:
      return std::make_optional(OnFull::kWait);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("on_full ", static_cast<int>(on_full), " is not known here"));
  }
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

v1::Device ToProto(const DeviceStatus& device) {
  const DeviceRecord& record = *device.use.record;
  v1::Device out;
  out.set_id(record.id.ToString());
  out.set_name(record.name);
  out.set_node(record.node);
  out.set_path(record.path);
  out.set_device_class(record.device_class);
  out.set_state(device.problem.empty() ? v1::DEVICE_STATE_ONLINE : v1::DEVICE_STATE_MISSING);
  out.set_size_bytes(record.device_bytes);
  out.set_capacity_bytes(device.use.capacity_bytes);
  out.set_reserved_bytes(device.use.reserved_bytes);
  out.set_allocated_bytes(device.use.capacity_bytes - device.use.free_bytes -
                          device.use.reserved_bytes);
  out.set_free_bytes(device.use.free_bytes);
  out.set_volume_count(device.use.volume_count);
  out.set_created_unix_seconds(record.created_unix_seconds);
  out.set_revision(record.revision.value());
  out.set_problem(device.problem);
  return out;
}

v1::Pool ToProto(const PoolUsage& pool, const Pools::Thresholds& thresholds) {
  v1::Pool out;
  out.set_device_class(pool.device_class);
  out.set_device_count(pool.device_count);
  out.set_capacity_bytes(pool.capacity);
  out.set_allocated_bytes(pool.allocated);
  out.set_free_bytes(pool.free);
  out.set_largest_free_bytes(pool.largest_free);
  out.set_reserved_bytes(pool.reserved);
  out.set_promised_bytes(pool.promised);
  out.set_commitment_ratio(pool.commitment_ratio);
  out.set_reclaimable_bytes(pool.reclaimable);
  out.set_allocation_bytes_per_second(pool.allocation_per_second);
  out.set_seconds_to_full(pool.seconds_to_full);
  out.set_state(ToProto(pool.state));
  out.set_low_percent(thresholds.low_percent);
  out.set_critical_percent(thresholds.critical_percent);
  return out;
}

v1::SiteHealth HealthOf(PoolState state) {
  switch (state) {
    case PoolState::kGood:
      return v1::SITE_HEALTH_GOOD;
    case PoolState::kLow:
      return v1::SITE_HEALTH_WARNING;
    case PoolState::kCritical:
    case PoolState::kFull:
      return v1::SITE_HEALTH_CRITICAL;
  }
  return v1::SITE_HEALTH_UNSPECIFIED;
}

v1::Event ToProto(const PoolEvent& event) {
  v1::Event out;
  out.set_unix_seconds(event.unix_seconds);
  out.set_severity(HealthOf(event.state));
  out.set_what(event.what);
  return out;
}

v1::Volume ToProto(const VolumeStatus& status, const std::string& site) {
  const VolumeRecord& record = status.volume->record;
  v1::Volume out;
  out.set_id(record.id.ToString());
  out.set_name(record.name);
  out.set_site(site);
  out.set_size_bytes(record.size_bytes);
  out.set_layout(ToProto(record.layout));
  out.set_stripes(record.columns);
  // A volume with one column has no stripes to have a size.
  if (record.columns > 1) out.set_stripe_size_bytes(record.stripe_bytes);
  out.set_copies(record.legs);
  out.set_device_class(record.device_class);
  out.set_state(ToProto(record.state));
  out.set_health(ToProto(status.health));
  out.set_allocated_bytes(status.allocated_bytes);
  out.set_stale_bytes(status.stale_bytes);
  out.set_prepared_bytes(status.prepared_bytes);
  out.set_fault(record.fault);
  v1::Attachment& attachment = *out.mutable_attachment();
  attachment.set_epoch(record.attachment.epoch.value());
  attachment.set_held(record.attachment.held);
  attachment.set_alive(status.alive);
  attachment.set_read_only(record.attachment.read_only);
  attachment.set_node(record.attachment.node);
  attachment.set_pid(record.attachment.pid);
  attachment.set_since_unix_seconds(record.attachment.since_unix_seconds);
  out.set_created_unix_seconds(record.created_unix_seconds);
  out.set_revision(record.revision.value());
  for (const std::string& name : status.device_names) out.add_devices(name);
  out.set_thin(record.thin);
  out.set_mapped_bytes(status.mapped_bytes);
  out.set_reserved_bytes(status.reserved_bytes);
  if (record.thin) {
    out.set_reserve_bytes(record.reserve_bytes);
    out.set_on_full(ToProto(record.on_full));
    out.set_full_timeout_seconds(record.full_timeout_seconds);
  }
  return out;
}

v1::DeviceShare ToProto(const DeviceShare& share) {
  v1::DeviceShare out;
  out.set_device(share.device->name);
  out.set_node(share.device->node);
  out.set_device_class(share.device->device_class);
  out.set_bytes(share.bytes);
  return out;
}

v1::AttachedRun ToProto(const MapRun& run) {
  v1::AttachedRun out;
  out.set_column(run.column);
  out.set_leg(run.leg);
  out.set_first_unit(run.first.value());
  out.set_unit_count(run.count);
  out.set_device_index(run.device.value());
  out.set_device_unit(run.unit.value());
  out.set_stale(run.stale);
  return out;
}

v1::AttachedDevice ToProto(const DeviceRecord& device) {
  v1::AttachedDevice out;
  out.set_id(device.id.ToString());
  out.set_name(device.name);
  out.set_path(device.path);
  out.set_size_bytes(device.device_bytes);
  return out;
}

v1::Grant ToProto(const Grant& grant) {
  v1::Grant out;
  out.set_unit_count(grant.count);
  for (const UnitPlace& leg : grant.legs) {
    v1::UnitPlace& place = *out.add_legs();
    place.set_device_index(leg.device.value());
    place.set_device_unit(leg.unit.value());
  }
  return out;
}

v1::MapRow ToMapRow(const VolumeEntry& volume, const MapRun& run, const DeviceRecord& device) {
  v1::MapRow out;
  out.set_column(run.column);
  out.set_leg(run.leg);
  out.set_first_unit(run.first.value());
  out.set_unit_count(run.count);
  out.set_device(device.name);
  out.set_device_id(device.id.ToString());
  out.set_device_offset_bytes(run.unit.value() * kSmallExtentBytes);
  out.set_length_bytes(run.count * kSmallExtentBytes);
  out.set_stale(run.stale);
  out.set_volume_offset_bytes(
      volume.geometry.VolumeOffset({run.column, run.first.value() * kSmallExtentBytes}));
  return out;
}

absl::StatusOr<VolumeSpec> FromProto(const v1::CreateVolumeRequest& request) {
  VolumeSpec spec{.name = request.name(),
                  .size_bytes = request.size_bytes(),
                  .stripes = request.stripes(),
                  .stripe_bytes = request.stripe_size_bytes(),
                  .copies = request.copies(),
                  .device_class = request.device_class(),
                  .thin = request.thin(),
                  .reserve_bytes = request.reserve_bytes(),
                  .full_timeout_seconds = request.full_timeout_seconds()};
  absl::StatusOr<std::optional<OnFull>> on_full = OnFullFromProto(request.on_full());
  if (!on_full.ok()) return on_full.status();
  spec.on_full = *on_full;
  switch (request.layout()) {
    case v1::LAYOUT_UNSPECIFIED:
      return spec;
    case v1::LAYOUT_LINEAR:
      spec.layout = Layout::kLinear;
      return spec;
    case v1::LAYOUT_STRIPED:
      spec.layout = Layout::kStriped;
      return spec;
    case v1::LAYOUT_MIRRORED:
      spec.layout = Layout::kMirrored;
      return spec;
    case v1::LAYOUT_STRIPED_MIRRORS:
      spec.layout = Layout::kStripedMirrors;
      return spec;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("layout ", static_cast<int>(request.layout()), " is not known here"));
  }
}

absl::StatusOr<Grant> FromProto(const v1::Grant& grant) {
  if (grant.legs_size() > static_cast<int>(kMaxLegs)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a grant of ", grant.legs_size(), " legs; there are up to ", kMaxLegs));
  }
  Grant out{.count = grant.unit_count(), .legs = {}};
  for (const v1::UnitPlace& leg : grant.legs()) {
    absl::StatusOr<UnitPlace> place = FromProto(leg);
    if (!place.ok()) return place.status();
    out.legs.push_back(*place);
  }
  return out;
}

absl::StatusOr<MapChange> FromProto(const v1::MapChange& change, uint32_t legs) {
  MapChange out{.column = change.column(),
                .first = ColumnUnit(change.first_unit()),
                .count = change.unit_count()};
  uint32_t wanted = legs;
  switch (change.kind()) {
    case v1::MapChange::KIND_BIND:
      out.kind = MapChange::Kind::kBind;
      break;
    case v1::MapChange::KIND_UNBIND:
      out.kind = MapChange::Kind::kUnbind;
      wanted = 0;
      break;
    case v1::MapChange::KIND_MOVE:
      out.kind = MapChange::Kind::kMove;
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("kind ", static_cast<int>(change.kind()), " is not known here"));
  }
  if (change.legs_size() != static_cast<int>(wanted) || wanted > kMaxLegs) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", change.legs_size(), " legs and should have ", wanted));
  }
  for (uint32_t leg = 0; leg < wanted; ++leg) {
    absl::StatusOr<UnitPlace> place = FromProto(change.legs(static_cast<int>(leg)));
    if (!place.ok()) return place.status();
    out.legs[leg] = *place;
  }
  return out;
}

absl::StatusOr<Uuid> ParseVolumeId(absl::string_view text) {
  absl::StatusOr<Uuid> id = Uuid::Parse(text);
  if (id.ok()) return id;
  return absl::InvalidArgumentError(
      "volume_id is not a UUID; PrepareAttachment gives the right one");
}

}  // namespace braid
