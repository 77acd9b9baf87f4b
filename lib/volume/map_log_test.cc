#include "lib/volume/map_log.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/unique_fd.h"

namespace braid {
namespace {

using Kind = MapChange::Kind;
using Pass = RequestGate::Pass;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr uint64_t kRing = AttachmentJournal::kChanges;

// An authority that a test can watch, hold up and turn away.
class LogAuthority final : public MapAuthority {
 public:
  struct Call {
    uint64_t first = 0;
    std::vector<MapChange> changes;
  };

  absl::Status CommitMap(uint64_t first, absl::Span<const MapChange> changes) override {
    MutexLock l(&mu_);
    calls_.push_back({first, {changes.begin(), changes.end()}});
    changed_.SignalAll();
    while (held_up_) changed_.Wait(&mu_);
    if (refusal_.ok()) answered_ = first + changes.size() - 1;
    return refusal_;
  }
  absl::Status MarkStale(DeviceIndex, absl::string_view) override { return absl::OkStatus(); }
  void ReportFault(absl::string_view) override {}
  absl::StatusOr<Space> TakeSpace(uint64_t) override {
    return absl::ResourceExhaustedError("none");
  }
  void ReturnSpace(const std::vector<Grant>&) override {}

  // Answers nothing until told otherwise, as when it cannot be reached.
  void HoldUp(bool yes) {
    MutexLock l(&mu_);
    held_up_ = yes;
    changed_.SignalAll();
  }
  void Refuse(absl::Status refusal) {
    MutexLock l(&mu_);
    refusal_ = std::move(refusal);
  }
  void AwaitCalls(size_t count) {
    MutexLock l(&mu_);
    while (calls_.size() < count) changed_.Wait(&mu_);
  }
  std::vector<Call> calls() {
    MutexLock l(&mu_);
    return calls_;
  }
  // The last change whose commit has been answered.
  uint64_t answered() {
    MutexLock l(&mu_);
    return answered_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<Call> calls_ ABSL_GUARDED_BY(mu_);
  uint64_t answered_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  bool held_up_ ABSL_GUARDED_BY(mu_) = false;
};

// A mirror of two on devices 1 and 2.
MapChange ChangeOf(uint64_t number, Kind kind = Kind::kBind) {
  MapChange change{.kind = kind, .first = ColumnUnit(number), .count = 1};
  if (kind == Kind::kUnbind) return change;
  change.legs[0] = {.device = DeviceIndex(1), .unit = DeviceUnit(number)};
  change.legs[1] = {.device = DeviceIndex(2), .unit = DeviceUnit(number)};
  return change;
}

// Something that another thread does.
template <class T>
bool Ends(const std::future<T>& done, milliseconds patience = seconds(30)) {
  return done.wait_for(patience) == std::future_status::ready;
}
template <class T>
bool Waits(const std::future<T>& done) {
  return !Ends(done, milliseconds(30));
}
template <class Fn>
auto Async(Fn fn) {
  return std::async(std::launch::async, std::move(fn));
}

class MapLogTest : public testing::Test {
 protected:
  // As the next holder.
  void Start(uint64_t applied = 0) {
    log_.reset();
    journal_ = AttachmentJournal::Open(file_.get(), boot_, true).value();
    journal_->Begin(++epoch_, true);
    log_ = std::make_unique<MapLog>(journal_.get(), &authority_, &gate_, applied,
                                    [this](const absl::Status& status) {
                                      ++stops_;
                                      if (on_stop_) on_stop_(status);
                                    });
  }
  void End() { log_.reset(); }
  void Note(uint64_t count, Kind kind = Kind::kBind) {
    for (; count > 0; --count) log_->Note(ChangeOf(log_->noted() + 1, kind));
  }
  std::future<absl::Status> Await(uint64_t number) {
    return Async([this, number] { return log_->AwaitCommitted(number); });
  }
  void ExpectCall(const LogAuthority::Call& call, uint64_t first, uint64_t last) {
    EXPECT_EQ(call.first, first);
    ASSERT_EQ(call.changes.size(), last - first + 1);
    for (uint64_t n = first; n <= last; ++n) EXPECT_EQ(call.changes[n - first], ChangeOf(n));
  }

