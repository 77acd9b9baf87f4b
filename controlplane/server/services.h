// The gRPC services: they turn messages into calls of core/ and answers into messages.
// What each call does and refuses is said in controlplane/proto.
//
// Every call runs on a thread of the synchronous server, of which there are kMaxThreads;
// past that gRPC refuses a call with RESOURCE_EXHAUSTED. So that callers who wait for their
// volumes can never keep a data plane from reporting a lost copy, at most kMaxWaiters wait.
#ifndef BRAID_CONTROLPLANE_SERVER_SERVICES_H_
#define BRAID_CONTROLPLANE_SERVER_SERVICES_H_

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "braid/v1/inventory.grpc.pb.h"
#include "braid/v1/site.grpc.pb.h"
#include "braid/v1/volume.grpc.pb.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/volumes.h"

namespace braid {

inline constexpr int kMaxThreads = 128;
inline constexpr int kMaxWaiters = 64;
// Rows in one message of a stream: below 1 MiB with the longest names.
inline constexpr size_t kRowsPerMessage = 4096;

class InventoryService final : public v1::InventoryService::Service {
 public:
  explicit InventoryService(Inventory* inventory) : inventory_(*inventory) {}
  grpc::Status AddDevice(grpc::ServerContext* context, const v1::AddDeviceRequest* request,
                         v1::AddDeviceResponse* response) override;
  grpc::Status ListDevices(grpc::ServerContext* context, const v1::ListDevicesRequest* request,
                           v1::ListDevicesResponse* response) override;
  grpc::Status RemoveDevice(grpc::ServerContext* context, const v1::RemoveDeviceRequest* request,
                            v1::RemoveDeviceResponse* response) override;
  grpc::Status ListPools(grpc::ServerContext* context, const v1::ListPoolsRequest* request,
                         v1::ListPoolsResponse* response) override;

 private:
  Inventory& inventory_;
};

class VolumeService final : public v1::VolumeService::Service {
 public:
  VolumeService(SiteState* state, Volumes* volumes) : state_(*state), volumes_(*volumes) {}
  grpc::Status CreateVolume(grpc::ServerContext* context, const v1::CreateVolumeRequest* request,
                            v1::CreateVolumeResponse* response) override;
  grpc::Status GetVolume(grpc::ServerContext* context, const v1::GetVolumeRequest* request,
                         v1::GetVolumeResponse* response) override;
  grpc::Status ListVolumes(grpc::ServerContext* context, const v1::ListVolumesRequest* request,
                           v1::ListVolumesResponse* response) override;
  grpc::Status DeleteVolume(grpc::ServerContext* context, const v1::DeleteVolumeRequest* request,
                            v1::DeleteVolumeResponse* response) override;
  grpc::Status GetVolumeMap(grpc::ServerContext* context, const v1::GetVolumeMapRequest* request,
                            grpc::ServerWriter<v1::GetVolumeMapResponse>* writer) override;

 private:
  SiteState& state_;
  Volumes& volumes_;
  std::atomic<int> waiters_{0};
};

class AttachmentService final : public v1::AttachmentService::Service {
 public:
  AttachmentService(SiteState* state, Volumes* volumes, Attachments* attachments)
      : state_(*state), volumes_(*volumes), attachments_(*attachments) {}
  grpc::Status PrepareAttachment(grpc::ServerContext* context,
                                 const v1::PrepareAttachmentRequest* request,
                                 v1::PrepareAttachmentResponse* response) override;
  grpc::Status OpenAttachment(grpc::ServerContext* context,
                              const v1::OpenAttachmentRequest* request,
                              grpc::ServerWriter<v1::OpenAttachmentResponse>* writer) override;
  grpc::Status MarkStale(grpc::ServerContext* context, const v1::MarkStaleRequest* request,
                         v1::MarkStaleResponse* response) override;
  grpc::Status ReportFault(grpc::ServerContext* context, const v1::ReportFaultRequest* request,
                           v1::ReportFaultResponse* response) override;
  grpc::Status CloseAttachment(grpc::ServerContext* context,
                               const v1::CloseAttachmentRequest* request,
                               v1::CloseAttachmentResponse* response) override;

 private:
  SiteState& state_;
  Volumes& volumes_;
  Attachments& attachments_;
};

class SiteService final : public v1::SiteService::Service {
 public:
  SiteService(SiteState* state, Inventory* inventory, Volumes* volumes, std::string run_dir);
  grpc::Status GetSite(grpc::ServerContext* context, const v1::GetSiteRequest* request,
                       v1::GetSiteResponse* response) override;

 private:
  SiteState& state_;
  Inventory& inventory_;
  Volumes& volumes_;
  const std::string run_dir_;
  const absl::Time start_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_SERVICES_H_
