#include "lib/volume/request_gate.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <utility>
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

// Requests that go on until told, beside others that count their rounds. The requests are held
// up in the middle of whatever they do, as on a busy machine, but a thousand times as
// often: by a signal whose handler sleeps.
void RunStress(uint64_t seed, int request_threads, int other_threads,
               const std::function<void(uint64_t seed, const std::atomic<bool>& done)>& requests,
               const std::function<void(uint64_t seed)>& others) {
  struct sigaction sleep {
  }, before{};
  sleep.sa_handler = [](int) {
    const int error = errno;
    usleep(150);
    errno = error;
  };
  sleep.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &sleep, &before);

  std::atomic<bool> undisturbed{false}, done{false};
  std::vector<std::thread> threads, counted;
  for (int t = 0; t < request_threads; ++t) {
    threads.emplace_back([&, t] { requests(seed + static_cast<uint64_t>(t), done); });
  }
  for (int t = 0; t < other_threads; ++t) {
    counted.emplace_back([&, t] { others(seed + 1000 + static_cast<uint64_t>(t)); });
  }
  std::thread disturber([&] {
    std::mt19937_64 random(seed);
    while (!undisturbed) {
      pthread_kill(threads[random() % threads.size()].native_handle(), SIGUSR1);
      usleep(static_cast<useconds_t>(random() % 150));
    }
  });
  for (std::thread& thread : counted) thread.join();
  undisturbed = true;
  disturber.join();
  done = true;
  for (std::thread& thread : threads) thread.join();
  sigaction(SIGUSR1, &before, nullptr);
}

// Requests look up an object that writers replace, and free once they have drained. Under
// ThreadSanitizer a Drain that returns early, or does not order memory, is a race as well.
TEST_F(RequestGateTest, NeverFreesWhatARequestStillUses) {
  constexpr int kReaders = 4, kWriters = 2, kRounds = 400;
  constexpr uint64_t kAlive = 0x600d, kDead = 0xdead;
  struct Object {
    uint64_t state = kAlive;
  };
  std::vector<std::unique_ptr<Object>> objects(kWriters * kRounds + 1);
  for (auto& object : objects) object = std::make_unique<Object>();
  std::atomic<Object*> present{objects.back().get()};
  std::atomic<size_t> next{0};
  std::atomic<int> found_dead{0};
  RunStress(
      TestSeed(), kReaders, kWriters,
      [&](uint64_t seed, const std::atomic<bool>& done) {
        std::mt19937_64 random(seed);
        while (!done) {
          Pass pass(&gate_, Kind::kRead, 0, 1);
          const Object* const object = present.load(std::memory_order_acquire);
          for (uint64_t i = random() % 64; i > 0; --i) {
            if (object->state != kAlive) ++found_dead;
            if (i % 61 == 0) std::this_thread::yield();
          }
        }
      },
      [&](uint64_t) {
        for (int i = 0; i < kRounds; ++i) {
          Object* const old = present.exchange(objects[next++].get(), std::memory_order_acq_rel);
          gate_.Drain();
          old->state = kDead;
        }
      });
  EXPECT_EQ(found_dead, 0);
}

// Changes and holds of random ranges: no change is in a range while it is held, and no two
// holds share a cell.
TEST_F(RequestGateTest, NeverLetsAChangeIntoAHold) {
  constexpr uint64_t kCells = 4;
  constexpr int kChangers = 4, kHolders = 2, kRounds = 500;
  std::atomic<int> changing[kCells] = {}, held[kCells] = {};
  std::atomic<int> violations{0};
  // Not atomic: the hold alone orders it.
  std::vector<uint64_t> moved(kCells, 0);
  const auto range = [](std::mt19937_64& random) {
    const uint64_t begin = random() % kCells;
    return std::pair(begin, begin + 1 + random() % (kCells - begin));
  };
  RunStress(
      TestSeed(), kChangers, kHolders,
      [&](uint64_t seed, const std::atomic<bool>& done) {
        std::mt19937_64 random(seed);
        while (!done) {
          // Short ones, so that a good part of the time is spent at the gate.
          for (int i = 0; i < 200; ++i) {
            Pass pass(&gate_, Kind::kChange, 0, 1);
            if (held[0].load(std::memory_order_relaxed) != 0) ++violations;
          }
          const auto [begin, end] = range(random);
          Pass pass(&gate_, Kind::kChange, begin, end - begin);
          uint64_t difference = 0;
          for (uint64_t c = begin; c < end; ++c) {
            ++changing[c];
            if (held[c] != 0) ++violations;
            difference += moved[c];
          }
          if (random() % 64 == 0) std::this_thread::yield();
          for (uint64_t c = begin; c < end; ++c) {
            difference -= moved[c];
            --changing[c];
          }
          if (difference != 0) ++violations;
        }
      },
      [&](uint64_t seed) {
        std::mt19937_64 random(seed);
        for (int i = 0; i < kRounds; ++i) {
          // Most changes find no hold as they begin.
          usleep(static_cast<useconds_t>(random() % 150));
          const auto [begin, end] = range(random);
          Hold hold(gate_, begin, end - begin);
          for (uint64_t c = begin; c < end; ++c) {
            if (held[c]++ != 0 || changing[c] != 0) ++violations;
            ++moved[c];
          }
          usleep(static_cast<useconds_t>(100 + random() % 200));
          for (uint64_t c = begin; c < end; ++c) {
            if (changing[c] != 0) ++violations;
            --held[c];
          }
        }
      });
  EXPECT_EQ(violations, 0);
}

}  // namespace
}  // namespace braid
