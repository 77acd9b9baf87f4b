// An AttachmentService of the tests' own, over a real Unix socket, and what it grants.
#ifndef BRAID_NBDKIT_PLUGIN_ATTACHMENT_FIXTURE_H_
#define BRAID_NBDKIT_PLUGIN_ATTACHMENT_FIXTURE_H_

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "gtest/gtest.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/format/label.h"
#include "nbdkit-plugin/attachment_client.h"

namespace braid {

inline constexpr char kVolumeId[] = "11111111-2222-4333-8444-555555555555";

class FakeAttachments final : public v1::AttachmentService::Service {
 public:
  grpc::Status PrepareAttachment(grpc::ServerContext*, const v1::PrepareAttachmentRequest* request,
                                 v1::PrepareAttachmentResponse* response) override {
    if (request->volume() != "v")
      return {grpc::StatusCode::NOT_FOUND, "there is no volume x;\nsee braid volume list"};
    response->set_volume_id(kVolumeId);
    response->set_lock_path(lock_path);
    response->set_thin(thin);
    return grpc::Status::OK;
  }
  grpc::Status OpenAttachment(grpc::ServerContext*, const v1::OpenAttachmentRequest* request,
                              grpc::ServerWriter<v1::OpenAttachmentResponse>* writer) override {
    opened = *request;
    return on_open(++opens, writer);
  }
  grpc::Status MarkStale(grpc::ServerContext*, const v1::MarkStaleRequest* request,
                         v1::MarkStaleResponse* response) override {
    marked = *request;
    return on_mark(++marks, response);
  }
  grpc::Status ReportFault(grpc::ServerContext*, const v1::ReportFaultRequest* request,
                           v1::ReportFaultResponse*) override {
    fault = *request;
    return grpc::Status::OK;
  }
  grpc::Status CommitMap(grpc::ServerContext*, const v1::CommitMapRequest* request,
                         v1::CommitMapResponse* response) override {
    return on_commit(*request, response);
  }
  grpc::Status TakeSpace(grpc::ServerContext* context, const v1::TakeSpaceRequest* request,
                         v1::TakeSpaceResponse* response) override {
    return on_take(context, *request, response);
  }
  grpc::Status ReturnSpace(grpc::ServerContext*, const v1::ReturnSpaceRequest* request,
                           v1::ReturnSpaceResponse*) override {
    returned.push_back(*request);
    return grpc::Status::OK;
  }
  grpc::Status CloseAttachment(grpc::ServerContext*, const v1::CloseAttachmentRequest* request,
                               v1::CloseAttachmentResponse*) override {
    closed.push_back(request->epoch());
    return grpc::Status::OK;
  }

  std::string lock_path;
  bool thin = false;
  std::function<grpc::Status(int, grpc::ServerWriter<v1::OpenAttachmentResponse>*)> on_open;
  std::function<grpc::Status(int, v1::MarkStaleResponse*)> on_mark;
  std::function<grpc::Status(const v1::CommitMapRequest&, v1::CommitMapResponse*)> on_commit;
  std::function<grpc::Status(grpc::ServerContext*, const v1::TakeSpaceRequest&,
                             v1::TakeSpaceResponse*)>
      on_take;
  std::vector<v1::ReturnSpaceRequest> returned;
  v1::OpenAttachmentRequest opened;
  v1::MarkStaleRequest marked;
  v1::ReportFaultRequest fault;
  std::vector<uint64_t> closed;
  std::atomic<int> opens{0};
  std::atomic<int> marks{0};
};

// A mirror of 10 MiB: three extents on each of two devices.
inline v1::OpenAttachmentResponse MirrorGrant(uint64_t epoch) {
  v1::OpenAttachmentResponse message;
  v1::AttachmentHeader* header = message.mutable_header();
  header->set_epoch(epoch);
  header->set_run_count(2);
  v1::Volume* volume = header->mutable_volume();
  volume->set_id(kVolumeId);
  volume->set_name("v");
  volume->set_site("s1");
  volume->set_size_bytes(10 * kMiB);
  volume->set_stripes(1);
  volume->set_copies(2);
  for (uint32_t leg = 0; leg < 2; ++leg) {
    v1::AttachedDevice* device = header->add_devices();
    device->set_id(absl::StrCat("00000000-0000-4000-8000-00000000000", leg));
    device->set_name(absl::StrCat("d", leg));
    device->set_path(absl::StrCat("/dev/d", leg));
    device->set_size_bytes(kGiB);
    v1::AttachedRun* run = message.add_runs();
    run->set_leg(leg);
    run->set_unit_count(uint64_t{3} * kSmallPerExtent);
    run->set_device_index(leg);
    run->set_device_unit(64);
  }
  return message;
}

// A thin volume of 1 GiB, one copy, nothing mapped, no devices.
inline v1::OpenAttachmentResponse ThinGrant(uint64_t epoch) {
  v1::OpenAttachmentResponse message;
  v1::AttachmentHeader* header = message.mutable_header();
  header->set_epoch(epoch);
  v1::Volume* volume = header->mutable_volume();
  volume->set_id(kVolumeId);
  volume->set_name("v");
  volume->set_site("s1");
  volume->set_size_bytes(kGiB);
  volume->set_stripes(1);
  volume->set_copies(1);
  volume->set_thin(true);
  return message;
}

// A file of `bytes` at `path` with both copies of a label: a device as a grant names it.
inline v1::AttachedDevice MakeLabelledFile(const std::string& path, uint64_t bytes) {
  Label label;
  label.device = Uuid::Random();
  label.cluster = Uuid::Random();
  label.site = "s1";
  label.device_name = "d";
  label.device_class = "ssd";
  label.device_bytes = bytes;
  label.data_bytes = bytes - kLabelDataOffset;
  label.sequence = 1;
  std::ofstream(path).close();
  std::filesystem::resize_file(path, bytes);
  const std::string encoded = EncodeLabel(label);
  for (const uint64_t offset : kLabelOffsets) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(encoded.data(), static_cast<std::streamsize>(encoded.size()));
  }
  v1::AttachedDevice device;
  device.set_id(label.device.ToString());
  device.set_name("d");
  device.set_path(path);
  device.set_size_bytes(bytes);
  return device;
}

