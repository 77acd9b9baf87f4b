#include "controlplane/server/convert.h"

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
  out.set_allocated_bytes(device.use.capacity_bytes - device.use.free_bytes);
  out.set_free_bytes(device.use.free_bytes);
  out.set_volume_count(device.use.volume_count);
  out.set_created_unix_seconds(record.created_unix_seconds);
  out.set_revision(record.revision.value());
  out.set_problem(device.problem);
  return out;
}

v1::Pool ToProto(const PoolUse& pool) {
  v1::Pool out;
  out.set_device_class(pool.device_class);
  out.set_device_count(pool.device_count);
  out.set_capacity_bytes(pool.capacity_bytes);
  out.set_allocated_bytes(pool.capacity_bytes - pool.free_bytes);
  out.set_free_bytes(pool.free_bytes);
  out.set_largest_free_bytes(pool.largest_free_bytes);
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
  out.set_allocated_bytes(status.volume->geometry.allocated_bytes());
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
                  .device_class = request.device_class()};
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

}  // namespace braid
