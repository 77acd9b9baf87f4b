#include "controlplane/server/convert.h"
#include "controlplane/server/log.h"
#include "controlplane/server/services.h"

namespace braid {

grpc::Status InventoryService::AddDevice(grpc::ServerContext* /*context*/,
                                         const v1::AddDeviceRequest* request,
                                         v1::AddDeviceResponse* response) {
  absl::StatusOr<DeviceStatus> added =
      inventory_.AddDevice({.path = request->path(),
                            .device_class = request->device_class(),
                            .name = request->name(),
                            .node = request->node(),
                            .force = request->force()});
  if (!added.ok()) {
    Log(LogLevel::kWarning, "device not added",
        {{"path", request->path()}, {"reason", added.status().message()}});
    return ToGrpc(added.status());
  }
  const DeviceRecord& record = *added->use.record;
  Log(LogLevel::kInfo, "device added",
      {{"device", record.name},
       {"id", record.id.ToString()},
       {"path", record.path},
       {"capacity_bytes", added->use.capacity_bytes}});
  *response->mutable_device() = ToProto(*added);
  return grpc::Status::OK;
}

grpc::Status InventoryService::ListDevices(grpc::ServerContext* /*context*/,
                                           const v1::ListDevicesRequest* /*request*/,
                                           v1::ListDevicesResponse* response) {
  for (const DeviceStatus& device : inventory_.ListDevices()) {
    *response->add_devices() = ToProto(device);
  }
  return grpc::Status::OK;
}

grpc::Status InventoryService::RemoveDevice(grpc::ServerContext* /*context*/,
                                            const v1::RemoveDeviceRequest* request,
                                            v1::RemoveDeviceResponse* response) {
  absl::StatusOr<DeviceStatus> removed =
      inventory_.RemoveDevice(request->name(), request->dry_run());
  if (!removed.ok()) return ToGrpc(removed.status());
  if (!request->dry_run()) {
    Log(LogLevel::kInfo, "device removed",
        {{"device", removed->use.record->name}, {"id", removed->use.record->id.ToString()}});
  }
  *response->mutable_device() = ToProto(*removed);
  return grpc::Status::OK;
}

grpc::Status InventoryService::ListPools(grpc::ServerContext* /*context*/,
                                         const v1::ListPoolsRequest* /*request*/,
                                         v1::ListPoolsResponse* response) {
  for (const PoolUsage& pool : pools_.List()) {
    *response->add_pools() = ToProto(pool, pools_.thresholds());
  }
  return grpc::Status::OK;
}

grpc::Status InventoryService::CheckPools(grpc::ServerContext* /*context*/,
                                          const v1::CheckPoolsRequest* /*request*/,
                                          v1::CheckPoolsResponse* response) {
  absl::StatusOr<PoolCheck> check = braid::CheckPools(state_);
  if (!check.ok()) return ToGrpc(check.status());
  for (const std::string& finding : check->findings) {
    Log(LogLevel::kError, "pool check", {{"finding", finding}});
    response->add_findings(finding);
  }
  response->set_device_count(check->devices);
  response->set_volume_count(check->volumes);
  response->set_run_count(check->runs);
  response->set_grant_count(check->grants);
  return grpc::Status::OK;
}

}  // namespace braid
