// A thin volume against a model, as in volume_model_test.cc, with space that comes and goes
// under the requests, rows that fold, and two ways to end a round: the process dies, with
// map changes committed or not, and all that was acknowledged stays; or the machine loses
// power, and all that was flushed stays, everything else is old or new, and nothing is
// anybody else's. The control plane fills what is freed with garbage.
// BRAID_SEED sets the seed, BRAID_MODEL_OPERATIONS the requests for each case.
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/testing/sector_history.h"
#include "lib/volume/thin_fixture.h"

namespace braid {
namespace {

constexpr int kThreads = 4;
constexpr int kOperationsPerRound = 30;  // of each thread

int Operations() {
  const char* given = std::getenv("BRAID_MODEL_OPERATIONS");
  return given != nullptr ? std::atoi(given) : 1200;
}

enum class End : uint8_t { kProcess, kProcessBreakingLegs, kPower };

struct Case {
  Shape shape;
  End end;
};

// The part of the volume that is written at random: the last unit of the first row of every
// column, and the first of the second.
struct Arena {
  explicit Arena(const Geometry& g)
      : round(g.columns() * kSmallExtentBytes / kSectorBytes),
        first_sector(g.columns() * kExtentBytes / kSectorBytes - round),
        sectors(2 * round) {}
  uint64_t round;
  uint64_t first_sector;
  uint64_t sectors;
};

class Client {
 public:
  Client(Volume& volume, const Arena& arena, SectorHistory& history, PowerSupply* power,
         bool may_wait, uint64_t seed)
      : volume_(volume),
        arena_(arena),
        history_(history),
        power_(power),
        may_wait_(may_wait),
        random_(seed) {}

  void Run(int operations) {
    for (int i = 0; i < operations && going_; ++i) Step();
  }

 private:
  bool Fine(const absl::Status& s) {
    if (s.ok()) return true;
    going_ = false;
    EXPECT_TRUE(power_ != nullptr && !power_->on()) << s;
    return false;
  }

  void Step() {
    uint64_t first = random_() % arena_.sectors;
    uint64_t count = 1 + random_() % std::min<uint64_t>(arena_.sectors - first, 24);
    if (random_() % 3 == 0) {  // a whole round, or both
      first = random_() % 2 * arena_.round;
      count = first == 0 && random_() % 2 == 0 ? arena_.sectors : arena_.round;
    }
    const uint64_t offset = (arena_.first_sector + first) * kSectorBytes;
    std::string data(count * kSectorBytes, '\0');
    SectorHistory::Change change{.first_sector = first, .sectors = count};
    const unsigned kind = random_() % 16;
    if (kind < 5) {
      const uint64_t began = history_.Now();
      if (!Fine(volume_.Read(offset, absl::MakeSpan(data)))) return;
      history_.AddRead(first, began, history_.Now(), data);
      return;
    }
    if (kind == 5) {
      if (!may_wait_) return;
      const uint64_t began = history_.Now();
      if (Fine(volume_.Flush())) history_.AddFlush(began);
      return;
    }
    const bool fua = may_wait_ && random_() % 8 == 0;
    absl::Status s;
    if (kind < 11) {
      change.id = history_.NewId();
      SectorHistory::Fill(change.id, first, absl::MakeSpan(data));
      change.began = history_.Now();
      s = volume_.Write(offset, data, fua);
    } else if (kind < 13) {
      change.began = history_.Now();
      s = volume_.Zero(
          offset, data.size(),
          {.fua = fua, .may_trim = random_() % 2 == 0, .only_fast = random_() % 2 == 0});
    } else if (kind < 14) {
      change.began = history_.Now();
      s = volume_.Write(offset, data, fua);
    } else {
      change.certain = false;
      change.began = history_.Now();
      s = volume_.Trim(offset, data.size(), fua);
    }
    change.ended = history_.Now();
    if (Fine(s)) {
      change.durable = fua && change.certain;
    } else {
      change.certain = false;
    }
    history_.AddChange(change);
  }

  Volume& volume_;
  const Arena& arena_;
  SectorHistory& history_;
  PowerSupply* const power_;
  const bool may_wait_;  // for commits
  std::mt19937_64 random_;
  bool going_ = true;
};

class ThinModel : public testing::TestWithParam<Case> {};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Shape& shape : kShapes) {
    cases.push_back({shape, End::kProcess});
    if (shape.legs > 1) cases.push_back({shape, End::kProcessBreakingLegs});
    cases.push_back({shape, End::kPower});
  }
  return cases;
}
std::string CaseName(const testing::TestParamInfo<Case>& instance) {
  constexpr const char* kEnds[] = {"_dying", "_dying_breaking", "_losing_power"};
  return std::string(instance.param.shape.name) + kEnds[static_cast<size_t>(instance.param.end)];
}
INSTANTIATE_TEST_SUITE_P(Shapes, ThinModel, testing::ValuesIn(Cases()), CaseName);

