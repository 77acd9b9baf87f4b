// A site that keeps a few devices and volumes in memory, for tests of the command: real
// gRPC on a Unix socket, made-up answers.
#ifndef BRAID_TOOLS_CLI_FAKE_SITE_H_
#define BRAID_TOOLS_CLI_FAKE_SITE_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "braid/v1/inventory.grpc.pb.h"
#include "braid/v1/site.grpc.pb.h"
#include "braid/v1/volume.grpc.pb.h"

namespace braid::cli {

class FakeSite final : public v1::SiteService::Service,
                       public v1::InventoryService::Service,
                       public v1::VolumeService::Service {
 public:
  // Listens on <directory>/braidd.sock; `directory` is its run directory.
  explicit FakeSite(const std::string& directory);
  ~FakeSite() override { server_->Shutdown(); }

  std::string control() const { return "unix:" + directory_ + "/braidd.sock"; }

  // Serves while the calls below change what it says. A volume asked for with GetVolume
  // becomes ready at the third time; one named "slow", at the thousandth; one
  // named "broken" gets a fault instead, and cannot be deleted.
  void AddVolume(const v1::Volume& volume);
  bool HasVolume(const std::string& name);
  // Makes the site's health a warning.
  void AddWarning(const std::string& warning);
  void AddEvent(const std::string& what);
  void AddFinding(const std::string& finding);
  v1::CreateVolumeRequest last_create();
  v1::AddDeviceRequest last_add();
  v1::ResizeVolumeRequest last_resize();
  v1::ReclaimVolumeRequest last_reclaim();

 private:
  using Context = grpc::ServerContext;
  grpc::Status GetSite(Context*, const v1::GetSiteRequest*, v1::GetSiteResponse*) override;
  grpc::Status AddDevice(Context*, const v1::AddDeviceRequest*, v1::AddDeviceResponse*) override;
  grpc::Status ListDevices(Context*, const v1::ListDevicesRequest*,
                           v1::ListDevicesResponse*) override;
  grpc::Status RemoveDevice(Context*, const v1::RemoveDeviceRequest*,
                            v1::RemoveDeviceResponse*) override;
  grpc::Status ListPools(Context*, const v1::ListPoolsRequest*, v1::ListPoolsResponse*) override;
  grpc::Status CreateVolume(Context*, const v1::CreateVolumeRequest*,
                            v1::CreateVolumeResponse*) override;
  grpc::Status GetVolume(Context*, const v1::GetVolumeRequest*, v1::GetVolumeResponse*) override;
  // Two a page, whatever is asked for.
  grpc::Status ListVolumes(Context*, const v1::ListVolumesRequest*,
                           v1::ListVolumesResponse*) override;
  grpc::Status DeleteVolume(Context*, const v1::DeleteVolumeRequest*,
                            v1::DeleteVolumeResponse*) override;
  // Refuses to shrink below half without allow_data_loss.
  grpc::Status ResizeVolume(Context*, const v1::ResizeVolumeRequest*,
                            v1::ResizeVolumeResponse*) override;
  // Reports a hundred times, 50 milliseconds apart, for a volume named "slow"; else twice. One
  // named "xfs" is refused.
  grpc::Status ReclaimVolume(Context*, const v1::ReclaimVolumeRequest*,
                             grpc::ServerWriter<v1::ReclaimVolumeResponse>*) override;
  grpc::Status CheckPools(Context*, const v1::CheckPoolsRequest*, v1::CheckPoolsResponse*) override;
  // Two messages of one row each.
  grpc::Status GetVolumeMap(Context*, const v1::GetVolumeMapRequest*,
                            grpc::ServerWriter<v1::GetVolumeMapResponse>*) override;

  v1::Volume* Find(const std::string& name);

  const std::string directory_;
  std::mutex mutex_;
  std::map<std::string, v1::Volume> volumes_;
  v1::Device device_;
  v1::CreateVolumeRequest last_create_;
  v1::AddDeviceRequest last_add_;
  v1::ResizeVolumeRequest last_resize_;
  v1::ReclaimVolumeRequest last_reclaim_;
  std::vector<std::string> warnings_, events_, findings_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_FAKE_SITE_H_
