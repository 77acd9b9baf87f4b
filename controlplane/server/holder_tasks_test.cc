#include "controlplane/server/holder_tasks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"

namespace braid {
namespace {

// A holder's stream that keeps what it is told.
class FakeWatcher final : public HolderTasks::Watcher {
 public:
  void Hand(const v1::Task& task) override {
    absl::MutexLock lock(&mu_);
    tasks_.push_back(task);
  }
  void End(const absl::Status& why) override {
    absl::MutexLock lock(&mu_);
    end_ = why;
  }
  v1::Task AwaitTask() {
    absl::MutexLock lock(&mu_);
    const auto some = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !tasks_.empty(); };
    if (!mu_.AwaitWithTimeout(absl::Condition(&some), absl::Seconds(10))) return {};
    v1::Task task = tasks_.front();
    tasks_.pop_front();
    return task;
  }
  std::optional<absl::Status> end() {
    absl::MutexLock lock(&mu_);
    return end_;
  }

 private:
  absl::Mutex mu_;
  std::deque<v1::Task> tasks_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

class HolderTasksTest : public testing::Test {
 protected:
  ~HolderTasksTest() override {
    tasks_.Stop();
    if (caller_.joinable()) caller_.join();
  }

  // A caller on a thread of its own, as the server has it.
  void StartReclaim(bool dry_run = false) {
    caller_ = std::thread([this, dry_run] {
      result_ = tasks_.Reclaim(
          volume_, Epoch(1), dry_run,
          [this](const v1::ReclaimReport&) {
            ++progress_;
            return true;
          },
          [this] { return cancelled_.load(); });
    });
  }
  absl::StatusOr<v1::ReclaimReport> Result() {
    caller_.join();
    return result_;
  }
  std::shared_ptr<FakeWatcher> Watch(Epoch epoch = Epoch(1)) {
    auto watcher = std::make_shared<FakeWatcher>();
    EXPECT_TRUE(tasks_.Watch(volume_, epoch, watcher).ok());
    return watcher;
  }
  absl::Status Report(uint64_t task, uint64_t free_bytes, bool done = false,
                      const absl::Status& outcome = absl::OkStatus()) {
    v1::ReclaimReport report;
    report.set_free_bytes(free_bytes);
    return tasks_.Report(volume_, Epoch(1), task, report, done, outcome);
  }

