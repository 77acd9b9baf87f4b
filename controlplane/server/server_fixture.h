// braidd in this process, its services reached through gRPC, its devices real files.
#ifndef BRAID_CONTROLPLANE_SERVER_SERVER_FIXTURE_H_
#define BRAID_CONTROLPLANE_SERVER_SERVER_FIXTURE_H_

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "braid/v1/inventory.grpc.pb.h"
#include "braid/v1/site.grpc.pb.h"
#include "braid/v1/volume.grpc.pb.h"
#include "controlplane/server/daemon.h"
#include "controlplane/server/machine_host.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"

namespace braid {

class ServerTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string form = testing::TempDir() + "/braid-server-XXXXXX";
    ASSERT_NE(mkdtemp(form.data()), nullptr);
    dir_ = form;
    absl::StatusOr<std::unique_ptr<MachineHost>> host = MachineHost::Create();
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    StartDaemon();
  }
  void TearDown() override {
    daemon_.reset();
    std::filesystem::remove_all(dir_);
  }

  DaemonOptions Options() const {
    return {.data_dir = dir_ / "data",
            .site = "berlin",
            .listen = {absl::StrCat("unix:", (dir_ / "sock").string())},
            .run_dir = dir_ / "run",
            .node = "n1"};
  }
  // With the thresholds and the delay of `like`.
  void StartDaemon(const DaemonOptions& like = {}) {
    daemon_.reset();
    DaemonOptions options = Options();
    options.pool_low_percent = like.pool_low_percent;
    options.pool_critical_percent = like.pool_critical_percent;
    options.test_commit_delay_ms = like.test_commit_delay_ms;
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options, host_.get());
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    channel_ = grpc::CreateChannel(Options().listen[0], grpc::InsecureChannelCredentials());
    inventory_ = v1::InventoryService::NewStub(channel_);
    volumes_ = v1::VolumeService::NewStub(channel_);
    attachments_ = v1::AttachmentService::NewStub(channel_);
    site_ = v1::SiteService::NewStub(channel_);
  }

  std::string MakeFile(const std::string& name, uint64_t bytes) const {
    const std::filesystem::path path = dir_ / name;
    std::ofstream(path).close();
    std::filesystem::resize_file(path, bytes);
    return path;
  }
  grpc::Status AddDevice(const std::string& path, bool force = false) {
    grpc::ClientContext context;
    v1::AddDeviceRequest request;
    request.set_path(path);
    request.set_device_class("ssd");
    request.set_force(force);
    v1::AddDeviceResponse response;
    return inventory_->AddDevice(&context, request, &response);
  }
  void AddDevices(int count, uint64_t bytes) {
    for (int i = 0; i < count; ++i) {
      grpc::Status status = AddDevice(MakeFile(absl::StrCat("d", i), bytes));
      ASSERT_TRUE(status.ok()) << status.error_message();
    }
  }
  std::vector<v1::Device> Devices() {
    grpc::ClientContext context;
    v1::ListDevicesResponse response;
    EXPECT_TRUE(inventory_->ListDevices(&context, {}, &response).ok());
    return {response.devices().begin(), response.devices().end()};
  }
  grpc::Status Create(const v1::CreateVolumeRequest& request,
                      v1::CreateVolumeResponse* response = nullptr) {
    grpc::ClientContext context;
    v1::CreateVolumeResponse ignored;
    return volumes_->CreateVolume(&context, request, response != nullptr ? response : &ignored);
  }
  grpc::Status Create(const std::string& name, uint64_t size, uint32_t copies = 1) {
    v1::CreateVolumeRequest request;
    request.set_name(name);
    request.set_size_bytes(size);
    request.set_copies(copies);
    return Create(request);
  }
  grpc::Status Delete(const std::string& name) {
    grpc::ClientContext context;
    v1::DeleteVolumeRequest request;
    request.set_name(name);
    v1::DeleteVolumeResponse response;
    return volumes_->DeleteVolume(&context, request, &response);
  }
  v1::Volume Get(const std::string& name) {
    grpc::ClientContext context;
    v1::GetVolumeRequest request;
    request.set_name(name);
    v1::GetVolumeResponse response;
    grpc::Status status = volumes_->GetVolume(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.volume();
  }

  // As a data plane does it.
  UniqueFd Lock(const std::string& volume, v1::PrepareAttachmentResponse* prepared) {
    grpc::ClientContext context;
    v1::PrepareAttachmentRequest request;
    request.set_volume(volume);
    grpc::Status status = attachments_->PrepareAttachment(&context, request, prepared);
    EXPECT_TRUE(status.ok()) << status.error_message();
    UniqueFd fd(open(prepared->lock_path().c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(flock(fd.get(), LOCK_EX | LOCK_NB), 0);
    return fd;
  }
  grpc::Status Open(const std::string& volume_id, v1::AttachmentHeader* header,
                    std::vector<v1::AttachedRun>* runs) {
    grpc::ClientContext context;
    v1::OpenAttachmentRequest request;
    request.set_volume_id(volume_id);
    request.set_boot_id(host_->BootId().ToString());
    request.set_pid(static_cast<uint64_t>(getpid()));
    auto reader = attachments_->OpenAttachment(&context, request);
    v1::OpenAttachmentResponse message;
    runs->clear();
    while (reader->Read(&message)) {
      if (message.has_header()) *header = message.header();
      runs->insert(runs->end(), message.runs().begin(), message.runs().end());
    }
    return reader->Finish();
  }

  std::filesystem::path dir_;
  std::unique_ptr<MachineHost> host_;
  std::unique_ptr<Daemon> daemon_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InventoryService::Stub> inventory_;
  std::unique_ptr<v1::VolumeService::Stub> volumes_;
  std::unique_ptr<v1::AttachmentService::Stub> attachments_;
  std::unique_ptr<v1::SiteService::Stub> site_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_SERVER_FIXTURE_H_
