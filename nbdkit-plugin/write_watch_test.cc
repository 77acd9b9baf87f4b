#include "nbdkit-plugin/write_watch.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/units.h"

namespace braid {
namespace {

constexpr uint64_t kVolume = 64 * kMiB;
constexpr uint32_t kBlock = 4096;
constexpr uint64_t kJournal = 32 * kMiB;
using Change = WriteWatch::Change;

// A block that this test's journals take for a commit record: "C" and the sequence.
std::string Commit(uint32_t sequence) {
  std::string block(kBlock, '\0');
  block[0] = 'C';
  std::memcpy(&block[1], &sequence, sizeof(sequence));
  return block;
}
std::optional<uint32_t> CommitIn(absl::Span<const char> block) {
  if (block.size() != kBlock || block[0] != 'C') return std::nullopt;
  uint32_t sequence = 0;
  std::memcpy(&sequence, &block[1], sizeof(sequence));
  return sequence;
}

class WriteWatchTest : public testing::Test {
 protected:
  WriteWatchTest() : watch_(*WriteWatch::Create(kVolume)) { journal_ = Add(kJournal); }

  uint64_t Add(uint64_t offset) {
    return watch_->Add(
        {.places = {{offset, uint64_t{16} * kBlock}, {offset + kMiB, uint64_t{16} * kBlock}},
         .block_bytes = kBlock,
         .commit_in = CommitIn});
  }
  void Write(uint64_t offset, const std::string& data = "x") {
    Change change(watch_.get(), offset, data);
    change.Succeeded();
  }
  void WriteCommit(uint32_t sequence, uint64_t at = kJournal) { Write(at, Commit(sequence)); }
  // Whether a view that ends with `sequence` may release the byte.
  bool Settled(uint32_t sequence, uint64_t offset) {
    return watch_->StampedBelow(watch_->SettledBelow(journal_, sequence), offset, 1);
  }

