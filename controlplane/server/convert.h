// Between what core/ knows and what the API says.
#ifndef BRAID_CONTROLPLANE_SERVER_CONVERT_H_
#define BRAID_CONTROLPLANE_SERVER_CONVERT_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "braid/v1/attachment.pb.h"
#include "braid/v1/inventory.pb.h"
#include "braid/v1/site.pb.h"
#include "braid/v1/volume.pb.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/volumes.h"
#include "lib/mapping/map_change.h"

namespace braid {

// The codes of both are the same numbers.
grpc::Status ToGrpc(const absl::Status& status);

v1::Device ToProto(const DeviceStatus& device);
v1::Pool ToProto(const PoolUsage& pool, const Pools::Thresholds& thresholds);
// What a pool in this state does to the site's.
v1::SiteHealth HealthOf(PoolState state);
v1::Event ToProto(const PoolEvent& event);
v1::Volume ToProto(const VolumeStatus& volume, const std::string& site);
v1::DeviceShare ToProto(const DeviceShare& share);
v1::AttachedRun ToProto(const MapRun& run);
v1::AttachedDevice ToProto(const DeviceRecord& device);
v1::Grant ToProto(const Grant& grant);
// One row of `volume`'s map; `device` is what run.device means there.
v1::MapRow ToMapRow(const VolumeEntry& volume, const MapRun& run, const DeviceRecord& device);

// InvalidArgument for an enumerator that this version does not know, or a number that its
// type cannot hold; what else may be wrong is for core/ to say.
absl::StatusOr<VolumeSpec> FromProto(const v1::CreateVolumeRequest& request);
absl::StatusOr<Grant> FromProto(const v1::Grant& grant);
// Of a volume of `legs` copies.
absl::StatusOr<MapChange> FromProto(const v1::MapChange& change, uint32_t legs);
absl::StatusOr<Uuid> ParseVolumeId(absl::string_view text);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_CONVERT_H_
