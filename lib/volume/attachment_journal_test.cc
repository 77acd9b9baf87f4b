#include "lib/volume/attachment_journal.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/unique_fd.h"

namespace braid {
namespace {

using Range = AttachmentJournal::Range;
using Write = AttachmentJournal::Write;

class AttachmentJournalTest : public testing::Test {
 protected:
  std::unique_ptr<AttachmentJournal> Open() {
    return AttachmentJournal::Open(file_.get(), boot_, false).value();
  }
  // What the next holder finds.
  std::optional<AttachmentJournal::Past> Found() { return Open()->past(); }

  const UniqueFd file_{memfd_create("braid-journal", MFD_CLOEXEC)};
  Uuid boot_ = Uuid::Random();
};

TEST_F(AttachmentJournalTest, TellsTheNextHolderWhatWasInFlight) {
  {
    auto journal = Open();
    EXPECT_FALSE(journal->past().has_value());
    journal->Begin(Epoch(3), true);
    { Write done(journal.get(), 0, 512); }
    Write kept(journal.get(), 4096, 8192);
    kept.Keep();
    journal->Doubt(DeviceIndex(0));
    journal->Doubt(DeviceIndex(65535));
    journal->Doubt(DeviceIndex(7));
    journal->Settled(DeviceIndex(7));
  }
  const auto past = Found();
  ASSERT_TRUE(past.has_value());
  EXPECT_EQ(past->epoch, Epoch(3));
  EXPECT_EQ(past->writes, (std::vector<Range>{{4096, 8192}}));
  EXPECT_EQ(past->doubted, (std::vector<DeviceIndex>{DeviceIndex(0), DeviceIndex(65535)}));
}

TEST_F(AttachmentJournalTest, KeepsThePastUntilItIsForgotten) {
  {
    auto journal = Open();
    journal->Begin(Epoch(3), true);
    Write(journal.get(), 512, 1024).Keep();
    journal->Doubt(DeviceIndex(1));
  }
  {
    auto journal = Open();
    journal->Begin(Epoch(4), true);
    Write more(journal.get(), 0, 512);
    more.Keep();
  }  // died while it settled
  auto journal = Open();
  ASSERT_TRUE(journal->past().has_value());
  EXPECT_EQ(journal->past()->epoch, Epoch(4));
  EXPECT_EQ(journal->past()->writes.size(), 2u);
  journal->Begin(Epoch(5), true);
  journal->ForgetPast();
  const auto past = Found();
  ASSERT_TRUE(past.has_value());
  EXPECT_TRUE(past->writes.empty());
  EXPECT_TRUE(past->doubted.empty());
}

TEST_F(AttachmentJournalTest, DropsWhatAnotherEpochHasOvertaken) {
  {
    auto journal = Open();
    journal->Begin(Epoch(3), true);
    Write(journal.get(), 512, 1024).Keep();
  }
  Open()->Begin(Epoch(5), false);
  ASSERT_TRUE(Found().has_value());
  EXPECT_TRUE(Found()->writes.empty());
}

TEST_F(AttachmentJournalTest, KnowsNothingOfAnotherBootOrAFileThatIsNone) {
  {
    auto journal = Open();
    journal->Begin(Epoch(3), true);
    Write(journal.get(), 512, 1024).Keep();
  }
  boot_ = Uuid::Random();
  EXPECT_FALSE(Found().has_value());
  ASSERT_EQ(ftruncate(file_.get(), 100), 0);
  EXPECT_FALSE(Found().has_value());
  auto journal = Open();
  journal->Begin(Epoch(1), true);
  EXPECT_TRUE(Found().has_value());
}

TEST_F(AttachmentJournalTest, HoldsAsManyWritesAsItHasSlotsAndThenWaits) {
  auto journal = Open();
  journal->Begin(Epoch(1), true);
  std::vector<std::unique_ptr<Write>> writes;
  for (size_t i = 0; i < AttachmentJournal::kWrites; ++i) {
    writes.push_back(std::make_unique<Write>(journal.get(), i * 512, 512));
  }
  EXPECT_EQ(Found()->writes.size(), AttachmentJournal::kWrites);
  std::thread one_more([&] { Write write(journal.get(), 1 << 30, 512); });
  writes.pop_back();
  one_more.join();
  writes.clear();
  EXPECT_TRUE(Found()->writes.empty());
}

// A process of several threads that is killed at any moment: what it had told its parent
// was done is not noted, and what it had told was begun and not done is.
TEST_F(AttachmentJournalTest, SurvivesTheDeathOfItsProcess) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 20; ++round) {
    struct Shared {
      std::atomic<uint64_t> begun[4], done[4];
    };
    auto* const shared = static_cast<Shared*>(
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(shared, MAP_FAILED);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto journal = Open();
      journal->Begin(Epoch(static_cast<uint64_t>(round) * 2 + 1), false);
      std::vector<std::thread> threads;
      for (uint64_t t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
          for (uint64_t i = 1;; ++i) {
            Write write(journal.get(), t << 40 | i, i);
            shared->begun[t] = i;
            shared->done[t] = i;
          }
        });
      }
      pause();
    }
    while (shared->begun[0] == 0 && waitpid(child, nullptr, WNOHANG) == 0) usleep(100);
    usleep(static_cast<useconds_t>(random() % 5000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto past = Found();
    ASSERT_TRUE(past.has_value());
    for (uint64_t t = 0; t < 4; ++t) {
      std::vector<uint64_t> noted;
      for (const Range& range : past->writes) {
        if (range.offset >> 40 != t) continue;
        noted.push_back(range.length);
        EXPECT_EQ(range.offset, t << 40 | range.length) << "a slot of two writes";
      }
      ASSERT_LE(noted.size(), 1u);
      const uint64_t begun = shared->begun[t], done = shared->done[t];
      if (begun > done) {
        EXPECT_EQ(noted, std::vector<uint64_t>{begun});
      }
      if (!noted.empty()) {
        EXPECT_GE(noted[0], done);
      }
    }
    munmap(shared, sizeof(Shared));
  }
}

}  // namespace
}  // namespace braid