// `count` units from `unit` of one device.
inline void AddGrant(google::protobuf::RepeatedPtrField<v1::Grant>* grants, uint32_t device,
                     uint64_t unit, uint64_t count) {
  v1::Grant* const grant = grants->Add();
  grant->set_unit_count(count);
  v1::UnitPlace* const leg = grant->add_legs();
  leg->set_device_index(device);
  leg->set_device_unit(unit);
}

// A client's surroundings, and the service it asks.
class AttachmentFixture : public testing::Test {
 protected:
  AttachmentFixture() {
    std::string pattern = "/tmp/braid-client-XXXXXX";
    dir_ = mkdtemp(pattern.data());
    service_.lock_path = dir_ + "/lock";
    std::ofstream(service_.lock_path).close();
    service_.on_open = [](int attempt, auto* writer) {
      writer->Write(MirrorGrant(static_cast<uint64_t>(attempt)));
      return grpc::Status::OK;
    };
    service_.on_mark = [](int, auto*) { return grpc::Status::OK; };
  }
  ~AttachmentFixture() override {
    StopServer();
    std::filesystem::remove_all(dir_);
  }

  void StartServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + dir_ + "/sock", grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void StopServer() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  absl::StatusOr<std::unique_ptr<AttachmentClient>> Take(absl::Duration timeout = absl::Seconds(20),
                                                         const std::string& volume = "v",
                                                         bool read_only = false) {
    return AttachmentClient::Take({.volume = volume,
                                   .target = "unix:" + dir_ + "/sock",
                                   .control = "unix:" + dir_ + "/sock",
                                   .timeout = timeout,
                                   .read_only = read_only,
                                   .close_timeout = absl::Milliseconds(500)},
                                  {.log =
                                       [this](absl::string_view line) {
                                         const absl::MutexLock lock(&mu_);
                                         lines_.emplace_back(line);
                                       },
                                   .sleep =
                                       [this](absl::Duration d) {
                                         absl::SleepFor(d);
                                         return !shut_down_;
                                       }});
  }
  std::unique_ptr<AttachmentClient> MustTake() {
    absl::StatusOr<std::unique_ptr<AttachmentClient>> client = Take();
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }
  // Whether somebody else could have the lock now.
  bool LockIsFree() const {
    const UniqueFd fd(open(service_.lock_path.c_str(), O_RDWR | O_CLOEXEC));
    return flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
  }
  UniqueFd HoldLock() const {
    UniqueFd fd(open(service_.lock_path.c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(flock(fd.get(), LOCK_EX | LOCK_NB), 0);
    return fd;
  }

  std::string dir_;
  FakeAttachments service_;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> shut_down_{false};
  absl::Mutex mu_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ATTACHMENT_FIXTURE_H_
