// What braidd has for thin volumes and full pools, through gRPC, with a holder played here.
#include <algorithm>
#include <thread>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "controlplane/server/server_fixture.h"

namespace braid {
namespace {

// A row of a volume is a large extent.
constexpr uint64_t kRowUnits = kSmallPerExtent;

class ThinServiceTest : public ServerTest {
 protected:
  v1::Volume CreateThin(const std::string& name, uint64_t size, uint32_t copies = 1) {
    v1::CreateVolumeRequest request;
    request.set_name(name);
    request.set_size_bytes(size);
    request.set_copies(copies);
    request.set_thin(true);
    v1::CreateVolumeResponse response;
    grpc::Status status = Create(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.volume();
  }
  // Locks and opens.
  void Attach(const std::string& name) {
    lock_ = Lock(name, &prepared_);
    grpc::Status status = Open(prepared_.volume_id(), &header_, &runs_);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  template <class Request>
  Request Held() const {
    Request request;
    request.set_volume_id(prepared_.volume_id());
    request.set_epoch(header_.epoch());
    return request;
  }
  grpc::Status Take(uint64_t units, v1::TakeSpaceResponse* response) {
    grpc::ClientContext context;
    auto request = Held<v1::TakeSpaceRequest>();
    request.set_unit_count(units);
    request.set_known_device_count(static_cast<uint32_t>(known_devices_));
    grpc::Status status = attachments_->TakeSpace(&context, request, response);
    known_devices_ += response->devices_size();
    return status;
  }
  // One that there is.
  v1::Grant TakeOne(uint64_t units) {
    v1::TakeSpaceResponse response;
    grpc::Status status = Take(units, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_GT(response.grants_size(), 0);
    return response.grants_size() > 0 ? response.grants(0) : v1::Grant();
  }
  static v1::MapChange Bind(uint64_t first, uint32_t count, const v1::Grant& grant) {
    v1::MapChange change;
    change.set_kind(v1::MapChange::KIND_BIND);
    change.set_first_unit(first);
    change.set_unit_count(count);
    *change.mutable_legs() = grant.legs();
    return change;
  }
  static v1::MapChange Unbind(uint64_t first, uint32_t count) {
    v1::MapChange change;
    change.set_kind(v1::MapChange::KIND_UNBIND);
    change.set_first_unit(first);
    change.set_unit_count(count);
    return change;
  }
  grpc::Status Commit(uint64_t first_sequence, const std::vector<v1::MapChange>& changes,
                      uint64_t* applied = nullptr) {
    grpc::ClientContext context;
    auto request = Held<v1::CommitMapRequest>();
    request.set_first_sequence(first_sequence);
    for (const v1::MapChange& change : changes) *request.add_changes() = change;
    v1::CommitMapResponse response;
    grpc::Status status = attachments_->CommitMap(&context, request, &response);
    if (applied != nullptr) *applied = response.applied_sequence();
    return status;
  }
  grpc::Status Return(const v1::Grant& grant) {
    grpc::ClientContext context;
    auto request = Held<v1::ReturnSpaceRequest>();
    *request.add_grants() = grant;
    v1::ReturnSpaceResponse response;
    return attachments_->ReturnSpace(&context, request, &response);
  }
  grpc::Status Close() {
    grpc::ClientContext context;
    v1::CloseAttachmentResponse response;
    return attachments_->CloseAttachment(&context, Held<v1::CloseAttachmentRequest>(), &response);
  }
  grpc::Status Report(uint64_t task, uint64_t free_bytes, bool done, int32_t error_code = 0) {
    grpc::ClientContext context;
    auto request = Held<v1::ReportTaskRequest>();
    request.set_task_id(task);
    request.mutable_reclaim()->set_free_bytes(free_bytes);
    request.set_done(done);
    request.set_error_code(error_code);
    if (error_code != 0) request.set_error("bigalloc is not understood");
    v1::ReportTaskResponse response;
    return attachments_->ReportTask(&context, request, &response);
  }
  std::unique_ptr<grpc::ClientReader<v1::Task>> Watch(grpc::ClientContext* context) {
    auto reader = attachments_->WatchTasks(context, Held<v1::WatchTasksRequest>());
    reader->WaitForInitialMetadata();  // it watches
    return reader;
  }
  struct Reclaimed {
    grpc::Status status;
    std::vector<v1::ReclaimVolumeResponse> answers;
  };
  Reclaimed Reclaim(const std::string& name, bool dry_run = false) {
    grpc::ClientContext context;
    v1::ReclaimVolumeRequest request;
    request.set_name(name);
    request.set_dry_run(dry_run);
    auto reader = volumes_->ReclaimVolume(&context, request);
    Reclaimed result;
    v1::ReclaimVolumeResponse answer;
    while (reader->Read(&answer)) result.answers.push_back(answer);
    result.status = reader->Finish();
    return result;
  }
  v1::Pool Pool() {
    grpc::ClientContext context;
    v1::ListPoolsResponse response;
    EXPECT_TRUE(inventory_->ListPools(&context, {}, &response).ok());
    EXPECT_EQ(response.pools_size(), 1);
    return response.pools_size() == 1 ? response.pools(0) : v1::Pool();
  }
  v1::CheckPoolsResponse CheckPools() {
    grpc::ClientContext context;
    v1::CheckPoolsResponse response;
    grpc::Status status = inventory_->CheckPools(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::GetSiteResponse Site() {
    grpc::ClientContext context;
    v1::GetSiteResponse response;
    EXPECT_TRUE(site_->GetSite(&context, {}, &response).ok());
    return response;
  }
  grpc::Status Resize(const std::string& name, uint64_t size, bool force = false,
                      bool dry_run = false) {
    grpc::ClientContext context;
    v1::ResizeVolumeRequest request;
    request.set_name(name);
    request.set_size_bytes(size);
    request.set_allow_data_loss(force);
    request.set_dry_run(dry_run);
    v1::ResizeVolumeResponse response;
    return volumes_->ResizeVolume(&context, request, &response);
  }

  UniqueFd lock_;
  v1::PrepareAttachmentResponse prepared_;
  v1::AttachmentHeader header_;
  std::vector<v1::AttachedRun> runs_;
  int known_devices_ = 0;
};

TEST_F(ThinServiceTest, ThinVolumeIsReadyAtOnceAndShowsWhatItWasAskedFor) {
  AddDevices(1, 64 * kMiB);
  v1::CreateVolumeRequest request;
  request.set_name("v");
  request.set_size_bytes(64 * kTiB);
  request.set_thin(true);
  request.set_reserve_bytes(kMiB);
  request.set_on_full(v1::ON_FULL_WAIT);
  request.set_full_timeout_seconds(7);
  v1::CreateVolumeResponse created;
  const grpc::Status status = Create(request, &created);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const v1::Volume volume = Get("v");
  EXPECT_EQ(volume.state(), v1::VOLUME_STATE_READY);
  EXPECT_TRUE(volume.thin());
  EXPECT_EQ(volume.mapped_bytes(), 0u);
  EXPECT_EQ(volume.allocated_bytes(), 0u);
  EXPECT_EQ(volume.reserved_bytes(), kMiB);
  EXPECT_EQ(volume.reserve_bytes(), kMiB);
  EXPECT_EQ(volume.on_full(), v1::ON_FULL_WAIT);
  EXPECT_EQ(volume.full_timeout_seconds(), 7u);
  EXPECT_EQ(Devices()[0].reserved_bytes(), kMiB);
  EXPECT_EQ(Devices()[0].allocated_bytes(), 0u);
  EXPECT_EQ(Pool().reserved_bytes(), kMiB);
  EXPECT_GT(Pool().commitment_ratio(), 1.0);

  request.set_name("w");
  request.set_on_full(static_cast<v1::OnFull>(77));
  EXPECT_EQ(Create(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ThinServiceTest, SpaceIsTakenBoundFoundAgainUnboundAndGivenBack) {
  AddDevices(2, 64 * kMiB);
  CreateThin("v", kGiB, 2);
  Attach("v");
  EXPECT_TRUE(prepared_.thin());
  EXPECT_EQ(header_.applied_sequence(), 0u);
  EXPECT_EQ(header_.grants_size(), 0);
  v1::TakeSpaceResponse taken;
  ASSERT_TRUE(Take(kRowUnits, &taken).ok());
  ASSERT_GE(taken.grants_size(), 1);
  EXPECT_EQ(taken.first_device_index(), 0u);
  EXPECT_EQ(taken.devices_size(), 2);
  const v1::Grant grant = taken.grants(0);
  ASSERT_EQ(grant.legs_size(), 2);
  EXPECT_NE(grant.legs(0).device_index(), grant.legs(1).device_index());

  uint64_t applied = 0;
  grpc::Status status = Commit(1, {Bind(100, 3, grant)}, &applied);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(applied, 1u);
  EXPECT_TRUE(Commit(1, {Bind(100, 3, grant)}, &applied).ok()) << "an answer may be lost";
  EXPECT_EQ(applied, 1u);
  v1::Volume volume = Get("v");
  EXPECT_EQ(volume.mapped_bytes(), 3 * kSmallExtentBytes);
  EXPECT_EQ(volume.allocated_bytes(), 6 * kSmallExtentBytes);
  EXPECT_GT(volume.reserved_bytes(), 0u);

  // The next holder finds the map, and where it stood.
  ASSERT_TRUE(Close().ok());
  lock_.Reset();
  Attach("v");
  EXPECT_EQ(header_.applied_sequence(), 1u);
  EXPECT_EQ(header_.devices_size(), 2);
  ASSERT_EQ(runs_.size(), 2u);
  EXPECT_EQ(runs_[0].first_unit(), 100u);
  EXPECT_EQ(runs_[0].unit_count(), 3u);
  EXPECT_EQ(Get("v").reserved_bytes(), 0u) << "a clean end gives back what was not used";

  ASSERT_TRUE(Commit(2, {Unbind(100, 3)}, &applied).ok());
  EXPECT_EQ(applied, 2u);
  EXPECT_EQ(Get("v").allocated_bytes(), 0u);
  known_devices_ = 2;
  const v1::Grant again = TakeOne(1);
  EXPECT_TRUE(Return(again).ok());
  EXPECT_EQ(Return(again).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Get("v").reserved_bytes(), 0u);
  const v1::CheckPoolsResponse check = CheckPools();
  EXPECT_EQ(check.findings_size(), 0) << check.DebugString();
  EXPECT_EQ(check.device_count(), 2u);
  EXPECT_EQ(check.volume_count(), 1u);
}

TEST_F(ThinServiceTest, ChangesThatDoNotFitAreRefusedWhole) {
  AddDevices(2, 64 * kMiB);
  CreateThin("v", kGiB, 2);
  Attach("v");
  const v1::Grant grant = TakeOne(8);
  const v1::MapChange good = Bind(0, 1, grant);
  const auto refused = [&](const char* what, const v1::MapChange& bad) {
    EXPECT_EQ(Commit(1, {good, bad}).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << what;
    EXPECT_EQ(Get("v").mapped_bytes(), 0u) << what;
  };
  v1::MapChange bad = Unbind(0, 1);
  bad.clear_kind();
  refused("no kind", bad);
  bad.set_kind(static_cast<v1::MapChange::Kind>(9));
  refused("unknown kind", bad);
  bad = Bind(5, 1, grant);
  bad.mutable_legs()->RemoveLast();
  refused("a leg too few", bad);
  bad = Bind(5, 1, grant);
  *bad.add_legs() = grant.legs(0);
  refused("a leg too many", bad);
  bad = Unbind(5, 1);
  *bad.add_legs() = grant.legs(0);
  refused("legs of an unbind", bad);
  bad = Bind(5, 1, grant);
  bad.mutable_legs(0)->set_device_index(70'000);
  refused("device index beyond its type", bad);
  bad.mutable_legs(0)->set_device_index(7);
  refused("device the volume does not have", bad);
  bad = Bind(5, 1, grant);
  bad.mutable_legs(0)->set_device_unit(UINT64_MAX);
  refused("unit that no device has", bad);
  bad = Bind(UINT64_MAX, 1, grant);
  refused("unit that the volume does not have", bad);
  bad = Bind(5, UINT32_MAX, grant);
  refused("too many units", bad);
  bad = Bind(5, 0, grant);
  refused("no units", bad);
  bad = Bind(0, 1, grant);
  refused("unit that has space", bad);
  bad = Bind(5, 1, grant);
  bad.set_column(1);
  refused("column that the volume does not have", bad);
  EXPECT_EQ(Commit(2, {good}).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "a gap";
  EXPECT_EQ(Commit(0, {good}).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Commit(UINT64_MAX, {good, good}).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(
      Commit(1, std::vector<v1::MapChange>(kMaxChangesPerCommit + 1, Unbind(0, 1))).error_code(),
      grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Commit(1, std::vector<v1::MapChange>(kMaxChangesPerCommit, Unbind(0, 1))).ok());

  v1::Grant wrong = grant;
  for (int i = 0; i < 3; ++i) *wrong.add_legs() = grant.legs(0);
  EXPECT_EQ(Return(wrong).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  wrong = grant;
  wrong.set_unit_count(UINT64_MAX);
  EXPECT_EQ(Return(wrong).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::TakeSpaceResponse response;
  EXPECT_EQ(Take(0, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  known_devices_ = 99;
  EXPECT_EQ(Take(1, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(CheckPools().findings_size(), 0);
}

TEST_F(ThinServiceTest, NothingIsDoneForAnEpochThatIsOver) {
  AddDevices(1, 64 * kMiB);
  CreateThin("v", kGiB);
  Attach("v");
  const v1::Grant grant = TakeOne(1);
  ASSERT_TRUE(Close().ok());
  const auto over = grpc::StatusCode::FAILED_PRECONDITION;
  EXPECT_EQ(Commit(1, {Bind(0, 1, grant)}).error_code(), over);
  v1::TakeSpaceResponse response;
  EXPECT_EQ(Take(1, &response).error_code(), over);
  EXPECT_EQ(Return(grant).error_code(), over);
  EXPECT_EQ(Report(1, 0, true).error_code(), over);
  grpc::ClientContext context;
  auto reader = attachments_->WatchTasks(&context, Held<v1::WatchTasksRequest>());
  v1::Task task;
  EXPECT_FALSE(reader->Read(&task));
  EXPECT_EQ(reader->Finish().error_code(), over);
  grpc::ClientContext nonsense;
  reader = attachments_->WatchTasks(&nonsense, {});
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ThinServiceTest, FullPoolAnswersWithoutGrantsAndIsSeen) {
  AddDevices(1, 16 * kMiB);
  CreateThin("v", kGiB);
  Attach("v");
  EXPECT_EQ(Site().health(), v1::SITE_HEALTH_GOOD);
  v1::TakeSpaceResponse taken;
  for (int i = 0; i < 10'000; ++i) {
    grpc::Status status = Take(kRowUnits, &taken);
    ASSERT_TRUE(status.ok()) << status.error_message();
    if (taken.grants().empty()) break;
  }
  EXPECT_EQ(taken.grants_size(), 0);
  const v1::Pool pool = Pool();
  EXPECT_EQ(pool.state(), v1::POOL_STATE_FULL);
  EXPECT_EQ(pool.free_bytes(), 0u);
  EXPECT_EQ(pool.capacity_bytes(), pool.allocated_bytes() + pool.reserved_bytes());
  v1::GetSiteResponse site = Site();
  EXPECT_EQ(site.health(), v1::SITE_HEALTH_CRITICAL);
  ASSERT_GE(site.warnings_size(), 1);
  EXPECT_TRUE(absl::StrContains(site.warnings(0), "pool 'ssd' is full")) << site.warnings(0);
  ASSERT_GE(site.events_size(), 1);
  EXPECT_EQ(site.events(site.events_size() - 1).severity(), v1::SITE_HEALTH_CRITICAL);

  // Another device is space again.
  ASSERT_TRUE(AddDevice(MakeFile("more", 256 * kMiB)).ok());
  ASSERT_TRUE(Take(1, &taken).ok());
  EXPECT_GE(taken.grants_size(), 1);
  EXPECT_EQ(Site().health(), v1::SITE_HEALTH_GOOD);
}

TEST_F(ThinServiceTest, ReclaimIsDoneByTheHolderAndItsNumbersAreShown) {
  AddDevices(2, 64 * kMiB);
  CreateThin("v", kGiB, 2);
  ASSERT_TRUE(Create("thick", kMiB).ok());
  EXPECT_EQ(Reclaim("none").status.error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::Status status = Reclaim("thick").status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "is thick")) << status.error_message();
  status = Reclaim("v").status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "not attached")) << status.error_message();

  Attach("v");
  grpc::ClientContext context;
  auto tasks = Watch(&context);
  Reclaimed result;
  std::thread caller([&] { result = Reclaim("v", /*dry_run=*/true); });
  v1::Task task;
  ASSERT_TRUE(tasks->Read(&task));
  EXPECT_TRUE(task.reclaim().dry_run());
  EXPECT_EQ(Report(task.id() + 1, 0, false).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Report(task.id(), 0, false, /*error_code=*/9).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Report(task.id(), 0, true, /*error_code=*/99).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Report(task.id(), kMiB, false).ok());
  EXPECT_TRUE(Report(task.id(), 2 * kMiB, true).ok());
  caller.join();
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  ASSERT_GE(result.answers.size(), 1u);
  EXPECT_TRUE(result.answers.back().done());
  EXPECT_EQ(result.answers.back().report().free_bytes(), 2 * kMiB);
  EXPECT_EQ(Get("v").reclaimable_bytes(), 4 * kMiB) << "device space, both copies";
  EXPECT_GT(Get("v").reclaimable_unix_seconds(), 0);
  EXPECT_EQ(Pool().reclaimable_bytes(), 4 * kMiB);

  caller = std::thread([&] { result = Reclaim("v"); });
  ASSERT_TRUE(tasks->Read(&task));
  EXPECT_FALSE(task.reclaim().dry_run());
  EXPECT_TRUE(Report(task.id(), 0, true, /*error_code=*/9).ok());
  caller.join();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(result.status.error_message(), "bigalloc is not understood");

  // The holder's end is its stream's.
  caller = std::thread([&] { result = Reclaim("v"); });
  ASSERT_TRUE(tasks->Read(&task));
  context.TryCancel();
  caller.join();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::ABORTED);
  tasks->Finish();

  // So is its clean end.
  grpc::ClientContext other;
  tasks = Watch(&other);
  caller = std::thread([&] { result = Reclaim("v"); });
  ASSERT_TRUE(tasks->Read(&task));
  ASSERT_TRUE(Close().ok());
  caller.join();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_FALSE(tasks->Read(&task));
  EXPECT_EQ(tasks->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ThinServiceTest, ManyWatchersKeepNobodyWaitingAndADaemonThatStopsEndsThem) {
  AddDevices(1, 64 * kMiB);
  CreateThin("v", kGiB);
  Attach("v");
  // Each ends the one before, but its stream is there until that has been seen; and a second
  // channel for each, as data planes have.
  constexpr int kWatchers = 300;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::Task>>> readers;
  for (int i = 0; i < kWatchers; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(Watch(contexts.back().get()));
  }
  const absl::Time start = absl::Now();
  EXPECT_EQ(Get("v").name(), "v");
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
  v1::Task task;
  for (int i = 0; i + 1 < kWatchers; ++i) {
    EXPECT_FALSE(readers[static_cast<size_t>(i)]->Read(&task));
    EXPECT_EQ(readers[static_cast<size_t>(i)]->Finish().error_code(), grpc::StatusCode::ABORTED);
  }
  const absl::Time stop = absl::Now();
  daemon_.reset();
  EXPECT_LT(absl::Now() - stop, absl::Seconds(1)) << "an open stream is not waited for";
  EXPECT_FALSE(readers.back()->Read(&task));
  EXPECT_EQ(readers.back()->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ThinServiceTest, ResizeGrowsShrinksAndRefusesToCutData) {
  AddDevices(1, 64 * kMiB);
  CreateThin("v", 16 * kMiB);
  ASSERT_TRUE(Resize("v", 32 * kMiB, false, /*dry_run=*/true).ok());
  EXPECT_EQ(Get("v").size_bytes(), 16 * kMiB);
  ASSERT_TRUE(Resize("v", kTiB).ok());
  EXPECT_EQ(Get("v").size_bytes(), kTiB);
  EXPECT_EQ(Resize("v", 100).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Resize("w", kMiB).error_code(), grpc::StatusCode::NOT_FOUND);
  Attach("v");
  EXPECT_EQ(Resize("v", 2 * kTiB).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(Commit(1, {Bind(500, 1, TakeOne(1))}).ok());
  ASSERT_TRUE(Close().ok());
  lock_.Reset();
  EXPECT_EQ(Resize("v", 16 * kMiB).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(Resize("v", 16 * kMiB, /*force=*/true).ok());
  EXPECT_EQ(Get("v").size_bytes(), 16 * kMiB);
  EXPECT_EQ(Get("v").allocated_bytes(), 0u);
  EXPECT_EQ(CheckPools().findings_size(), 0);

  ASSERT_TRUE(Create("thick", 8 * kMiB).ok());
  grpc::Status status = Resize("thick", 24 * kMiB);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Get("thick").allocated_bytes(), 24 * kMiB);
  EXPECT_EQ(CheckPools().findings_size(), 0);
}

TEST_F(ThinServiceTest, ThresholdsAreTheOptions) {
  StartDaemon({.pool_low_percent = 30, .pool_critical_percent = 60});
  AddDevices(1, 64 * kMiB);
  EXPECT_EQ(Pool().low_percent(), 30u);
  EXPECT_EQ(Pool().critical_percent(), 60u);
  ASSERT_TRUE(Create("a", 24 * kMiB).ok());
  EXPECT_EQ(Pool().state(), v1::POOL_STATE_LOW);
  EXPECT_EQ(Site().health(), v1::SITE_HEALTH_WARNING);
  ASSERT_TRUE(Create("b", 24 * kMiB).ok());
  EXPECT_EQ(Pool().state(), v1::POOL_STATE_CRITICAL);
  EXPECT_EQ(Site().health(), v1::SITE_HEALTH_CRITICAL);
  // The watch of the pools makes it an event, whoever asks.
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (Site().events_size() == 0 && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(50));
  EXPECT_GE(Site().events_size(), 1);
}

TEST_F(ThinServiceTest, DelayedCommitsTakeTheirTimeAndDoNotHoldUpWhatNeedsNone) {
  StartDaemon({.test_commit_delay_ms = 200});
  AddDevices(1, 64 * kMiB);
  CreateThin("v", kGiB);
  Attach("v");
  const v1::Grant grant = TakeOne(1);
  absl::Time start = absl::Now();
  ASSERT_TRUE(Commit(1, {Bind(0, 1, grant)}).ok());
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
  start = absl::Now();
  EXPECT_TRUE(Commit(1, {Bind(0, 1, grant)}).ok());  // known already: nothing to commit
  EXPECT_EQ(Get("v").mapped_bytes(), kSmallExtentBytes);
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(200));
}

TEST_F(ThinServiceTest, LargeMapComesWhole) {
  AddDevices(1, 256 * kMiB);
  CreateThin("v", kTiB);
  Attach("v");
  // Every second unit, so that none continues its neighbour: more rows than one message has.
  constexpr uint32_t kUnits = 2500;
  uint64_t sequence = 1;
  uint32_t bound = 0;
  while (bound < kUnits) {
    v1::TakeSpaceResponse taken;
    ASSERT_TRUE(Take(kUnits - bound, &taken).ok());
    ASSERT_GE(taken.grants_size(), 1);
    std::vector<v1::MapChange> changes;
    for (const v1::Grant& grant : taken.grants()) {
      for (uint64_t i = 0; i < grant.unit_count() && bound < kUnits; ++i, ++bound) {
        v1::MapChange change = Bind(uint64_t{bound} * 2, 1, grant);
        change.mutable_legs(0)->set_device_unit(grant.legs(0).device_unit() + i);
        changes.push_back(change);
      }
    }
    for (size_t i = 0; i < changes.size(); i += kMaxChangesPerCommit) {
      const size_t end = std::min<size_t>(changes.size(), i + kMaxChangesPerCommit);
      const std::vector<v1::MapChange> part(changes.begin() + static_cast<std::ptrdiff_t>(i),
                                            changes.begin() + static_cast<std::ptrdiff_t>(end));
      ASSERT_TRUE(Commit(sequence, part).ok());
      sequence += part.size();
    }
  }
  ASSERT_TRUE(Close().ok());
  lock_.Reset();
  Attach("v");
  EXPECT_EQ(runs_.size(), kUnits);
  EXPECT_EQ(header_.run_count(), kUnits);
  EXPECT_EQ(Get("v").mapped_bytes(), kUnits * kSmallExtentBytes);
}

}  // namespace
}  // namespace braid
