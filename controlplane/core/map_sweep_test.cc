#include "controlplane/core/map_sweep.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/test_seed.h"
#include "lib/base/units.h"

namespace braid {
namespace {

MapRun MakeRun(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
               uint64_t unit, bool stale = false) {
  return {column, leg, ColumnUnit(first), count, DeviceIndex(device), DeviceUnit(unit), stale};
}
// Of whole extents: `first` and `count` are such.
MapRun Extents(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
               uint64_t unit, bool stale = false) {
  return MakeRun(column, leg, first * kSmallPerExtent, count * kSmallPerExtent, device, unit,
                 stale);
}
Geometry Mirror(uint64_t extents, uint32_t legs = 2) {
  return *Geometry::Make(extents * kExtentBytes, 1, kDefaultStripeBytes, legs);
}
absl::Status Check(const Geometry& geometry, const std::vector<MapRun>& runs,
                   Coverage coverage = Coverage::kWhole) {
  return SweepMap(geometry, coverage, runs, [](const MapStretch&) { return absl::OkStatus(); });
}

TEST(SweepMap, VisitsStretchesWhereNoLegChanges) {
  std::string seen;
  const std::vector<MapRun> runs = {Extents(0, 0, 0, 6, 0, 64), Extents(0, 0, 6, 4, 2, 64),
                                    Extents(0, 1, 0, 4, 1, 64), Extents(0, 1, 4, 6, 3, 64)};
  ASSERT_TRUE(SweepMap(Mirror(10), Coverage::kWhole, runs, [&](const MapStretch& s) {
                absl::StrAppend(&seen, ExtentOf(s.first).value(), "+", s.count / kSmallPerExtent,
                                ":", s.legs[0]->device.value(), s.legs[1]->device.value(), " ");
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(seen, "0+4:01 4+2:03 6+4:23 ");
}

TEST(SweepMap, RefusesMapsThatDoNotCoverEachExtentOnce) {
  const Geometry g = Mirror(4, 1);
  EXPECT_TRUE(Check(g, {Extents(0, 0, 0, 4, 0, 64)}).ok());
  const std::vector<std::vector<MapRun>> bad = {
      {},
      {Extents(0, 0, 0, 3, 0, 64)},                              // ends early
      {Extents(0, 0, 1, 3, 0, 64)},                              // begins late
      {Extents(0, 0, 0, 5, 0, 64)},                              // too long
      {Extents(0, 0, 0, 2, 0, 64), Extents(0, 0, 3, 1, 0, 64)},  // a gap
      {Extents(0, 0, 0, 3, 0, 64), Extents(0, 0, 2, 2, 1, 64)},  // overlap
      {Extents(0, 0, 0, 4, 0, 64), Extents(0, 0, 0, 4, 1, 64)},  // twice
      {Extents(0, 0, 0, 4, 0, 64), Extents(0, 1, 0, 4, 1, 64)},  // a leg too many
      {Extents(0, 0, 0, 4, 0, 64), Extents(1, 0, 0, 4, 1, 64)},  // a column too many
      {Extents(0, 0, 2, 2, 0, 64), Extents(0, 0, 0, 2, 0, 64)},  // out of order
      {Extents(0, 0, 0, 0, 0, 64), Extents(0, 0, 0, 4, 0, 64)},  // empty
      {MakeRun(0, 0, 0, UINT64_MAX, 0, 64)},
      {MakeRun(0, 0, 0, 255, 0, 64)},                                // a unit short
      {MakeRun(0, 0, 0, 257, 0, 64)},                                // a unit too long
      {MakeRun(0, 0, 0, 70, 0, 64), MakeRun(0, 0, 71, 185, 0, 64)},  // a gap of one unit
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(Check(g, bad[i]).code(), absl::StatusCode::kDataLoss) << i;
  }
  EXPECT_EQ(Check(Mirror(4), {Extents(0, 0, 0, 4, 0, 64)}).code(), absl::StatusCode::kDataLoss);
}

TEST(SweepMap, SkipsUnitsWithoutCopiesWhereHolesMayBe) {
  const std::vector<MapRun> runs = {MakeRun(0, 0, 3, 4, 0, 64), MakeRun(0, 0, 7, 1, 2, 64),
                                    MakeRun(0, 0, 100, 2, 0, 80), MakeRun(0, 1, 3, 5, 1, 64),
                                    MakeRun(0, 1, 100, 2, 3, 64)};
  std::string seen;
  ASSERT_TRUE(SweepMap(Mirror(4), Coverage::kHoles, runs, [&](const MapStretch& s) {
                absl::StrAppend(&seen, s.first.value(), "+", s.count, ":",
                                s.legs[0]->device.value(), s.legs[1]->device.value(), " ");
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(seen, "3+4:01 7+1:21 100+2:03 ");
  EXPECT_EQ(Check(Mirror(4), runs).code(), absl::StatusCode::kDataLoss) << "whole it is not";
  EXPECT_TRUE(Check(Mirror(4), {}, Coverage::kHoles).ok());
}

TEST(SweepMap, RefusesUnitsThatOnlySomeLegsHave) {
  const Geometry g = Mirror(4);
  const MapRun both = MakeRun(0, 1, 3, 4, 1, 64);
  EXPECT_TRUE(Check(g, {MakeRun(0, 0, 3, 4, 0, 64), both}, Coverage::kHoles).ok());
  const std::vector<std::vector<MapRun>> bad = {
      {both},
      {MakeRun(0, 0, 3, 4, 0, 64)},
      {MakeRun(0, 0, 3, 3, 0, 64), both},                              // ends early
      {MakeRun(0, 0, 4, 3, 0, 64), both},                              // begins late
      {MakeRun(0, 0, 3, 5, 0, 64), both},                              // ends late
      {MakeRun(0, 0, 2, 5, 0, 64), both},                              // begins early
      {MakeRun(0, 0, 3, 1, 0, 64), MakeRun(0, 0, 5, 2, 0, 66), both},  // a gap in one leg
      {MakeRun(0, 0, 3, 4, 0, 64), MakeRun(0, 0, 5, 2, 0, 80), both},  // overlap
      {MakeRun(0, 0, 3, 4, 0, 64), MakeRun(0, 0, 1, 2, 0, 80), both},  // out of order
      {MakeRun(0, 0, 3, 4, 0, 64), MakeRun(0, 0, 9, 0, 0, 80), both},  // empty
      {MakeRun(0, 0, 3, 4, 0, 64), both, MakeRun(0, 1, 256, 1, 1, 80)},
      {MakeRun(0, 0, 3, 4, 0, 64), both, MakeRun(0, 2, 3, 4, 1, 80)},
      {MakeRun(0, 0, 3, UINT64_MAX, 0, 64), MakeRun(0, 1, 3, UINT64_MAX, 1, 64)},
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(Check(g, bad[i], Coverage::kHoles).code(), absl::StatusCode::kDataLoss) << i;
  }
}

// Random maps of a few units, sound or with one unit of one leg taken out or added twice,
// against a count of every unit's copies.
TEST(SweepMap, AgreesWithACountOfCopies) {
  std::mt19937_64 random(TestSeed());
  int sound = 0;
  for (int round = 0; round < 20'000; ++round) {
    const Geometry g = *Geometry::Make(2 * kExtentBytes, 2, kDefaultStripeBytes, 2);
    std::vector<MapRun> runs;
    uint32_t copies[2][2][64] = {};  // by column, leg, unit
    for (uint32_t column = 0; column < 2; ++column) {
      std::vector<std::pair<uint64_t, uint64_t>> parts;
      for (uint64_t at = random() % 3 * 20; at < 64;) {
        const uint64_t count = std::min<uint64_t>(1 + random() % 40, 64 - at);
        parts.emplace_back(at, count);
        at += count + (random() % 2) * (random() % 20);
      }
      for (uint32_t leg = 0; leg < 2; ++leg) {
        for (auto [first, count] : parts) {
          if (random() % 24 == 0) count += random() % 3 - 1;
          if (random() % 24 == 0) first += random() % 2;
          if (count == 0 || first + count > 64) continue;
          // Cut at random: stretches need not be those of the other leg.
          const uint64_t cut = random() % count;
          if (cut > 0) runs.push_back(MakeRun(column, leg, first, cut, 0, 64));
          runs.push_back(MakeRun(column, leg, first + cut, count - cut, 1, 64));
          for (uint64_t i = 0; i < count; ++i) ++copies[column][leg][first + i];
        }
      }
    }
    bool holes = true, whole = true;
    uint64_t expected = 0;
    for (const auto& column : copies) {
      for (uint64_t unit = 0; unit < 64; ++unit) {
        holes = holes && column[0][unit] == column[1][unit] && column[0][unit] <= 1;
        whole = whole && column[0][unit] == 1 && column[1][unit] == 1;
        expected += column[0][unit];
      }
    }
    uint64_t swept = 0;
    const absl::Status status = SweepMap(g, Coverage::kHoles, runs, [&](const MapStretch& s) {
      EXPECT_GT(s.count, 0u);
      for (const MapRun* run : s.legs) {
        EXPECT_LE(run->first, s.first);
        EXPECT_GE(run->first + run->count, s.first + s.count);
      }
      swept += s.count;
      return absl::OkStatus();
    });
    ASSERT_EQ(status.ok(), holes) << "round " << round << ": " << status;
    if (holes) {
      ASSERT_EQ(swept, expected);
    }
    ASSERT_EQ(Check(g, runs).ok(), whole);
    sound += holes ? 1 : 0;
  }
  EXPECT_GT(sound, 1'000);
  EXPECT_LT(sound, 19'000);
}

TEST(CheckReadable, AsksOnlyForWhatIsMappedWhereHolesMayBe) {
  const std::vector<MapRun> runs = {MakeRun(0, 0, 5, 1, 0, 64), MakeRun(0, 1, 5, 1, 1, 64)};
  const auto name = [](DeviceIndex d) { return absl::StrCat("d", d.value()); };
  const auto check = [&](uint16_t present) {
    return CheckReadable(
        Mirror(8), Coverage::kHoles, runs,
        [present](DeviceIndex d) { return d.value() == present; }, name);
  };
  EXPECT_TRUE(check(0).ok());
  EXPECT_TRUE(check(1).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(check(2)));
}

TEST(CheckReadable, NamesTheMissingDeviceThatHasTheOnlyCopy) {
  const std::vector<MapRun> runs = {Extents(0, 0, 0, 4, 0, 64), Extents(0, 0, 4, 4, 2, 64),
                                    Extents(0, 1, 0, 8, 1, 64, true)};
  const auto name = [](DeviceIndex d) { return absl::StrCat("d", d.value()); };
  EXPECT_TRUE(
      CheckReadable(
          Mirror(8), Coverage::kWhole, runs, [](DeviceIndex d) { return d.value() != 1; }, name)
          .ok());
  absl::Status status = CheckReadable(
      Mirror(8), Coverage::kWhole, runs, [](DeviceIndex d) { return d.value() != 2; }, name);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "'d2'")) << status.message();
}

}  // namespace
}  // namespace braid
