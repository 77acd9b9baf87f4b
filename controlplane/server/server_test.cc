// braidd's services through gRPC, on real files, in this process.
#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "controlplane/server/server_fixture.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

TEST_F(ServerTest, VolumeIsReadyZeroedListedMappedAndDeleted) {
  AddDevices(2, 64 * kMiB);
  // What was there before must not be seen through the volume.
  std::fstream(dir_ / "d0", std::ios::in | std::ios::out).seekp(8 * kMiB) << "secret";
  v1::CreateVolumeRequest request;
  request.set_name("v0");
  request.set_size_bytes(24 * kMiB);
  request.set_copies(2);
  v1::CreateVolumeResponse created;
  ASSERT_TRUE(Create(request, &created).ok());
  EXPECT_EQ(created.volume().state(), v1::VOLUME_STATE_READY);
  EXPECT_EQ(created.volume().layout(), v1::LAYOUT_MIRRORED);
  EXPECT_EQ(created.chosen_size(), 2);
  EXPECT_EQ(Get("berlin/v0").id(), created.volume().id());
  EXPECT_EQ(Get(created.volume().id()).name(), "v0");

  uint64_t rows = 0;
  uint64_t bytes = 0;
  grpc::ClientContext context;
  v1::GetVolumeMapRequest map_request;
  map_request.set_name("v0");
  auto reader = volumes_->GetVolumeMap(&context, map_request);
  v1::GetVolumeMapResponse message;
  while (reader->Read(&message)) {
    for (const v1::MapRow& row : message.rows()) {
      ++rows;
      bytes += row.length_bytes();
      std::ifstream device(dir_ / row.device(), std::ios::binary);
      device.seekg(static_cast<std::streamoff>(row.device_offset_bytes()));
      std::string content(row.length_bytes(), 'x');
      device.read(content.data(), static_cast<std::streamsize>(content.size()));
      EXPECT_EQ(content.find_first_not_of('\0'), std::string::npos);
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(rows, 2u);
  EXPECT_EQ(bytes, 48 * kMiB);

  ASSERT_TRUE(Delete("v0").ok());
  EXPECT_EQ(Delete("v0").error_code(), grpc::StatusCode::NOT_FOUND);
  for (const v1::Device& device : Devices()) EXPECT_EQ(device.allocated_bytes(), 0u);
}

TEST_F(ServerTest, StateSurvivesARestart) {
  AddDevices(2, 64 * kMiB);
  ASSERT_TRUE(Create("v0", 4 * kMiB, 2).ok());
  const v1::Volume before = Get("v0");
  StartDaemon();
  EXPECT_EQ(Get("v0").SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(Create("v0", kMiB).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServerTest, ListComesInPages) {
  AddDevices(1, 64 * kMiB);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Create(absl::StrCat("v", i), kMiB).ok());
  std::string names;
  v1::ListVolumesRequest request;
  request.set_page_size(2);
  int pages = 0;
  do {
    grpc::ClientContext context;
    v1::ListVolumesResponse response;
    ASSERT_TRUE(volumes_->ListVolumes(&context, request, &response).ok());
    for (const v1::Volume& volume : response.volumes()) absl::StrAppend(&names, volume.name());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(names, "v0v1v2v3v4");
  EXPECT_EQ(pages, 3);
  request.set_page_token("after:../etc");
  grpc::ClientContext context;
  v1::ListVolumesResponse response;
  EXPECT_EQ(volumes_->ListVolumes(&context, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServerTest, DevicesWithDataOrAlreadyInThePoolAreRefused) {
  const std::string ext4 = MakeFile("ext4", 64 * kMiB);
  ASSERT_EQ(std::system(absl::StrCat("/sbin/mkfs.ext4 -q ", ext4, " >/dev/null 2>&1").c_str()), 0);
  grpc::Status status = AddDevice(ext4);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "ext4 file system"))
      << status.error_message();
  EXPECT_TRUE(AddDevice(ext4, /*force=*/true).ok());

  fs::create_symlink(ext4, dir_ / "link");
  fs::create_hard_link(ext4, dir_ / "hard");
  for (const char* same : {"ext4", "link", "hard"}) {
    EXPECT_EQ(AddDevice(dir_ / same).error_code(), grpc::StatusCode::ALREADY_EXISTS) << same;
    EXPECT_EQ(AddDevice(dir_ / same, true).error_code(), grpc::StatusCode::ALREADY_EXISTS) << same;
  }
  fs::copy_file(ext4, dir_ / "copy");
  EXPECT_EQ(AddDevice(dir_ / "copy", true).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(AddDevice(dir_ / "absent").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(AddDevice(dir_).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(AddDevice("/dev/null").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(AddDevice(MakeFile("small", 8 * kMiB - 1)).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Devices().size(), 1u);
}

TEST_F(ServerTest, RemovedDeviceCanBeAddedAgainWithoutForce) {
  AddDevices(1, 64 * kMiB);
  grpc::ClientContext context;
  v1::RemoveDeviceRequest request;
  request.set_name("d0");
  v1::RemoveDeviceResponse response;
  ASSERT_TRUE(inventory_->RemoveDevice(&context, request, &response).ok());
  EXPECT_EQ(response.device().problem(), "");
  EXPECT_TRUE(AddDevice(dir_ / "d0").ok());
}

TEST_F(ServerTest, AttachmentGoesThroughItsLife) {
  AddDevices(2, 64 * kMiB);
  ASSERT_TRUE(Create("v0", 8 * kMiB, 2).ok());
  v1::PrepareAttachmentResponse prepared;
  UniqueFd lock = Lock("berlin/v0", &prepared);
  v1::AttachmentHeader header;
  std::vector<v1::AttachedRun> runs;
  grpc::Status status = Open(prepared.volume_id(), &header, &runs);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(header.epoch(), 1u);
  EXPECT_EQ(header.devices_size(), 2);
  EXPECT_EQ(header.run_count(), runs.size());
  EXPECT_TRUE(header.volume().attachment().alive());
  EXPECT_EQ(Delete("v0").error_code(), grpc::StatusCode::FAILED_PRECONDITION);

  grpc::ClientContext stale_context;
  v1::MarkStaleRequest stale;
  stale.set_volume_id(prepared.volume_id());
  stale.set_epoch(1);
  stale.set_device_index(1);
  v1::MarkStaleResponse marked;
  ASSERT_TRUE(attachments_->MarkStale(&stale_context, stale, &marked).ok());
  grpc::ClientContext map_context;
  v1::GetVolumeMapRequest map_request;
  map_request.set_name("v0");
  auto map = volumes_->GetVolumeMap(&map_context, map_request);
  v1::GetVolumeMapResponse part;
  uint64_t units = 0;
  while (map->Read(&part)) {
    for (const v1::MapRow& row : part.rows()) {
      EXPECT_EQ(row.stale(), row.device_id() == header.devices(1).id());
      units += row.unit_count();
    }
  }
  EXPECT_TRUE(map->Finish().ok());
  EXPECT_EQ(units, uint64_t{2} * 8 * kMiB / kSmallExtentBytes);
  EXPECT_EQ(Get("v0").health(), v1::VOLUME_HEALTH_DEGRADED);
  EXPECT_EQ(Get("v0").stale_bytes(), 8 * kMiB);

  lock.Reset();  // the process died
  EXPECT_TRUE(Get("v0").attachment().held());
  EXPECT_FALSE(Get("v0").attachment().alive());
  EXPECT_EQ(Open(prepared.volume_id(), &header, &runs).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  lock = Lock("v0", &prepared);
  ASSERT_TRUE(Open(prepared.volume_id(), &header, &runs).ok());
  EXPECT_EQ(header.epoch(), 2u);

  v1::CloseAttachmentRequest close_request;
  close_request.set_volume_id(prepared.volume_id());
  v1::CloseAttachmentResponse closed;
  grpc::ClientContext old_context, context, again;
  close_request.set_epoch(1);
  EXPECT_EQ(attachments_->CloseAttachment(&old_context, close_request, &closed).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  close_request.set_epoch(2);
  EXPECT_TRUE(attachments_->CloseAttachment(&context, close_request, &closed).ok());
  EXPECT_TRUE(attachments_->CloseAttachment(&again, close_request, &closed).ok());
  lock.Reset();
  EXPECT_TRUE(Delete("v0").ok());
  EXPECT_FALSE(fs::exists(prepared.lock_path()));
}

TEST_F(ServerTest, HugeSparseVolumeIsReadyAtOnce) {
  AddDevices(2, 4 * kTiB);
  const absl::Time start = absl::Now();
  ASSERT_TRUE(Create("big", 6 * kTiB).ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(Get("big").allocated_bytes(), 6 * kTiB);
}

TEST_F(ServerTest, SiteWarnsOfAMissingDevice) {
  AddDevices(2, 64 * kMiB);
  fs::remove(dir_ / "d1");
  grpc::ClientContext context;
  v1::GetSiteResponse response;
  ASSERT_TRUE(site_->GetSite(&context, {}, &response).ok());
  EXPECT_EQ(response.site().name(), "berlin");
  ASSERT_EQ(response.warnings_size(), 1);
  EXPECT_TRUE(absl::StrContains(response.warnings(0), "'d1' is missing")) << response.warnings(0);
}

TEST_F(ServerTest, SecondDaemonIsRefused) {
  EXPECT_EQ(Daemon::Start(Options(), host_.get()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  DaemonOptions other = Options();
  other.listen = {absl::StrCat("unix:", (dir_ / "other").string())};
  EXPECT_EQ(Daemon::Start(other, host_.get()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace braid
