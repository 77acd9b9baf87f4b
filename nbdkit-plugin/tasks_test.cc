// Tasks against an AttachmentService of the test's own, over a real Unix socket.
#include "nbdkit-plugin/tasks.h"

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "nbdkit-plugin/control_call.h"

namespace braid {
namespace {

constexpr uint64_t kVolume = 64 << 20;

// All of it has space; releases count.
class FakeVolume final : public ReclaimVolume {
 public:
  uint64_t size_bytes() const override { return kVolume; }
  uint64_t row_bytes() const override { return 4 << 20; }
  absl::Status Read(uint64_t, absl::Span<char>) override { return absl::OkStatus(); }
  absl::Status Flush() override { return absl::OkStatus(); }
  uint64_t MappedBytes(uint64_t, uint64_t length) override { return length; }
  absl::StatusOr<uint64_t> ReleaseIf(uint64_t, uint64_t length,
                                     absl::FunctionRef<bool()> still_free) override {
    return still_free() ? length : 0;
  }
};

class FakeFileSystem final : public ReclaimFileSystem {
 public:
  FakeFileSystem(std::atomic<bool>* slow, ext4::ReadVolume read)
      : slow_(*slow), read_(std::move(read)) {}
  const std::string& description() const override { return description_; }
  const std::vector<ext4::FileSystem::Extent>& journal() const override { return journal_; }
  uint32_t block_bytes() const override { return 4096; }
  uint32_t group_count() const override { return 8; }
  absl::StatusOr<ext4::FileSystem::View> Look(bool,
                                              absl::FunctionRef<void(uint32_t)> progress) override {
    char byte = 0;
    do {
      progress(3);
      if (absl::Status status = read_(0, absl::MakeSpan(&byte, 1)); !status.ok()) return status;
      absl::SleepFor(absl::Milliseconds(5));
    } while (slow_);
    return ext4::FileSystem::View{.sequence = 1, .groups_total = 8, .free = {{0, 8 << 20}}};
  }

 private:
  std::atomic<bool>& slow_;
  const ext4::ReadVolume read_;
  const std::string description_ = "ext4 (1)";
  const std::vector<ext4::FileSystem::Extent> journal_;
};

class FakeSite final : public v1::AttachmentService::Service {
 public:
  grpc::Status WatchTasks(grpc::ServerContext* context, const v1::WatchTasksRequest* request,
                          grpc::ServerWriter<v1::Task>* writer) override {
    const absl::MutexLock lock(&mu);
    ++watches;
    watched = *request;
    if (!watch_result.ok()) return watch_result;
    while (!context->IsCancelled() && !break_stream) {
      if (!to_send.empty()) {
        writer->Write(to_send.front());
        to_send.erase(to_send.begin());
      }
      changed.WaitWithTimeout(&mu, absl::Milliseconds(10));
    }
    break_stream = false;
    return {grpc::StatusCode::UNAVAILABLE, "braidd stops"};
  }
  grpc::Status ReportTask(grpc::ServerContext*, const v1::ReportTaskRequest* request,
                          v1::ReportTaskResponse*) override {
    const absl::MutexLock lock(&mu);
    if (unknown) return {grpc::StatusCode::NOT_FOUND, "nobody waits"};
    reports.push_back(*request);
    return grpc::Status::OK;
  }

