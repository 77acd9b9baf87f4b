#include "lib/mapping/map_run.h"

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

MapRun RunOf(uint32_t leg, uint64_t first, uint64_t count, uint16_t device, uint64_t unit,
             bool stale = false) {
  return {0, leg, ColumnUnit(first), count, DeviceIndex(device), DeviceUnit(unit), stale};
}

// What runs say of every single unit.
struct Copy {
  uint16_t device;
  uint64_t unit;
  bool stale;
  friend bool operator==(const Copy&, const Copy&) = default;
};
using Row = std::map<uint32_t, Copy>;                        // by leg
using Model = std::map<std::pair<uint32_t, uint64_t>, Row>;  // by (column, unit)

Model Expand(const std::vector<MapRun>& runs) {
  Model model;
  for (const MapRun& run : runs) {
    for (uint64_t i = 0; i < run.count; ++i) {
      const bool fresh =
          model[{run.column, run.first.value() + i}]
              .insert({run.leg, {run.device.value(), run.unit.value() + i, run.stale}})
              .second;
      EXPECT_TRUE(fresh) << "runs overlap";
    }
  }
  return model;
}

int InSync(const Row& row) {
  return static_cast<int>(
      std::count_if(row.begin(), row.end(), [](const auto& copy) { return !copy.second.stale; }));
}

bool IsNormal(const std::vector<MapRun>& runs) {
  for (size_t i = 1; i < runs.size(); ++i) {
    const MapRun& a = runs[i - 1];
    const MapRun& b = runs[i];
    if (std::tuple(a.column, a.leg, a.first) >= std::tuple(b.column, b.leg, b.first)) return false;
    const bool continues = a.column == b.column && a.leg == b.leg &&
                           a.first.value() + a.count == b.first.value() && a.device == b.device &&
                           a.unit.value() + a.count == b.unit.value() && a.stale == b.stale;
    if (continues || a.count == 0 || b.count == 0) return false;
  }
  return true;
}

// Legs of random runs with gaps, boundaries that cross those of other legs, neighbours
// that continue each other, and now and then two legs of an extent on one device.
std::vector<MapRun> RandomRuns(std::mt19937_64& random) {
  std::vector<MapRun> runs;
  const uint32_t columns = static_cast<uint32_t>(1 + random() % 3);
  const uint32_t legs = static_cast<uint32_t>(1 + random() % kMaxLegs);
  for (uint32_t column = 0; column < columns; ++column) {
    for (uint32_t leg = 0; leg < legs; ++leg) {
      uint64_t at = random() % 4;
      while (at < 40) {
        const uint64_t count = 1 + random() % 12;
        const MapRun* last = runs.empty() ? nullptr : &runs.back();
        if (last != nullptr && last->column == column && last->leg == leg && random() % 3 == 0 &&
            last->first.value() + last->count == at) {
          MapRun next = *last;
          next.first = next.first + next.count;
          next.unit = next.unit + next.count;
          next.count = count;
          if (random() % 4 == 0) next.stale = !next.stale;
          runs.push_back(next);
        } else {
          MapRun run = RunOf(leg, at, count, static_cast<uint16_t>(random() % 5),
                             random() % 100'000, random() % 4 == 0);
          run.column = column;
          runs.push_back(run);
        }
        at += count + (random() % 2 == 0 ? 0 : random() % 6);
      }
    }
  }
  std::shuffle(runs.begin(), runs.end(), random);
  return runs;
}

TEST(MapRun, MarkDeviceStaleMatchesAModelOfSingleUnits) {
  std::mt19937_64 random(TestSeed());
  int rows_changed = 0;
  int rows_spared = 0;
  for (int round = 0; round < 2'000; ++round) {
    const std::vector<MapRun> runs = RandomRuns(random);
    const auto device = static_cast<uint16_t>(random() % 5);
    Model expected = Expand(runs);
    for (auto& [place, row] : expected) {
      for (auto copy = row.rbegin(); copy != row.rend(); ++copy) {
        if (copy->second.device != device || copy->second.stale) continue;
        if (InSync(row) == 1) {
          ++rows_spared;
        } else {
          copy->second.stale = true;
          ++rows_changed;
        }
      }
    }
    const std::vector<MapRun> result = MarkDeviceStale(runs, DeviceIndex(device));
    ASSERT_EQ(Expand(result), expected) << "round " << round;
    ASSERT_TRUE(IsNormal(result)) << "round " << round;
    // Said of the result itself, whatever the model does.
    const Model after = Expand(result);
    for (const auto& [place, before] : Expand(runs)) {
      const Row& now = after.at(place);
      ASSERT_EQ(InSync(before) > 0, InSync(now) > 0) << "the last in-sync copy was lost";
      if (InSync(now) <= 1) continue;
      for (const auto& [leg, copy] : now) ASSERT_TRUE(copy.device != device || copy.stale);
    }
    ASSERT_EQ(MarkDeviceStale(result, DeviceIndex(device)), result) << "not idempotent";
  }
  EXPECT_GT(rows_changed, 1'000);
  EXPECT_GT(rows_spared, 1'000);
}

TEST(MapRun, KeepOneLegMatchesAModelOfSingleUnits) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 2'000; ++round) {
    const std::vector<MapRun> runs = RandomRuns(random);
    const uint64_t there = random();
    const auto present = [there](DeviceIndex d) { return (there >> d.value() & 1) != 0; };
    Model expected = Expand(runs);
    for (auto& [place, row] : expected) {
      // Among copies on devices that are there, if there are any, the lowest leg.
      const auto lowest = [&row = row, &present](bool must_be_there) {
        return std::find_if(row.begin(), row.end(), [&](const auto& leg_copy) {
          return !leg_copy.second.stale &&
                 (!must_be_there || present(DeviceIndex(leg_copy.second.device)));
        });
      };
      auto kept = lowest(true);
      if (kept == row.end()) kept = lowest(false);
      for (auto copy = row.begin(); copy != row.end(); ++copy) {
        if (copy != kept) copy->second.stale = true;
      }
    }
    const std::vector<MapRun> result = KeepOneLeg(runs, present);
    ASSERT_EQ(Expand(result), expected) << "round " << round;
    ASSERT_TRUE(IsNormal(result)) << "round " << round;
    const Model after = Expand(result);
    for (const auto& [place, before] : Expand(runs)) {
      ASSERT_EQ(InSync(after.at(place)), std::min(InSync(before), 1));
    }
  }
}

TEST(MapRun, NormalizeJoinsAndChangesNothingElse) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 2'000; ++round) {
    const std::vector<MapRun> runs = RandomRuns(random);
    const std::vector<MapRun> result = Normalize(runs);
    ASSERT_EQ(Expand(result), Expand(runs));
    ASSERT_TRUE(IsNormal(result));
  }
  EXPECT_EQ(Normalize({RunOf(0, 2, 2, 1, 2), RunOf(0, 0, 2, 1, 0)}),
            (std::vector<MapRun>{RunOf(0, 0, 4, 1, 0)}));
  EXPECT_TRUE(Normalize({}).empty());
}