  const Uuid volume_ = Uuid::Random();
  std::atomic<uint64_t> epoch_{1};
  std::atomic<bool> cancelled_{false};
  std::atomic<int> progress_{0};
  HolderTasks tasks_{[this](const Uuid&, Epoch epoch) {
                       return epoch.value() == epoch_ ? absl::OkStatus()
                                                      : absl::FailedPreconditionError("over");
                     },
                     {.for_watcher = absl::Seconds(1), .for_report = absl::Seconds(1)}};
  absl::StatusOr<v1::ReclaimReport> result_;
  std::thread caller_;
};

TEST_F(HolderTasksTest, TaskGoesToTheWatcherAndItsReportsToTheCaller) {
  auto watcher = Watch();
  StartReclaim(/*dry_run=*/true);
  const v1::Task task = watcher->AwaitTask();
  EXPECT_TRUE(task.reclaim().dry_run());
  ASSERT_TRUE(Report(task.id(), 5).ok());
  while (progress_ == 0) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(Report(task.id(), 7, /*done=*/true).ok());
  const auto result = Result();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->free_bytes(), 7u);
  EXPECT_EQ(progress_, 1);  // the last report is the result
  EXPECT_TRUE(absl::IsNotFound(Report(task.id(), 9)));
}

TEST_F(HolderTasksTest, WatcherThatComesALittleLaterGetsTheTask) {
  StartReclaim();
  absl::SleepFor(absl::Milliseconds(100));
  auto watcher = Watch();
  ASSERT_TRUE(Report(watcher->AwaitTask().id(), 1, true).ok());
  EXPECT_TRUE(Result().ok());
}

TEST_F(HolderTasksTest, NobodyWatchingIsTold) {
  StartReclaim();
  EXPECT_TRUE(absl::IsFailedPrecondition(Result().status()));
}

TEST_F(HolderTasksTest, TheHoldersOwnErrorIsTheCallers) {
  auto watcher = Watch();
  StartReclaim();
  const uint64_t id = watcher->AwaitTask().id();
  ASSERT_TRUE(Report(id, 0, true, absl::FailedPreconditionError("bigalloc")).ok());
  EXPECT_EQ(Result().status(), absl::FailedPreconditionError("bigalloc"));
}

TEST_F(HolderTasksTest, BrokenStreamEndsTheTask) {
  auto watcher = Watch();
  StartReclaim();
  const uint64_t id = watcher->AwaitTask().id();
  tasks_.Unwatch(volume_, watcher.get());
  EXPECT_TRUE(absl::IsAborted(Result().status()));
  EXPECT_TRUE(absl::IsNotFound(Report(id, 1, true)));
}

TEST_F(HolderTasksTest, NewerWatcherEndsTheOlderAndItsTask) {
  auto older = Watch();
  StartReclaim();
  older->AwaitTask();
  auto newer = Watch();
  EXPECT_TRUE(absl::IsAborted(Result().status()));
  ASSERT_TRUE(older->end().has_value());
  EXPECT_TRUE(absl::IsAborted(*older->end()));
  tasks_.Unwatch(volume_, older.get());  // its stream ends; that is not the newer's
  EXPECT_FALSE(newer->end().has_value());
  StartReclaim();
  ASSERT_TRUE(Report(newer->AwaitTask().id(), 3, true).ok());
  EXPECT_TRUE(Result().ok());
}

TEST_F(HolderTasksTest, EndOfTheEpochEndsWatcherAndTask) {
  auto watcher = Watch();
  StartReclaim();
  const uint64_t id = watcher->AwaitTask().id();
  epoch_ = 2;
  tasks_.EndEpochs(volume_, Epoch(1));
  EXPECT_TRUE(absl::IsAborted(Result().status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(*watcher->end()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Report(id, 1)));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(tasks_.Watch(volume_, Epoch(1), std::make_shared<FakeWatcher>())));
  EXPECT_FALSE(Watch(Epoch(2))->end().has_value());
}

TEST_F(HolderTasksTest, CallerThatGoesAwayEndsTheTask) {
  auto watcher = Watch();
  StartReclaim();
  const uint64_t id = watcher->AwaitTask().id();
  cancelled_ = true;
  EXPECT_TRUE(absl::IsCancelled(Result().status()));
  EXPECT_TRUE(absl::IsNotFound(Report(id, 1)));
}

TEST_F(HolderTasksTest, SilentHolderIsGivenUp) {
  auto watcher = Watch();
  StartReclaim();
  watcher->AwaitTask();
  const auto result = Result();
  EXPECT_TRUE(absl::IsAborted(result.status()));
  EXPECT_TRUE(absl::StrContains(result.status().message(), "said nothing"));
}

TEST_F(HolderTasksTest, OneTaskAtATime) {
  auto watcher = Watch();
  StartReclaim();
  const uint64_t id = watcher->AwaitTask().id();
  EXPECT_TRUE(absl::IsFailedPrecondition(tasks_
                                             .Reclaim(
                                                 volume_, Epoch(1), false,
                                                 [](const v1::ReclaimReport&) { return true; },
                                                 [] { return false; })
                                             .status()));
  ASSERT_TRUE(Report(id, 1, true).ok());
  EXPECT_TRUE(Result().ok());
}

TEST_F(HolderTasksTest, StopEndsAllAndRefusesWhatComesAfter) {
  auto watcher = Watch();
  StartReclaim();
  watcher->AwaitTask();
  tasks_.Stop();
  EXPECT_TRUE(absl::IsUnavailable(Result().status()));
  EXPECT_TRUE(absl::IsUnavailable(*watcher->end()));
  EXPECT_TRUE(
      absl::IsUnavailable(tasks_.Watch(volume_, Epoch(1), std::make_shared<FakeWatcher>())));
}

}  // namespace
}  // namespace braid
