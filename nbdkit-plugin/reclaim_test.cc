// The reclaim against a volume and a file system of the test's own.
#include "nbdkit-plugin/reclaim.h"

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "lib/base/units.h"

namespace braid {
namespace {

constexpr uint64_t kVolume = 64 * kMiB;
constexpr uint64_t kUnit = 64 * kKiB;
constexpr uint64_t kJournal = 60 * kMiB;
constexpr uint32_t kBlock = 4096;
using Extent = ext4::FileSystem::Extent;
using View = ext4::FileSystem::View;

// Units of 64 KiB that have space, one column.
class FakeVolume final : public ReclaimVolume {
 public:
  FakeVolume() {
    for (uint64_t unit = 0; unit < kVolume / kUnit; ++unit) mapped.insert(unit);
  }
  uint64_t size_bytes() const override { return kVolume; }
  uint64_t row_bytes() const override { return kExtentBytes; }
  absl::Status Read(uint64_t, absl::Span<char>) override { return read_result; }
  absl::Status Flush() override {
    ++flushes;
    return flush_result;
  }
  uint64_t MappedBytes(uint64_t offset, uint64_t length) override {
    uint64_t bytes = 0;
    ForEachWhole(offset, length, [&](uint64_t unit) { bytes += mapped.count(unit) * kUnit; });
    return bytes;
  }
  absl::StatusOr<uint64_t> ReleaseIf(uint64_t offset, uint64_t length,
                                     absl::FunctionRef<bool()> still_free) override {
    EXPECT_EQ(offset / row_bytes(), (offset + length - 1) / row_bytes());
    if (on_hold) on_hold(offset);
    if (!still_free()) return 0;
    uint64_t bytes = 0;
    ForEachWhole(offset, length, [&](uint64_t unit) { bytes += mapped.erase(unit) * kUnit; });
    return bytes;
  }

  std::set<uint64_t> mapped;
  std::atomic<int> flushes = 0;
  absl::Status flush_result;
  absl::Status read_result;
  std::function<void(uint64_t offset)> on_hold;

 private:
  static void ForEachWhole(uint64_t offset, uint64_t length,
                           const std::function<void(uint64_t)>& fn) {
    for (uint64_t unit = (offset + kUnit - 1) / kUnit; (unit + 1) * kUnit <= offset + length;
         ++unit)
      fn(unit);
  }
};

// What the one file system of the volume is like; several objects may show it.
struct Disk {
  std::string description = "ext4 (1)";
  std::vector<Extent> journal = {{kJournal, kMiB}};
  View view{.sequence = 1, .groups_total = 4, .groups_unchanged = 1, .free = {}};
  std::function<void(bool offline)> on_look;
  std::vector<absl::Status> look_errors;  // of the next looks
  int looks = 0;
};

class FakeFileSystem final : public ReclaimFileSystem {
 public:
  FakeFileSystem(Disk* disk, ext4::ReadVolume read)
      : disk_(*disk),
        read_(std::move(read)),
        description_(disk->description),
        journal_(disk->journal) {}
  const std::string& description() const override { return description_; }
  const std::vector<Extent>& journal() const override { return journal_; }
  uint32_t block_bytes() const override { return kBlock; }
  uint32_t group_count() const override { return 4; }
  absl::StatusOr<View> Look(bool offline, absl::FunctionRef<void(uint32_t)> progress) override {
    ++disk_.looks;
    if (disk_.on_look) disk_.on_look(offline);
    if (!disk_.look_errors.empty()) {
      absl::Status error = disk_.look_errors.front();
      disk_.look_errors.erase(disk_.look_errors.begin());
      return error;
    }
    progress(2);
    std::string block(kBlock, '\0');
    if (absl::Status status = read_(0, absl::MakeSpan(block)); !status.ok()) return status;
    progress(4);
    return disk_.view;
  }