TEST_P(ThinModel, ReadsOnlyWhatTheHistoryExplains) {
  const Shape& shape = GetParam().shape;
  const End end = GetParam().end;
  const uint64_t seed = TestSeed();
  std::mt19937_64 random(seed);
  PowerSupply supply;
  PowerSupply* const power = end == End::kPower ? &supply : nullptr;
  ThinFixture f(shape, (2 * shape.columns + 1) * kExtentBytes,
                {.device = {.seed = seed, .threads = 2, .max_delay = absl::Microseconds(50)},
                 // Two rows full, and some to spare.
                 .units = uint64_t{6} * kSmallPerExtent,
                 .power = power,
                 // Now and then there is no whole row.
                 .longest_piece = random() % 4 == 0 ? 16u : 200u,
                 .seed = seed});
  f.site->SetPower([&] { return supply.on(); });
  const Arena arena(f.geometry);
  SectorHistory history(arena.sectors, /*reads_exclude_writes=*/shape.legs > 1, power != nullptr);

  // Around the arena all is full, so that its rows fold when it is.
  const std::string before(arena.first_sector * kSectorBytes, 'b');
  const uint64_t after_at = before.size() + arena.sectors * kSectorBytes;
  const std::string after(uint64_t{2} * shape.columns * kExtentBytes - after_at, 'a');
  ASSERT_TRUE(f.volume->Write(0, before, false).ok());
  ASSERT_TRUE(f.volume->Write(after_at, after, true).ok());
  ASSERT_TRUE(f.volume->Flush().ok());

  const auto read_all = [&] {
    std::string all(uint64_t{2} * shape.columns * kExtentBytes, 'x');
    const uint64_t began = history.Now();
    ASSERT_TRUE(f.volume->Read(0, absl::MakeSpan(all)).ok());
    EXPECT_TRUE(all.substr(0, before.size()) == before);
    EXPECT_TRUE(all.substr(after_at) == after);
    history.AddRead(0, began, history.Now(),
                    absl::MakeConstSpan(all).subspan(before.size(), arena.sectors * kSectorBytes));
  };

  const int rounds = std::max(2, Operations() / (kThreads * kOperationsPerRound));
  for (int round = 0; round < rounds; ++round) {
    const bool ends = round % 2 == 1;
    if (power != nullptr && ends) supply.CutAtRequest(supply.requests() + 1 + random() % 400);
    // Commits that come late, or not before the process dies.
    const bool held = power == nullptr && random() % 2 == 0;
    f.site->HoldUp(held);
    std::thread breaker;
    if (end == End::kProcessBreakingLegs && round == rounds / 2) {
      f.site->HoldUp(false);
      breaker = std::thread([&, keep = random() % shape.legs] {
        for (size_t d = 0; d < f.devices.size(); ++d) {
          if (d % shape.legs == keep) continue;
          absl::SleepFor(absl::Milliseconds(1));
          f.devices[d]->Die();
        }
      });
    }
    std::thread releaser([&] {
      absl::SleepFor(absl::Milliseconds(5));
      if (!ends) f.site->HoldUp(false);
    });
    const bool may_wait = !held || !ends;
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, client_seed = random()] {
        Client(*f.volume, arena, history, power, may_wait, client_seed).Run(kOperationsPerRound);
      });
    }
    for (std::thread& t : threads) t.join();
    releaser.join();
    if (breaker.joinable()) breaker.join();
    ASSERT_EQ(history.Judge(), "") << "in round " << round;
    if (HasFailure()) return;
    if (ends) {
      if (power != nullptr) supply.CutNow();
      f.Kill();
      f.site->HoldUp(false);
      if (power != nullptr) {
        supply.Restore(random());
        f.site->Crash([&](uint64_t n) { return random() % n; });
        f.LosePower();
        history.PowerCut();
      }
      for (auto& device : f.devices) device->Revive();
      f.Open();
      if (HasFailure()) return;
    }
    read_all();
    if (HasFailure()) return;
  }
  ASSERT_EQ(history.Judge(), "");
  ASSERT_TRUE(f.volume->Finish().ok());
  EXPECT_EQ(f.site->granted_units(), 0u);
  EXPECT_EQ(f.site->CompareLegs(), "");
}

}  // namespace
}  // namespace braid
