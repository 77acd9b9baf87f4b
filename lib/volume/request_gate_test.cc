#include "lib/volume/request_gate.h"

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {

// Reaches what a test cannot bring about at will: a request that read the phase long ago.
class RequestGatePeer {
 public:
  static uint32_t Phase(const RequestGate& gate) { return gate.phase_.load(); }
  static std::atomic<uint64_t>* Enter(RequestGate& gate, uint32_t phase) {
    return gate.EnterPhase(phase);
  }
  static void Leave(RequestGate& gate, std::atomic<uint64_t>* counter) { gate.Leave(counter); }
};

namespace {

using Hold = RequestGate::Hold;
using Kind = RequestGate::Kind;
using Pass = RequestGate::Pass;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Something that another thread does.
class Task {
 public:
  template <class Fn>
  explicit Task(Fn fn) : done_(std::async(std::launch::async, std::move(fn))) {}
  // Patient, for a loaded machine; only where "no" is the answer hoped for, the wait is felt.
  bool Ends(milliseconds patience = seconds(30)) {
    return done_.wait_for(patience) == std::future_status::ready;
  }
  bool Waits() { return !Ends(milliseconds(20)); }

 private:
  std::future<void> done_;
};

class RequestGateTest : public testing::Test {
 protected:
  Task Drain() {
    return Task([this] { gate_.Drain(); });
  }
  Task Change(uint64_t offset, uint64_t length) {
    return Task([this, offset, length] { Pass pass(&gate_, Kind::kChange, offset, length); });
  }
  Task HoldFor(uint64_t offset, uint64_t length) {
    return Task([this, offset, length] { Hold hold(gate_, offset, length); });
  }

  RequestGate gate_;
};

TEST_F(RequestGateTest, DrainWaitsForWhatIsUnderWay) {
  for (const Kind kind : {Kind::kRead, Kind::kChange}) {
    gate_.Drain();
    auto pass = std::make_unique<Pass>(&gate_, kind, 0, 1);
    Task drain = Drain();
    EXPECT_TRUE(drain.Waits());
    pass.reset();
    EXPECT_TRUE(drain.Ends());
  }
}

TEST_F(RequestGateTest, DrainWaitsForBothPhases) {
  for (int round = 0; round < 4; ++round) {
    for (const bool present : {true, false}) {
      const uint32_t phase = RequestGatePeer::Phase(gate_);
      auto* const counter = RequestGatePeer::Enter(gate_, present ? phase : 1 - phase);
      Task drain = Drain();
      EXPECT_TRUE(drain.Waits());
      RequestGatePeer::Leave(gate_, counter);
      EXPECT_TRUE(drain.Ends());
    }
  }
}

TEST_F(RequestGateTest, DrainDoesNotWaitForWhatBeganLater) {
  // A pass that begins before Drain has got to turn the phase over is waited for too.
  for (int attempt = 0;; ++attempt) {
    auto before = std::make_unique<Pass>(&gate_, Kind::kRead, 0, 1);
    Task drain = Drain();
    EXPECT_TRUE(drain.Waits());
    auto later = std::make_unique<Pass>(&gate_, Kind::kRead, 0, 1);
    before.reset();
    if (drain.Ends(seconds(1))) break;
    ASSERT_LT(attempt, 20);
    later.reset();
  }
}

TEST_F(RequestGateTest, DrainsFollowEachOther) {
  auto pass = std::make_unique<Pass>(&gate_, Kind::kRead, 0, 1);
  Task first = Drain(), second = Drain(), third = Drain();
  EXPECT_TRUE(first.Waits());
  EXPECT_TRUE(second.Waits());
  EXPECT_TRUE(third.Waits());
  pass.reset();
  EXPECT_TRUE(first.Ends());
  EXPECT_TRUE(second.Ends());
  EXPECT_TRUE(third.Ends());
}

TEST_F(RequestGateTest, PassesWithoutAGateCountNothing) {
  Pass pass(nullptr, Kind::kChange, 0, 1);
  EXPECT_TRUE(Drain().Ends());
}

TEST_F(RequestGateTest, HoldWaitsForChangesUnderWay) {
  auto change = std::make_unique<Pass>(&gate_, Kind::kChange, 10, 10);
  std::promise<void> held;
  Task hold([&] {
    Hold mine(gate_, 19, 1);
    held.set_value();
  });
  EXPECT_TRUE(hold.Waits());
  change.reset();
  EXPECT_TRUE(hold.Ends());
}

TEST_F(RequestGateTest, HoldKeepsOverlappingChangesOutAndNothingElse) {
  auto hold = std::make_unique<Hold>(gate_, 10, 10);
  EXPECT_TRUE(Change(0, 10).Ends());
  EXPECT_TRUE(Change(20, 10).Ends());
  EXPECT_TRUE(Change(15, 0).Ends());
  EXPECT_TRUE(Task([this] { Pass pass(&gate_, Kind::kRead, 0, 100); }).Ends());
  EXPECT_TRUE(HoldFor(20, 10).Ends());
  Task first = Change(0, 11), last = Change(19, 1), around = Change(0, 100);
  EXPECT_TRUE(first.Waits());
  EXPECT_TRUE(last.Waits());
  EXPECT_TRUE(around.Waits());
  // Those that wait are not under way.
  EXPECT_TRUE(Drain().Ends());
  hold.reset();
  EXPECT_TRUE(first.Ends());
  EXPECT_TRUE(last.Ends());
  EXPECT_TRUE(around.Ends());
}

TEST_F(RequestGateTest, HoldWaitsForHoldsThatOverlap) {
  auto hold = std::make_unique<Hold>(gate_, 10, 10);
  Task other = HoldFor(0, 11);
  EXPECT_TRUE(other.Waits());
  hold.reset();
  EXPECT_TRUE(other.Ends());
}

// Requests look up an object that writers replace, and free once they have drained. Under
// ThreadSanitizer a Drain that returns early, or does not order memory, is a race as well.
TEST_F(RequestGateTest, NeverFreesWhatARequestStillUses) {
  const uint64_t seed = TestSeed();
  constexpr int kReaders = 6, kWriters = 2, kRounds = 2500;
  constexpr uint64_t kAlive = 0x600d, kDead = 0xdead;
  struct Object {
    uint64_t state = kAlive;
  };
  std::vector<std::unique_ptr<Object>> objects(kWriters * kRounds + 1);
  for (auto& object : objects) object = std::make_unique<Object>();
  std::atomic<Object*> present{objects.back().get()};
  std::atomic<int> writers{kWriters}, found_dead{0};
  std::vector<std::thread> threads;
  for (int r = 0; r < kReaders; ++r) {
    threads.emplace_back([&, r] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(r));
      while (writers > 0) {
        Pass pass(&gate_, Kind::kRead, 0, 1);
        const Object* const object = present.load(std::memory_order_acquire);
        for (uint64_t i = random() % 64; i > 0; --i) {
          if (object->state != kAlive) ++found_dead;
          if (i % 61 == 0) std::this_thread::yield();
        }
      }
    });
  }
  for (int w = 0; w < kWriters; ++w) {
    threads.emplace_back([&, w] {
      for (int i = 0; i < kRounds; ++i) {
        Object* const next = objects[static_cast<size_t>(w * kRounds + i)].get();
        Object* const old = present.exchange(next, std::memory_order_acq_rel);
        gate_.Drain();
        old->state = kDead;
      }
      --writers;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found_dead, 0);
}

// Changes and holds of random ranges: no change is in a range while it is held, and no two
// holds share a cell.
TEST_F(RequestGateTest, NeverLetsAChangeIntoAHold) {
  const uint64_t seed = TestSeed();
  constexpr int kCells = 16, kChangers = 5, kHolders = 3, kRounds = 1200;
  std::atomic<int> changing[kCells] = {}, held[kCells] = {};
  std::atomic<int> holders{kHolders}, violations{0};
  // Not atomic: the hold alone orders it.
  std::vector<uint64_t> moved(kCells, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kChangers + kHolders; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      const auto range = [&random] {
        const uint64_t begin = random() % kCells;
        return std::pair(begin, begin + 1 + random() % std::min<uint64_t>(4, kCells - begin));
      };
      if (t < kChangers) {
        while (holders > 0) {
          const auto [begin, end] = range();
          Pass pass(&gate_, Kind::kChange, begin, end - begin);
          uint64_t sum = 0;
          for (uint64_t c = begin; c < end; ++c) ++changing[c];
          for (uint64_t c = begin; c < end; ++c) {
            sum += moved[c];
            if (held[c] != 0) ++violations;
          }
          if (random() % 8 == 0) std::this_thread::yield();
          for (uint64_t c = begin; c < end; ++c) {
            sum -= moved[c];
            --changing[c];
          }
          if (sum != 0) ++violations;
        }
        return;
      }
      for (int i = 0; i < kRounds; ++i) {
        const auto [begin, end] = range();
        Hold hold(gate_, begin, end - begin);
        for (uint64_t c = begin; c < end; ++c) {
          if (held[c]++ != 0 || changing[c] != 0) ++violations;
          ++moved[c];
        }
        if (random() % 4 == 0) std::this_thread::yield();
        for (uint64_t c = begin; c < end; ++c) {
          if (changing[c] != 0) ++violations;
          --held[c];
        }
      }
      --holders;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(violations, 0);
}

}  // namespace
}  // namespace braid