 private:
  Disk& disk_;
  const ext4::ReadVolume read_;
  const std::string description_;
  const std::vector<Extent> journal_;
};

// A commit block as jbd2 has it: magic, type 2, sequence, big-endian.
std::string CommitBlock(uint32_t sequence) {
  std::string block(kBlock, '\0');
  const auto put = [&](size_t at, uint32_t value) {
    for (size_t i = 0; i < 4; ++i) block[at + i] = static_cast<char>(value >> (24 - 8 * i));
  };
  put(0, 0xc03b3998);
  put(4, 2);
  put(8, sequence);
  return block;
}

class ReclaimTest : public testing::Test {
 protected:
  ReclaimTest()
      : watch_(*WriteWatch::Create(kVolume)),
        reclaimer_(
            &volume_,
            [this](const ext4::ReadVolume& read, uint64_t) -> absl::StatusOr<FoundFileSystems> {
              ++finds_;
              if (!find_result_.ok()) return find_result_;
              FoundFileSystems found;
              if (there_) found.usable.push_back(std::make_shared<FakeFileSystem>(&disk_, read));
              found.refused = refused_;
              return found;
            },
            watch_.get(), &clients_, /*relearn=*/absl::ZeroDuration()) {}

  void Connect() {
    clients_.Opened();
    reclaimer_.Learn();
  }
  void Write(uint64_t offset, const std::string& data = "x") {
    WriteWatch::Change change(watch_.get(), offset, data);
    change.Succeeded();
  }
  // The file system commits.
  void Commit(uint32_t sequence) {
    Write(kJournal, CommitBlock(sequence));
    disk_.view.sequence = sequence;
  }
  absl::Status Run(bool dry_run = false) {
    return reclaimer_.Run(
        dry_run, [](const ReclaimCounts&) { return true; }, counts_);
  }
  uint64_t mapped_bytes() const { return volume_.mapped.size() * kUnit; }

  FakeVolume volume_;
  Disk disk_;
  std::unique_ptr<WriteWatch> watch_;
  ClientCount clients_;
  bool there_ = true;
  int finds_ = 0;
  absl::Status find_result_;
  std::vector<absl::Status> refused_;
  Reclaimer reclaimer_;
  ReclaimCounts counts_;
};

TEST_F(ReclaimTest, OfflineAllThatIsFreeIsReleasedAtOnce) {
  disk_.view.free = {{kMiB, 10 * kMiB}};
  disk_.on_look = [](bool offline) { EXPECT_TRUE(offline); };
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.free_bytes, 10 * kMiB);
  EXPECT_EQ(counts_.released_bytes, 10 * kMiB);
  EXPECT_EQ(counts_.deferred_bytes, 0U);
  EXPECT_EQ(counts_.file_system, "ext4 (1)");
  EXPECT_EQ(counts_.groups_total, 4U);
  EXPECT_EQ(counts_.groups_done, 4U);
  EXPECT_EQ(counts_.groups_unchanged, 1U);
  EXPECT_EQ(mapped_bytes(), kVolume - 10 * kMiB);
  EXPECT_EQ(volume_.flushes, 1);
}

TEST_F(ReclaimTest, OnlyWholeUnitsInsideTheFreeRangeGo) {
  disk_.view.free = {{kUnit - kBlock, 3 * kUnit + uint64_t{2} * kBlock},
                     {10 * kUnit + kBlock, kUnit}};
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.free_bytes, 3 * kUnit);
  EXPECT_EQ(counts_.released_bytes, 3 * kUnit);
  EXPECT_EQ(volume_.mapped.count(0), 1U);
  EXPECT_EQ(volume_.mapped.count(4), 1U);
  EXPECT_EQ(volume_.mapped.count(10), 1U);
  EXPECT_EQ(volume_.mapped.count(11), 1U);
}