  const UniqueFd file_{memfd_create("braid-journal", MFD_CLOEXEC)};
  const Uuid boot_ = Uuid::Random();
  Epoch epoch_;
  RequestGate gate_;
  LogAuthority authority_;
  std::unique_ptr<AttachmentJournal> journal_;
  std::atomic<int> stops_{0};
  std::function<void(const absl::Status&)> on_stop_;
  std::unique_ptr<MapLog> log_;
};

TEST_F(MapLogTest, CommitsWhatGathersInGroupsAndInOrder) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(MapLog::kGroup + 9);
  EXPECT_EQ(log_->committed(), 0u);
  authority_.HoldUp(false);
  EXPECT_TRUE(log_->AwaitCommitted(MapLog::kGroup + 10).ok());
  const auto calls = authority_.calls();
  ASSERT_EQ(calls.size(), 3u);
  ExpectCall(calls[0], 1, 1);
  ExpectCall(calls[1], 2, MapLog::kGroup + 1);
  ExpectCall(calls[2], MapLog::kGroup + 2, MapLog::kGroup + 10);
  EXPECT_EQ(log_->committed(), MapLog::kGroup + 10);
}

TEST_F(MapLogTest, ACommitIsAwaitedUntilTheAuthorityAnswers) {
  Start();
  EXPECT_TRUE(log_->AwaitCommitted(0).ok());
  authority_.HoldUp(true);
  Note(2);
  std::future<absl::Status> first = Await(1), second = Await(2);
  authority_.AwaitCalls(1);
  EXPECT_TRUE(Waits(first));
  EXPECT_TRUE(Waits(second));
  authority_.HoldUp(false);
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(second.get().ok());
}

// Every wait ends behind the answer that it is for, whichever change the thread is at.
TEST_F(MapLogTest, NoCommitIsAwaitedInVain) {
  Start();
  const uint64_t seed = TestSeed();
  constexpr uint64_t kChanges = 4000;
  std::atomic<int> early{0};
  Mutex map_mu;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      while (true) {
        uint64_t number = 0;
        {
          MutexLock l(&map_mu);
          if (log_->noted() >= kChanges) return;
          number = log_->Note(
              ChangeOf(log_->noted() + 1, random() % 8 == 0 ? Kind::kUnbind : Kind::kBind));
        }
        if (random() % 2 == 0) continue;
        if (!log_->AwaitCommitted(number).ok() || authority_.answered() < number) ++early;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(log_->AwaitCommitted(kChanges).ok());
  EXPECT_EQ(early, 0);
  uint64_t next = 1;
  for (const LogAuthority::Call& call : authority_.calls()) {
    EXPECT_EQ(call.first, next);
    next += call.changes.size();
  }
  EXPECT_EQ(next, kChanges + 1);
}

TEST_F(MapLogTest, GoesOnFromWhatTheOneBeforeNoted) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(9);
  authority_.Refuse(absl::FailedPreconditionError("dead"));
  authority_.HoldUp(false);
  End();
  authority_.Refuse(absl::OkStatus());
  Start(4);
  EXPECT_EQ(log_->noted(), 10u);
  EXPECT_TRUE(log_->AwaitCommitted(10).ok());
  ASSERT_EQ(authority_.calls().size(), 2u);
  ExpectCall(authority_.calls()[1], 5, 10);
  EXPECT_EQ(log_->Note(ChangeOf(11)), 11u);
}

TEST_F(MapLogTest, CountsOnFromTheAuthorityWhenTheJournalIsNew) {
  Start(70);
  EXPECT_EQ(log_->noted(), 70u);
  EXPECT_EQ(log_->committed(), 70u);
  EXPECT_TRUE(log_->AwaitCommitted(70).ok());
  EXPECT_EQ(log_->Note(ChangeOf(71)), 71u);
  EXPECT_TRUE(log_->AwaitCommitted(71).ok());
  ASSERT_EQ(authority_.calls().size(), 1u);
  ExpectCall(authority_.calls()[0], 71, 71);
}

TEST_F(MapLogTest, SendsWhatFreesSpaceOnlyWhenEarlierRequestsHaveEnded) {
  Start();
  uint64_t number = 0;
  for (const Kind kind : {Kind::kUnbind, Kind::kMove}) {
    auto read = std::make_unique<Pass>(&gate_, RequestGate::Kind::kRead, 0, 1);
    // A bind takes nothing from anybody.
    Note(1);
    EXPECT_TRUE(log_->AwaitCommitted(++number).ok());
    Note(1, kind);
    Note(1);
    number += 2;
    std::future<absl::Status> freed = Await(number);
    EXPECT_TRUE(Waits(freed));
    EXPECT_LT(log_->committed(), number - 1);
    const size_t calls = authority_.calls().size();
    // One that begins now sees the map as it is now.
    Pass later(&gate_, RequestGate::Kind::kRead, 0, 1);
    EXPECT_EQ(authority_.calls().size(), calls);
    read.reset();
    EXPECT_TRUE(freed.get().ok());
  }
}

TEST_F(MapLogTest, StopsWhenItIsRefused) {
  Start();
  authority_.HoldUp(true);
  // What is called then may ask the log whatever it likes.
  std::promise<absl::Status> told;
  on_stop_ = [&](const absl::Status& status) {
    EXPECT_EQ(log_->AwaitCommitted(log_->noted()), status);
    told.set_value(status);
  };
  Note(1);
  std::future<absl::Status> committed = Await(1);
  authority_.AwaitCalls(1);
  Note(kRing - 1);
  auto room = Async([this] { return log_->AwaitRoom(1); });
  auto stale = Async([this] { return log_->MarkStale(DeviceIndex(1), 2); });
  EXPECT_TRUE(Waits(room));
  EXPECT_TRUE(Waits(stale));
  const absl::Status refusal = absl::FailedPreconditionError("the epoch is over");
  authority_.Refuse(refusal);
  authority_.HoldUp(false);
  EXPECT_EQ(committed.get(), refusal);
  EXPECT_EQ(room.get(), refusal);
  EXPECT_EQ(stale.get(), refusal);
  EXPECT_EQ(told.get_future().get(), refusal);
  EXPECT_EQ(log_->AwaitCommitted(2), refusal);
  EXPECT_EQ(log_->committed(), 0u);
  End();
  EXPECT_EQ(stops_, 1);
  EXPECT_EQ(authority_.calls().size(), 1u);
}

TEST_F(MapLogTest, StopsWhenTheJournalIsDamagedUnderIt) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(3);
  const uint8_t no_kind = 9;
  ASSERT_EQ(pwrite(file_.get(), &no_kind, 1, 16704 + 3 * 64 + 16), 1);
  authority_.HoldUp(false);
  EXPECT_EQ(log_->AwaitCommitted(4).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(log_->committed(), 1u);
}

TEST_F(MapLogTest, WaitsForRoomWhenTheJournalIsFull) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(kRing - 1);
  EXPECT_FALSE(log_->HasRoom(1));
  auto room = Async([this] { return log_->AwaitRoom(2); });
  EXPECT_TRUE(Waits(room));
  authority_.HoldUp(false);
  EXPECT_TRUE(room.get().ok());
  EXPECT_TRUE(log_->HasRoom(2));
  EXPECT_TRUE(log_->AwaitCommitted(kRing).ok());
  EXPECT_TRUE(log_->HasRoom(kRing));
  EXPECT_FALSE(log_->HasRoom(kRing + 1));
  EXPECT_EQ(log_->AwaitRoom(kRing + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(log_->HasRoom(UINT64_MAX));
  Note(kRing);
  EXPECT_TRUE(log_->AwaitCommitted(2 * kRing).ok());
}

TEST_F(MapLogTest, EndsWaitsForRoomAtAShutdown) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(kRing - 1);
  auto room = Async([this] { return log_->AwaitRoom(1); });
  std::future<absl::Status> committed = Await(kRing);
  EXPECT_TRUE(Waits(room));
  const absl::Status ended = absl::CancelledError("shut down");
  log_->EndWaits(ended);
  EXPECT_EQ(room.get(), ended);
  EXPECT_EQ(log_->AwaitRoom(1), ended);
  EXPECT_TRUE(Waits(committed));
  authority_.HoldUp(false);
  EXPECT_TRUE(committed.get().ok());
}

TEST_F(MapLogTest, LeavesWhatIsNotCommittedInTheJournal) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);
  Note(5);
  auto end = Async([this] { End(); });
  EXPECT_TRUE(Waits(end));
  authority_.HoldUp(false);
  end.get();
  EXPECT_EQ(authority_.calls().size(), 1u);
  EXPECT_EQ(stops_, 0);
  const auto next = AttachmentJournal::Open(file_.get(), boot_, true).value();
  EXPECT_EQ(next->past()->ChangesAfter(1)->size(), 5u);
}