  std::unique_ptr<WriteWatch> watch_;
  uint64_t journal_;
};

TEST_F(WriteWatchTest, ExtentIsSettledTwoCommitsAfterItsLastWrite) {
  WriteCommit(10);
  Write(0);  // 10 is the last committed: free from a view with 12 on
  for (uint32_t sequence = 10; sequence < 16; ++sequence) {
    if (sequence > 10) WriteCommit(sequence);
    EXPECT_EQ(Settled(sequence, 0), sequence >= 12) << sequence;
  }
  Write(4 * kMiB - 1, "ab");  // into the next one too
  EXPECT_FALSE(Settled(15, 0));
  EXPECT_FALSE(Settled(15, 4 * kMiB));
  EXPECT_TRUE(Settled(15, 8 * kMiB));
}

TEST_F(WriteWatchTest, WhatIsNotKnownCountsAsWrittenWhenWatchingBegan) {
  EXPECT_FALSE(Settled(10, 0));
  WriteCommit(10);
  EXPECT_FALSE(Settled(10, 0));
  WriteCommit(11);
  EXPECT_TRUE(Settled(11, 0));
  // A second file system begins later, and its sequences are its own.
  const uint64_t other = Add(48 * kMiB);
  WriteCommit(12);
  EXPECT_EQ(watch_->SettledBelow(other, 12), 0U);
  WriteCommit(700, 48 * kMiB);
  WriteCommit(701, 48 * kMiB);
  EXPECT_NE(watch_->SettledBelow(other, 701), 0U);
  EXPECT_EQ(watch_->SettledBelow(other, 12), 0U);
  watch_->Remove(other);
  EXPECT_EQ(watch_->SettledBelow(other, 701), 0U);
}

TEST_F(WriteWatchTest, WriteUnderWaySinceBeforeTheViewIsNotSettled) {
  WriteCommit(10);
  WriteCommit(11);
  const Change late(watch_.get(), 0, absl::string_view("x"));
  EXPECT_FALSE(Settled(11, 0));
  WriteCommit(12);
  EXPECT_FALSE(Settled(12, 0));
  WriteCommit(13);
  EXPECT_TRUE(Settled(13, 0));
}

TEST_F(WriteWatchTest, CommitsAreFoundInTheMiddleOfWritesAndAcrossTheJournalsEdge) {
  WriteCommit(9);
  // From before the journal into it: two blocks that are none of it, a descriptor, a commit.
  const std::string data = Commit(1) + Commit(2) + std::string(kBlock, 'd') + Commit(10);
  Write(kJournal - uint64_t{2} * kBlock, data);
  EXPECT_EQ(watch_->Newest(journal_), 10U);
  // In its second part.
  Write(kJournal + kMiB + uint64_t{15} * kBlock, Commit(11) + Commit(3));
  EXPECT_EQ(watch_->Newest(journal_), 11U);
  EXPECT_TRUE(Settled(11, 0));
}

TEST_F(WriteWatchTest, SequencesWrapAround) {
  for (const uint32_t sequence : {0xfffffffeU, 0xffffffffU, 0U, 1U}) WriteCommit(sequence);
  EXPECT_TRUE(Settled(1, 0));
  EXPECT_TRUE(Settled(0, 0));
  Write(0);
  EXPECT_FALSE(Settled(1, 0));
}

TEST_F(WriteWatchTest, RecordSentAgainChangesNothing) {
  WriteCommit(10);
  WriteCommit(11);
  const uint32_t tick = watch_->SettledBelow(journal_, 11);
  WriteCommit(11);
  EXPECT_EQ(watch_->SettledBelow(journal_, 11), tick);
  EXPECT_EQ(watch_->Newest(journal_), 11U);
}

TEST_F(WriteWatchTest, GapInTheSequencesSettlesNothing) {
  WriteCommit(10);
  WriteCommit(13);
  EXPECT_FALSE(Settled(12, 0));
  EXPECT_FALSE(Settled(13, 0));
  WriteCommit(14);
  EXPECT_TRUE(Settled(14, 0));
}

TEST_F(WriteWatchTest, WhatIsNotUnderstoodCountsAsAllWrittenNow) {
  const std::vector<std::pair<const char*, std::function<void()>>> cases = {
      {"a sequence from before", [&] { WriteCommit(5); }},
      {"part of a block", [&] { Write(kJournal + 512, std::string(512, 'x')); }},
      {"a block and a part", [&] { Write(kJournal + kBlock, std::string(kBlock + 512, 'x')); }},
      {"zeroes", [&] { const Change c(watch_.get(), kJournal, kBlock, Change::Kind::kZero); }},
      {"a trim over it", [&] { const Change c(watch_.get(), 0, kVolume, Change::Kind::kTrim); }},
      {"a commit that failed",
       [&] {
         const std::string commit = Commit(12);
         const Change c(watch_.get(), kJournal, commit);
       }},
  };
  for (const auto& [name, spoil] : cases) {
    watch_ = *WriteWatch::Create(kVolume);
    journal_ = Add(kJournal);
    WriteCommit(10);
    WriteCommit(11);
    ASSERT_TRUE(Settled(11, 0)) << name;
    spoil();
    EXPECT_FALSE(Settled(11, 0)) << name;
    EXPECT_FALSE(Settled(12, 0)) << name;
    WriteCommit(20);
    EXPECT_FALSE(Settled(20, 0)) << name;
    WriteCommit(21);
    EXPECT_TRUE(Settled(21, 0)) << name;
  }
}

TEST_F(WriteWatchTest, RecordIsUnderWayUntilItsWriteEnds) {
  WriteCommit(10);
  EXPECT_FALSE(watch_->UnderWay(journal_, 10));
  {
    const std::string commit = Commit(11);
    Change change(watch_.get(), kJournal, commit);
    EXPECT_EQ(watch_->Newest(journal_), 11U);
    EXPECT_TRUE(watch_->UnderWay(journal_, 11));
    EXPECT_FALSE(watch_->UnderWay(journal_, 10));
    change.Succeeded();
  }
  EXPECT_FALSE(watch_->UnderWay(journal_, 11));
  EXPECT_NE(watch_->SettledBelow(journal_, 11), 0U);
}

TEST_F(WriteWatchTest, OnlyWritesAndZeroesAreChanges) {
  EXPECT_FALSE(watch_->TakeChanged());
  Write(0);
  EXPECT_TRUE(watch_->TakeChanged());
  EXPECT_FALSE(watch_->TakeChanged());
  WriteCommit(1);
  WriteCommit(2);
  (void)watch_->TakeChanged();
  { const Change trim(watch_.get(), 0, kMiB, Change::Kind::kTrim); }
  EXPECT_TRUE(Settled(2, 0));
  EXPECT_FALSE(watch_->TakeChanged());
  { const Change zero(watch_.get(), 0, kMiB, Change::Kind::kZero); }
  EXPECT_FALSE(Settled(2, 0));
  EXPECT_TRUE(watch_->TakeChanged());
}

TEST_F(WriteWatchTest, RangesOutsideTheVolumeAreNoHarm) {
  Write(kVolume - 1);
  Write(kVolume);
  Write(kVolume - 1, "abc");
  Write(UINT64_MAX - 1, "abc");
  { const Change zero(watch_.get(), UINT64_MAX - 5, 100, Change::Kind::kZero); }
  EXPECT_FALSE(watch_->StampedBelow(UINT32_MAX, kVolume, 1));
  EXPECT_FALSE(watch_->StampedBelow(UINT32_MAX, 1, UINT64_MAX));
  EXPECT_TRUE(watch_->StampedBelow(UINT32_MAX, 0, kVolume));
}

// A stamp never goes back: the last of many writers at once holds for all.
TEST_F(WriteWatchTest, WriterThatEndsLateDoesNotTakeAnotherStampBack) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> writers;
  writers.reserve(4);
  for (int i = 0; i < 4; ++i)
    writers.emplace_back([&] {
      while (!stop) Write(0);
    });
  for (uint32_t sequence = 1; sequence <= 2000; ++sequence) {
    WriteCommit(sequence);
    Write(0);
    EXPECT_FALSE(Settled(sequence, 0));
    EXPECT_FALSE(Settled(sequence - 1, 0));
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
}

TEST_F(WriteWatchTest, OldCommitsAreForgottenAndSettleNothing) {
  for (uint32_t sequence = 1; sequence <= WriteWatch::kCommits + 10; ++sequence)
    WriteCommit(sequence);
  EXPECT_EQ(watch_->SettledBelow(journal_, 2), 0U);
  EXPECT_NE(watch_->SettledBelow(journal_, WriteWatch::kCommits), 0U);
}

}  // namespace
}  // namespace braid
