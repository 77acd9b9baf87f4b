// Between what core/ knows and what the API says.
#ifndef BRAID_CONTROLPLANE_SERVER_CONVERT_H_
#define BRAID_CONTROLPLANE_SERVER_CONVERT_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "braid/v1/attachment.pb.h"
#include "braid/v1/inventory.pb.h"
#include "braid/v1/volume.pb.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/volumes.h"

namespace braid {

// The codes of both are the same numbers.
grpc::Status ToGrpc(const absl::Status& status);

v1::Device ToProto(const DeviceStatus& device);
v1::Pool ToProto(const PoolUse& pool);
v1::Volume ToProto(const VolumeStatus& volume, const std::string& site);
v1::DeviceShare ToProto(const DeviceShare& share);
v1::AttachedRun ToProto(const MapRun& run);
// One row of `volume`'s map; `device` is what run.device means there.
v1::MapRow ToMapRow(const VolumeEntry& volume, const MapRun& run, const DeviceRecord& device);

// InvalidArgument for a layout that this version does not know.
absl::StatusOr<VolumeSpec> FromProto(const v1::CreateVolumeRequest& request);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_CONVERT_H_