TEST_F(MapLogTest, MarksAFailedLegInAllThatIsNotCommitted) {
  Start();
  authority_.HoldUp(true);
  Note(1);
  authority_.AwaitCalls(1);  // on its way, in sync
  Note(1);
  Note(1, Kind::kUnbind);
  Note(1);
  auto stale = Async([this] { return log_->MarkStale(DeviceIndex(1), 2); });
  EXPECT_TRUE(Waits(stale)) << "the authority has yet to answer what is on its way";
  authority_.HoldUp(false);
  EXPECT_TRUE(stale.get().ok());
  EXPECT_TRUE(log_->AwaitCommitted(4).ok());
  EXPECT_TRUE(log_->MarkStale(DeviceIndex(1), 2).ok());
  const auto calls = authority_.calls();
  ASSERT_EQ(calls.size(), 2u);
  ExpectCall(calls[0], 1, 1);
  for (const size_t i : {size_t{0}, size_t{2}}) {
    EXPECT_TRUE(calls[1].changes[i].legs[0].stale);
    EXPECT_FALSE(calls[1].changes[i].legs[1].stale);
  }
  EXPECT_EQ(calls[1].changes[1], ChangeOf(3, Kind::kUnbind));
}

// A request whose leg fails is inside a pass, for which the thread waits before it sends an
// unbind; the bind behind that is not committed, and still the request must go on.
TEST_F(MapLogTest, MarksAFailedLegFromWithinAPass) {
  Start();
  auto pass = std::make_unique<Pass>(&gate_, RequestGate::Kind::kChange, 0, 1);
  Note(1, Kind::kUnbind);
  Note(1);
  std::future<absl::Status> committed = Await(2);
  EXPECT_TRUE(Waits(committed));
  auto stale = Async([this] { return log_->MarkStale(DeviceIndex(2), 2); });
  ASSERT_TRUE(Ends(stale));
  EXPECT_TRUE(stale.get().ok());
  EXPECT_TRUE(Waits(committed));
  pass.reset();
  EXPECT_TRUE(committed.get().ok());
  EXPECT_TRUE(authority_.calls().back().changes.back().legs[1].stale);
}

}  // namespace
}  // namespace braid
