// The gRPC services: they turn messages into calls of core/ and answers into messages.
// What each call does and refuses is said in controlplane/proto.
//
// Every call but WatchTasks runs on a thread of the synchronous server, of which there are
// kMaxThreads; past that gRPC refuses a call with RESOURCE_EXHAUSTED. So that callers who wait
// for their volumes, for a reclaim, or for space that is being zeroed can never keep a data
// plane from reporting a lost copy, each kind of them has its own bound below that.
// WatchTasks, of which there is one for each attached thin volume, takes no thread
// (task_stream.h).
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
#include "controlplane/core/pools.h"
#include "controlplane/core/spaces.h"
#include "controlplane/core/volumes.h"
#include "controlplane/server/holder_tasks.h"

namespace braid {

// A thousand volumes may each have a CommitMap under way, which take their turns at the store;
// a thread that waits costs its stack's few pages.
inline constexpr int kMaxThreads = 1280;
inline constexpr int kMaxWaiters = 64;   // CreateVolume, ResizeVolume
inline constexpr int kMaxReclaims = 64;  // ReclaimVolume
inline constexpr int kMaxTakers = 64;    // TakeSpace
// Of 64 bytes and less, so far below the 1 MiB of a request.
inline constexpr int kMaxChangesPerCommit = 4096;
inline constexpr int kMaxGrantsPerReturn = 4096;
// Rows in one message of a stream: below 1 MiB with the longest names.
inline constexpr size_t kRowsPerMessage = 4096;

class InventoryService final : public v1::InventoryService::Service {
 public:
  InventoryService(SiteState* state, Inventory* inventory, Pools* pools)
      : state_(*state), inventory_(*inventory), pools_(*pools) {}
  grpc::Status AddDevice(grpc::ServerContext* context, const v1::AddDeviceRequest* request,
                         v1::AddDeviceResponse* response) override;
  grpc::Status ListDevices(grpc::ServerContext* context, const v1::ListDevicesRequest* request,
                           v1::ListDevicesResponse* response) override;
  grpc::Status RemoveDevice(grpc::ServerContext* context, const v1::RemoveDeviceRequest* request,
                            v1::RemoveDeviceResponse* response) override;
  grpc::Status ListPools(grpc::ServerContext* context, const v1::ListPoolsRequest* request,
                         v1::ListPoolsResponse* response) override;
  grpc::Status CheckPools(grpc::ServerContext* context, const v1::CheckPoolsRequest* request,
                          v1::CheckPoolsResponse* response) override;

 private:
  SiteState& state_;
  Inventory& inventory_;
  Pools& pools_;
};

class VolumeService final : public v1::VolumeService::Service {
 public:
  VolumeService(SiteState* state, Volumes* volumes, Pools* pools, HolderTasks* tasks)
      : state_(*state), volumes_(*volumes), pools_(*pools), tasks_(*tasks) {}
  grpc::Status CreateVolume(grpc::ServerContext* context, const v1::CreateVolumeRequest* request,
                            v1::CreateVolumeResponse* response) override;
  grpc::Status GetVolume(grpc::ServerContext* context, const v1::GetVolumeRequest* request,
                         v1::GetVolumeResponse* response) override;
  grpc::Status ListVolumes(grpc::ServerContext* context, const v1::ListVolumesRequest* request,
                           v1::ListVolumesResponse* response) override;
  grpc::Status DeleteVolume(grpc::ServerContext* context, const v1::DeleteVolumeRequest* request,
                            v1::DeleteVolumeResponse* response) override;
  grpc::Status ResizeVolume(grpc::ServerContext* context, const v1::ResizeVolumeRequest* request,
                            v1::ResizeVolumeResponse* response) override;
  grpc::Status ReclaimVolume(grpc::ServerContext* context, const v1::ReclaimVolumeRequest* request,
                             grpc::ServerWriter<v1::ReclaimVolumeResponse>* writer) override;
  grpc::Status GetVolumeMap(grpc::ServerContext* context, const v1::GetVolumeMapRequest* request,
                            grpc::ServerWriter<v1::GetVolumeMapResponse>* writer) override;

 private:
  v1::Volume Shown(const VolumeStatus& volume) const;

  SiteState& state_;
  Volumes& volumes_;
  Pools& pools_;
  HolderTasks& tasks_;
  std::atomic<int> waiters_{0};
  std::atomic<int> reclaims_{0};
};

class AttachmentService final
    : public v1::AttachmentService::WithCallbackMethod_WatchTasks<v1::AttachmentService::Service> {
 public:
  AttachmentService(SiteState* state, Volumes* volumes, Attachments* attachments, Spaces* spaces,
                    HolderTasks* tasks)
      : state_(*state),
        volumes_(*volumes),
        attachments_(*attachments),
        spaces_(*spaces),
        tasks_(*tasks) {}
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
  // thin_service.cc
  grpc::Status CommitMap(grpc::ServerContext* context, const v1::CommitMapRequest* request,
                         v1::CommitMapResponse* response) override;
  grpc::Status TakeSpace(grpc::ServerContext* context, const v1::TakeSpaceRequest* request,
                         v1::TakeSpaceResponse* response) override;
  grpc::Status ReturnSpace(grpc::ServerContext* context, const v1::ReturnSpaceRequest* request,
                           v1::ReturnSpaceResponse* response) override;
  grpc::ServerWriteReactor<v1::Task>* WatchTasks(grpc::CallbackServerContext* context,
                                                 const v1::WatchTasksRequest* request) override;
  grpc::Status ReportTask(grpc::ServerContext* context, const v1::ReportTaskRequest* request,
                          v1::ReportTaskResponse* response) override;

 private:
  SiteState& state_;
  Volumes& volumes_;
  Attachments& attachments_;
  Spaces& spaces_;
  HolderTasks& tasks_;
  std::atomic<int> takers_{0};
};

class SiteService final : public v1::SiteService::Service {
 public:
  SiteService(SiteState* state, Inventory* inventory, Volumes* volumes, Pools* pools,
              std::string run_dir);
  grpc::Status GetSite(grpc::ServerContext* context, const v1::GetSiteRequest* request,
                       v1::GetSiteResponse* response) override;

 private:
  SiteState& state_;
  Inventory& inventory_;
  Volumes& volumes_;
  Pools& pools_;
  const std::string run_dir_;
  const absl::Time start_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_SERVICES_H_
