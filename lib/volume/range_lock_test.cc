#include "lib/volume/range_lock.h"

#include <atomic>
#include <chrono>
#include <future>
#include <latch>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

using Mode = RangeLock::Mode;
using std::chrono::milliseconds;
using std::chrono::seconds;

bool StaysAway(const std::future<void>& event, milliseconds patience = milliseconds(20)) {
  return event.wait_for(patience) == std::future_status::timeout;
}

class RangeLockTest : public testing::Test {
 protected:
  // By now every hold of the test itself has ended, so every probe gets its turn.
  void TearDown() override {
    for (std::thread& t : probes_) t.join();
  }

  // Whether a hold of this range is granted while the present ones are kept. It is given
  // back as soon as it was granted, now or later. Patient, for a loaded machine; only where
  // "no" is the answer hoped for, the wait is felt.
  bool Granted(uint64_t offset, uint64_t length, Mode mode, milliseconds patience = seconds(30)) {
    auto granted = std::make_shared<std::promise<void>>();
    std::future<void> answer = granted->get_future();
    probes_.emplace_back([this, offset, length, mode, granted] {
      RangeLock::Hold hold(lock_, offset, length, mode);
      granted->set_value();
    });
    return answer.wait_for(patience) == std::future_status::ready;
  }

  RangeLock lock_;
  std::vector<std::thread> probes_;
};

TEST_F(RangeLockTest, GrantsWhatDoesNotOverlapAndSharesReads) {
  {
    RangeLock::Hold write(lock_, 100, 10, Mode::kExclusive);
    RangeLock::Hold read(lock_, 200, 10, Mode::kShared);
    EXPECT_TRUE(Granted(90, 10, Mode::kExclusive));   // ends where it begins
    EXPECT_TRUE(Granted(110, 10, Mode::kExclusive));  // begins where it ends
    EXPECT_TRUE(Granted(205, 10, Mode::kShared));
  }
  EXPECT_TRUE(Granted(0, UINT64_MAX, Mode::kExclusive));
}

TEST_F(RangeLockTest, HoldsBackWhatOverlaps) {
  const struct {
    Mode held, asked;
  } cases[] = {{Mode::kExclusive, Mode::kExclusive},
               {Mode::kExclusive, Mode::kShared},
               {Mode::kShared, Mode::kExclusive}};
  for (const auto& c : cases) {
    std::latch started(1);
    std::promise<void> granted;
    std::future<void> done = granted.get_future();
    std::thread waiter;
    {
      RangeLock::Hold hold(lock_, 100, 10, c.held);
      waiter = std::thread([&] {
        started.count_down();
        RangeLock::Hold mine(lock_, 109, 1, c.asked);
        granted.set_value();
      });
      started.wait();
      EXPECT_TRUE(StaysAway(done));
    }
    waiter.join();
    EXPECT_FALSE(StaysAway(done, milliseconds(0)));
  }
}

// Writers must not starve behind a stream of readers: a reader that came after a waiting
// writer waits for it.
TEST_F(RangeLockTest, KeepsTheOrderOfArrival) {
  auto first = std::make_unique<RangeLock::Hold>(lock_, 0, 10, Mode::kShared);
  std::latch writer_in(1), release_writer(1);
  std::promise<void> reader_granted;
  std::future<void> reader_in = reader_granted.get_future();
  std::thread writer([&] {
    RangeLock::Hold hold(lock_, 0, 10, Mode::kExclusive);
    writer_in.count_down();
    release_writer.wait();
  });
  while (Granted(5, 1, Mode::kShared, milliseconds(200))) {
  }  // until the writer stands in the queue
  std::thread reader([&] {
    RangeLock::Hold hold(lock_, 0, 10, Mode::kShared);
    reader_granted.set_value();
  });
  EXPECT_TRUE(StaysAway(reader_in));
  first.reset();
  writer_in.wait();
  EXPECT_TRUE(StaysAway(reader_in));
  release_writer.count_down();
  writer.join();
  reader.join();
}

// Many threads, random ranges: writers are alone on every cell they hold, readers only
// among readers.
TEST_F(RangeLockTest, NeverAdmitsAConflict) {
  const uint64_t seed = TestSeed();
  constexpr int kCells = 32, kThreads = 8, kRounds = 3000;
  std::atomic<int> readers[kCells] = {}, writers[kCells] = {};
  std::atomic<int> conflicts{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 rng(seed + static_cast<uint64_t>(t));
      for (int round = 0; round < kRounds; ++round) {
        const uint64_t begin = rng() % kCells;
        const uint64_t length = 1 + rng() % (kCells - begin);
        const bool exclusive = rng() % 2 == 0;
        RangeLock::Hold hold(lock_, begin, length, exclusive ? Mode::kExclusive : Mode::kShared);
        for (uint64_t c = begin; c < begin + length; ++c) {
          if ((exclusive ? writers[c]++ : readers[c]++, writers[c]) > (exclusive ? 1 : 0)) {
            ++conflicts;
          }
          if (exclusive && readers[c] > 0) ++conflicts;
        }
        for (uint64_t c = begin; c < begin + length; ++c) exclusive ? writers[c]-- : readers[c]--;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(conflicts, 0);
}

}  // namespace
}  // namespace braid