  absl::Mutex mu;
  absl::CondVar changed;
  std::vector<v1::Task> to_send ABSL_GUARDED_BY(mu);
  std::vector<v1::ReportTaskRequest> reports ABSL_GUARDED_BY(mu);
  v1::WatchTasksRequest watched ABSL_GUARDED_BY(mu);
  grpc::Status watch_result ABSL_GUARDED_BY(mu);
  int watches ABSL_GUARDED_BY(mu) = 0;
  bool break_stream ABSL_GUARDED_BY(mu) = false;
  bool unknown ABSL_GUARDED_BY(mu) = false;
};

class TasksTest : public testing::Test {
 protected:
  TasksTest() : watch_(*WriteWatch::Create(kVolume)) {
    std::string pattern = "/tmp/braid-tasks-XXXXXX";
    dir_ = mkdtemp(pattern.data());
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + dir_ + "/sock", grpc::InsecureServerCredentials());
    builder.RegisterService(&site_);
    server_ = builder.BuildAndStart();
    stub_ = v1::AttachmentService::NewStub(MakeControlChannel("unix:" + dir_ + "/sock"));
    reclaimer_ = std::make_unique<Reclaimer>(
        &volume_,
        [this](const ext4::ReadVolume& read, uint64_t) -> absl::StatusOr<FoundFileSystems> {
          FoundFileSystems found;
          if (there_) found.usable.push_back(std::make_shared<FakeFileSystem>(&slow_, read));
          return found;
        },
        watch_.get(), &clients_);
  }
  ~TasksTest() override {
    tasks_ = nullptr;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    std::filesystem::remove_all(dir_);
  }
  void Start() {
    tasks_ = std::make_unique<Tasks>(stub_.get(), reclaimer_.get(),
                                     Tasks::Options{.volume_id = "v",
                                                    .epoch = Epoch(7),
                                                    .log = [this](absl::string_view) { ++lines_; },
                                                    .learn_interval = absl::Milliseconds(50)});
  }
  void Send(uint64_t id, bool reclaim = true) {
    v1::Task task;
    task.set_id(id);
    if (reclaim) task.mutable_reclaim();
    const absl::MutexLock lock(&site_.mu);
    site_.to_send.push_back(task);
    site_.changed.SignalAll();
  }
  // The result of a task; an empty report when there is none within 10 s.
  v1::ReportTaskRequest Result(uint64_t id) {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (absl::Now() < give_up) {
      {
        const absl::MutexLock lock(&site_.mu);
        for (const v1::ReportTaskRequest& report : site_.reports)
          if (report.task_id() == id && report.done()) return report;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return {};
  }
  template <class Fn>
  bool Eventually(Fn&& fn) {
    const absl::Time give_up = absl::Now() + absl::Seconds(10);
    while (absl::Now() < give_up) {
      {
        const absl::MutexLock lock(&site_.mu);
        if (fn()) return true;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }

  std::string dir_;
  FakeSite site_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::AttachmentService::Stub> stub_;
  FakeVolume volume_;
  ClientCount clients_;
  std::unique_ptr<WriteWatch> watch_;
  std::atomic<bool> slow_{false};
  std::atomic<bool> there_{true};
  std::atomic<int> lines_{0};
  std::unique_ptr<Reclaimer> reclaimer_;
  std::unique_ptr<Tasks> tasks_;
};

TEST_F(TasksTest, ReclaimIsRunAndItsResultReported) {
  Start();
  Send(3);
  const v1::ReportTaskRequest result = Result(3);
  EXPECT_EQ(result.volume_id(), "v");
  EXPECT_EQ(result.epoch(), 7U);
  EXPECT_EQ(result.error_code(), 0) << result.error();
  EXPECT_EQ(result.reclaim().released_bytes(), 8U << 20);
  EXPECT_EQ(result.reclaim().file_system(), "ext4 (1)");
  EXPECT_EQ(result.reclaim().groups_done(), 8U);
  const absl::MutexLock lock(&site_.mu);
  EXPECT_EQ(site_.watched.volume_id(), "v");
  EXPECT_EQ(site_.watched.epoch(), 7U);
}

TEST_F(TasksTest, FailureIsReportedInWords) {
  there_ = false;
  Start();
  Send(1);
  const v1::ReportTaskRequest result = Result(1);
  EXPECT_EQ(result.error_code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_FALSE(result.error().empty());
  Send(2, /*reclaim=*/false);
  EXPECT_EQ(Result(2).error_code(), static_cast<int>(absl::StatusCode::kUnimplemented));
}

TEST_F(TasksTest, ProgressIsReportedAndTaskThatNobodyWaitsForIsStopped) {
  slow_ = true;
  Start();
  Send(1);
  EXPECT_TRUE(
      Eventually([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return site_.reports.size() > 1; }));
  {
    const absl::MutexLock lock(&site_.mu);
    EXPECT_FALSE(site_.reports[0].done());
    EXPECT_EQ(site_.reports[1].reclaim().groups_done(), 3U);
    site_.unknown = true;
  }
  absl::SleepFor(absl::Milliseconds(500));
  {
    const absl::MutexLock lock(&site_.mu);
    site_.unknown = false;
    site_.reports.clear();
  }
  slow_ = false;
  Send(2);
  EXPECT_EQ(Result(2).error_code(), 0);
  const absl::MutexLock lock(&site_.mu);
  for (const v1::ReportTaskRequest& report : site_.reports) EXPECT_EQ(report.task_id(), 2U);
}

TEST_F(TasksTest, StreamThatBreaksIsOpenedAgain) {
  Start();
  ASSERT_TRUE(Eventually([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return site_.watches == 1; }));
  {
    const absl::MutexLock lock(&site_.mu);
    site_.break_stream = true;
  }
  ASSERT_TRUE(Eventually([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return site_.watches == 2; }));
  Send(1);
  EXPECT_EQ(Result(1).reclaim().released_bytes(), 8U << 20);
}

TEST_F(TasksTest, EpochThatIsOverEndsTheWatchForGood) {
  {
    const absl::MutexLock lock(&site_.mu);
    site_.watch_result = {grpc::StatusCode::FAILED_PRECONDITION, "epoch 7 is over"};
  }
  Start();
  ASSERT_TRUE(Eventually([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return site_.watches == 1; }));
  absl::SleepFor(absl::Milliseconds(400));
  const absl::MutexLock lock(&site_.mu);
  EXPECT_EQ(site_.watches, 1);
  EXPECT_EQ(lines_, 1);
}

TEST_F(TasksTest, EndStopsATaskUnderWay) {
  slow_ = true;
  Start();
  Send(1);
  ASSERT_TRUE(Eventually([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !site_.reports.empty(); }));
  const absl::Time begun = absl::Now();
  tasks_ = nullptr;
  EXPECT_LT(absl::Now() - begun, absl::Seconds(3));
}

}  // namespace
}  // namespace braid