TEST(MapRun, MarkDeviceStaleSplitsWhereTheOtherLegEnds) {
  // Leg 1 covers only units 2 to 5 of leg 0's 0 to 9; the rest has no other copy.
  EXPECT_EQ(MarkDeviceStale({RunOf(0, 0, 10, 7, 0), RunOf(1, 2, 4, 8, 0)}, DeviceIndex(7)),
            (std::vector<MapRun>{RunOf(0, 0, 2, 7, 0), RunOf(0, 2, 4, 7, 2, true),
                                 RunOf(0, 6, 4, 7, 6), RunOf(1, 2, 4, 8, 0)}));
  // A stale copy elsewhere saves no one.
  EXPECT_EQ(MarkDeviceStale({RunOf(0, 0, 10, 7, 0), RunOf(1, 0, 10, 8, 0, true)}, DeviceIndex(7)),
            (std::vector<MapRun>{RunOf(0, 0, 10, 7, 0), RunOf(1, 0, 10, 8, 0, true)}));
}

TEST(MapRun, LongRunsTakeNoLongerThanShortOnes) {
  const uint64_t count = uint64_t{1} << 47;
  const auto all = [](DeviceIndex) { return true; };
  EXPECT_EQ(KeepOneLeg({RunOf(0, 0, count, 0, 0), RunOf(1, 0, count, 1, 0)}, all),
            (std::vector<MapRun>{RunOf(0, 0, count, 0, 0), RunOf(1, 0, count, 1, 0, true)}));
}

TEST(MapRun, CheckRunRefusesWhatTheVolumeDoesNotHave) {
  const Geometry geometry = *Geometry::Make(10 * kExtentBytes, 1, 0, 2);
  EXPECT_TRUE(CheckRun(geometry, RunOf(1, 0, 640, 2, 0), 3).ok());
  EXPECT_TRUE(CheckRun(geometry, RunOf(1, 639, 1, 2, kMaxDeviceUnits - 1), 3).ok());
  EXPECT_TRUE(CheckRun(geometry, RunOf(1, 100, 64, 2, kMaxDeviceUnits - 64), 3).ok());
  MapRun other_column = RunOf(0, 0, 1, 0, 0);
  other_column.column = 1;
  const std::pair<MapRun, const char*> cases[] = {
      {other_column, "1 columns"},
      {RunOf(2, 0, 1, 0, 0), "2 legs"},
      {RunOf(0, 0, 0, 0, 0), "is empty"},
      {RunOf(0, 0, 641, 0, 0), "640 units"},
      {RunOf(0, 640, 1, 0, 0), "640 units"},
      {RunOf(0, 2, UINT64_MAX, 0, 0), "640 units"},
      {RunOf(0, UINT64_MAX, 2, 0, 0), "640 units"},
      {RunOf(0, 0, 1, 3, 0), "3 devices"},
      {RunOf(0, 0, 1, 0, kMaxDeviceUnits), "past unit"},
      {RunOf(0, 0, 64, 0, kMaxDeviceUnits - 63), "past unit"},
      {RunOf(0, 0, 1, 0, UINT64_MAX), "past unit"},
  };
  for (const auto& [run, says] : cases) {
    const absl::Status status = CheckRun(geometry, run, 3);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << says;
    EXPECT_NE(status.ToString().find(says), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace braid
