// The whole volume against a model, under requests that overlap: threads read, write, zero,
// trim and flush at random over a small range, devices take requests in random order after
// random delays, and legs fail and die on the way. A history judges every word read.
// BRAID_SEED sets the seed, BRAID_MODEL_OPERATIONS the requests for each shape.
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/testing/sector_history.h"
#include "lib/volume/volume_fixture.h"

namespace braid {
namespace {

constexpr int kThreads = 6;
// The range crosses an extent boundary and several stripes.
constexpr uint64_t kFirstSector = kExtentBytes / kSectorBytes - 40;
constexpr uint64_t kSectors = 80;
constexpr int kOperationsPerRound = 40;  // of each thread, between two judgements

int Operations() {
  const char* given = std::getenv("BRAID_MODEL_OPERATIONS");
  return given != nullptr ? std::atoi(given) : 6000;
}

class Client {
 public:
  Client(Volume& volume, SectorHistory& history, uint64_t seed)
      : volume_(volume), history_(history), random_(seed) {}

  void Run(int operations) {
    for (int i = 0; i < operations; ++i) Step();
  }

 private:
  void Step() {
    const uint64_t first = random_() % kSectors;
    const uint64_t count = 1 + random_() % std::min<uint64_t>(kSectors - first, 16);
    const uint64_t offset = (kFirstSector + first) * kSectorBytes;
    std::string data(count * kSectorBytes, '\0');
    SectorHistory::Change change{.first_sector = first, .sectors = count};
    const unsigned kind = random_() % 16;
    if (kind < 7) {
      const uint64_t began = history_.Now();
      ASSERT_TRUE(volume_.Read(offset, absl::MakeSpan(data)).ok());
      history_.AddRead(first, began, history_.Now(), data);
      return;
    }
    if (kind == 15) {
      ASSERT_TRUE(volume_.Flush().ok());
      return;
    }
    absl::Status s;
    if (kind < 12) {
      change.id = history_.NewId();
      SectorHistory::Fill(change.id, first, absl::MakeSpan(data));
      change.began = history_.Now();
      s = volume_.Write(offset, data, /*fua=*/random_() % 8 == 0);
    } else if (kind < 14) {
      change.began = history_.Now();
      s = volume_.Zero(offset, data.size(),
                       {.may_trim = random_() % 2 == 0, .only_fast = random_() % 2 == 0});
    } else {
      change.certain = false;
      change.began = history_.Now();
      s = volume_.Trim(offset, data.size(), false);
    }
    change.ended = history_.Now();
    ASSERT_TRUE(s.ok()) << s;
    history_.AddChange(change);
  }

  Volume& volume_;
  SectorHistory& history_;
  std::mt19937_64 random_;
};

struct Case {
  Shape shape;
  bool break_legs;
};

class VolumeModel : public testing::TestWithParam<Case> {};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Shape& shape : kShapes) {
    cases.push_back({shape, false});
    if (shape.legs > 1) cases.push_back({shape, true});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Shapes, VolumeModel, testing::ValuesIn(Cases()), [](const auto& instance) {
  return std::string(instance.param.shape.name) + (instance.param.break_legs ? "_breaking" : "");
});

TEST_P(VolumeModel, ReadsOnlyWhatTheHistoryExplains) {
  const Case& c = GetParam();
  const uint64_t seed = TestSeed();
  VolumeFixture f(c.shape, 3 * kExtentBytes,
                  {.seed = seed, .threads = 2, .max_delay = absl::Microseconds(50)});
  SectorHistory history(kSectors, /*reads_exclude_writes=*/c.shape.legs > 1);
  std::mt19937_64 random(seed);
  const int rounds = std::max(1, Operations() / (kThreads * kOperationsPerRound));
  for (int round = 0; round < rounds; ++round) {
    std::thread breaker;
    if (c.break_legs && round == rounds / 2) {
      // All but one leg of each column, one after the other, in the middle of the round.
      breaker = std::thread([&, keep = random() % c.shape.legs] {
        for (size_t d = 0; d < f.devices.size(); ++d) {
          if (d % c.shape.legs == keep) continue;
          absl::SleepFor(absl::Milliseconds(1));
          f.devices[d]->Die();
        }
      });
    }
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, client_seed = random()] {
        Client(*f.volume, history, client_seed).Run(kOperationsPerRound);
      });
    }
    for (std::thread& t : threads) t.join();
    if (breaker.joinable()) breaker.join();
    const std::string fault = history.Judge();
    ASSERT_EQ(fault, "") << "in round " << round;
    if (HasFailure()) return;
    // A round without what the threads keep in their heads: all of it, read at rest; and
    // now and then by a volume opened anew, with devices back that had died.
    if (round % 8 == 7) {
      if (c.break_legs) {
        for (auto& device : f.devices) device->Revive();
      }
      f.Open();
    }
    std::string all(kSectors * kSectorBytes, 'x');
    const uint64_t began = history.Now();
    ASSERT_TRUE(f.volume->Read(kFirstSector * kSectorBytes, absl::MakeSpan(all)).ok());
    history.AddRead(0, began, history.Now(), all);
  }
  ASSERT_EQ(history.Judge(), "");
  if (c.break_legs) return;
  // At rest all legs are the same to the byte.
  for (uint32_t leg = 1; leg < c.shape.legs; ++leg) {
    EXPECT_TRUE(f.LegBytes(leg, 0, f.geometry.size_bytes()) ==
                f.LegBytes(0, 0, f.geometry.size_bytes()))
        << "leg " << leg;
  }
}

}  // namespace
}  // namespace braid