TEST_F(ReclaimTest, OnlineOnlyWhatIsSettledIsReleasedAndTheRestDeferred) {
  Connect();
  disk_.on_look = [](bool offline) { EXPECT_FALSE(offline); };
  disk_.view.free = {{0, 12 * kMiB}};
  Commit(5);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 0U) << "one commit is not enough";
  EXPECT_EQ(counts_.deferred_bytes, 12 * kMiB);
  Commit(6);
  Write(5 * kMiB);
  ASSERT_TRUE(Run(/*dry_run=*/true).ok());
  EXPECT_EQ(counts_.free_bytes, 12 * kMiB);
  EXPECT_EQ(counts_.released_bytes, 0U);
  EXPECT_EQ(counts_.deferred_bytes, 4 * kMiB);
  EXPECT_EQ(mapped_bytes(), kVolume);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 8 * kMiB);
  EXPECT_EQ(counts_.deferred_bytes, 4 * kMiB);
  EXPECT_EQ(volume_.MappedBytes(4 * kMiB, 4 * kMiB), 4 * kMiB);
  Commit(7);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.deferred_bytes, 4 * kMiB) << "written when 6 was the last";
  Commit(8);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.free_bytes, 4 * kMiB);
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
}

TEST_F(ReclaimTest, WriteThatComesBetweenViewAndHoldSavesItsExtent) {
  Connect();
  Commit(5);
  Commit(6);
  disk_.view.free = {{0, 8 * kMiB}};
  volume_.on_hold = [this](uint64_t offset) {
    if (offset == 4 * kMiB) Write(6 * kMiB);
  };
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
  EXPECT_EQ(counts_.deferred_bytes, 4 * kMiB);
}

TEST_F(ReclaimTest, ViewOlderThanTheCommitsSeenIsJudgedByItsOwnSequence) {
  Connect();
  for (uint32_t sequence = 5; sequence <= 9; ++sequence) Commit(sequence);
  Write(0);
  Commit(10);
  disk_.view.free = {{0, 4 * kMiB}};
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 0U);
  Commit(11);
  disk_.view.sequence = 10;
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 0U);
  disk_.view.sequence = 11;
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
}

TEST_F(ReclaimTest, NothingIsReleasedBeforeTheViewsCommitsAreWrittenAndFlushed) {
  Connect();
  Commit(5);
  Commit(6);
  disk_.view.free = {{0, 4 * kMiB}};
  volume_.flush_result = absl::UnavailableError("no");
  EXPECT_FALSE(Run().ok());
  EXPECT_EQ(mapped_bytes(), kVolume);
  volume_.flush_result = absl::OkStatus();
  // The view may hold something of a commit whose record is being written.
  const std::string record = CommitBlock(7);
  auto change = std::make_unique<WriteWatch::Change>(watch_.get(), kJournal, record);
  const int flushes = volume_.flushes;
  std::thread end([&] {
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_EQ(volume_.flushes, flushes);
    change->Succeeded();
    change.reset();
  });
  const absl::Status status = Run();
  end.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
}

TEST_F(ReclaimTest, RecordThatFailsAfterTheViewReleasesNothing) {
  Connect();
  Commit(5);
  Commit(6);
  disk_.view.free = {{0, 4 * kMiB}};
  disk_.on_look = [this](bool) {
    const std::string record = CommitBlock(7);
    const WriteWatch::Change failed(watch_.get(), kJournal, record);
  };
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 0U);
}

TEST_F(ReclaimTest, ClientThatComesEndsTheOfflinePassAtOnce) {
  disk_.view.free = {{0, 12 * kMiB}};
  volume_.on_hold = [this](uint64_t offset) {
    if (offset == 4 * kMiB) clients_.Opened();
  };
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
  EXPECT_EQ(counts_.deferred_bytes, 8 * kMiB);
}

TEST_F(ReclaimTest, OfflineViewThatAClientCameIntoIsTakenAgainAsOnline) {
  std::vector<bool> looks;
  disk_.view.free = {{0, 4 * kMiB}};
  disk_.on_look = [&](bool offline) {
    looks.push_back(offline);
    if (looks.size() == 1) {
      clients_.Opened();
      clients_.Closed();  // and went: who knows what it wrote
    }
  };
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(looks, (std::vector<bool>{true, false}));
  EXPECT_EQ(counts_.released_bytes, 0U);
}

TEST_F(ReclaimTest, FileSystemMadeAnewCountsAsAllWrittenNow) {
  Connect();
  Commit(5);
  Commit(6);
  disk_.view.free = {{0, 4 * kMiB}};
  const std::vector<std::function<void()>> changes = {
      [&] { disk_.description = "ext4 (2)"; },
      [&] {
        disk_.journal = {{kJournal + 2 * kMiB, kMiB}};
      }};
  for (const auto& make : changes) {
    make();
    ASSERT_TRUE(Run().ok());
    EXPECT_EQ(counts_.released_bytes, 0U);
  }
}

TEST_F(ReclaimTest, LogOverwrittenWhileItWasReadIsReadAgain) {
  disk_.view.free = {{0, 4 * kMiB}};
  disk_.look_errors = {absl::AbortedError("log"), absl::AbortedError("log")};
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
  EXPECT_EQ(disk_.looks, 3);
  disk_.look_errors = std::vector<absl::Status>(100, absl::AbortedError("log"));
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "; try again")) << status;
}

TEST_F(ReclaimTest, WhatCannotBeReclaimedIsRefusedInWords) {
  there_ = false;
  absl::Status status = Run();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "; ")) << status;
  refused_ = {absl::FailedPreconditionError("ext4 (3) has an external journal; use fstrim")};
  EXPECT_EQ(Run(), refused_[0]);
  // One that is understood is done all the same.
  there_ = true;
  disk_.view.free = {{0, 4 * kMiB}};
  EXPECT_EQ(Run(), refused_[0]);
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
  refused_.clear();
  disk_.look_errors = {absl::DataLossError("bitmap checksum")};
  EXPECT_TRUE(absl::IsDataLoss(Run()));
  find_result_ = absl::DataLossError("two tables");
  EXPECT_TRUE(absl::IsDataLoss(Run()));
}

TEST_F(ReclaimTest, PassThatNobodyWantsEndsAndTheNextIsDone) {
  disk_.view.free = {{0, 4 * kMiB}};
  ReclaimCounts counts;
  EXPECT_TRUE(absl::IsCancelled(reclaimer_.Run(
      false, [](const ReclaimCounts&) { return false; }, counts)));
  EXPECT_EQ(mapped_bytes(), kVolume);
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(counts_.released_bytes, 4 * kMiB);
  reclaimer_.Stop();
  EXPECT_TRUE(absl::IsCancelled(Run()));
}

TEST_F(ReclaimTest, LearnLooksOnlyAfterWritesAndAgainAfterAFailure) {
  reclaimer_.Learn();
  reclaimer_.Learn();
  EXPECT_EQ(finds_, 1);
  Write(0);
  find_result_ = absl::DataLossError("in the middle of a mkfs");
  reclaimer_.Learn();
  EXPECT_EQ(finds_, 2);
  find_result_ = absl::OkStatus();
  reclaimer_.Learn();
  reclaimer_.Learn();
  EXPECT_EQ(finds_, 3);
}

TEST_F(ReclaimTest, LearnLooksSeldomOnceFileSystemsAreKnown) {
  int finds = 0;
  Reclaimer seldom(
      &volume_,
      [&](const ext4::ReadVolume& read, uint64_t) -> absl::StatusOr<FoundFileSystems> {
        ++finds;
        FoundFileSystems found;
        if (there_) found.usable.push_back(std::make_shared<FakeFileSystem>(&disk_, read));
        return found;
      },
      watch_.get(), &clients_, absl::Hours(1));
  there_ = false;
  for (int i = 0; i < 3; ++i) {
    Write(0);
    seldom.Learn();
  }
  EXPECT_EQ(finds, 3);
  there_ = true;
  for (int i = 0; i < 3; ++i) {
    Write(0);
    seldom.Learn();
  }
  EXPECT_EQ(finds, 4);
}

}  // namespace
}  // namespace braid
