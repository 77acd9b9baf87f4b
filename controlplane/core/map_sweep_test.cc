#include "controlplane/core/map_sweep.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/units.h"

namespace braid {
namespace {

MapRun MakeRun(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
               uint64_t unit, bool stale = false) {
  return {column, leg, ExtentIndex(first), count, DeviceIndex(device), DeviceUnit(unit), stale};
}
Geometry Mirror(uint64_t extents, uint32_t legs = 2) {
  return *Geometry::Make(extents * kExtentBytes, 1, kDefaultStripeBytes, legs);
}
absl::Status Check(const Geometry& geometry, const std::vector<MapRun>& runs) {
  return SweepMap(geometry, runs, [](const MapStretch&) { return absl::OkStatus(); });
}

TEST(SweepMap, VisitsStretchesWhereNoLegChanges) {
  std::string seen;
  const std::vector<MapRun> runs = {MakeRun(0, 0, 0, 6, 0, 64), MakeRun(0, 0, 6, 4, 2, 64),
                                    MakeRun(0, 1, 0, 4, 1, 64), MakeRun(0, 1, 4, 6, 3, 64)};
  ASSERT_TRUE(SweepMap(Mirror(10), runs, [&](const MapStretch& s) {
                absl::StrAppend(&seen, s.first.value(), "+", s.count, ":",
                                s.legs[0]->device.value(), s.legs[1]->device.value(), " ");
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(seen, "0+4:01 4+2:03 6+4:23 ");
}

TEST(SweepMap, RefusesMapsThatDoNotCoverEachExtentOnce) {
  const Geometry g = Mirror(4, 1);
  EXPECT_TRUE(Check(g, {MakeRun(0, 0, 0, 4, 0, 64)}).ok());
  const std::vector<std::vector<MapRun>> bad = {
      {},
      {MakeRun(0, 0, 0, 3, 0, 64)},                              // ends early
      {MakeRun(0, 0, 1, 3, 0, 64)},                              // begins late
      {MakeRun(0, 0, 0, 5, 0, 64)},                              // too long
      {MakeRun(0, 0, 0, 2, 0, 64), MakeRun(0, 0, 3, 1, 0, 64)},  // a gap
      {MakeRun(0, 0, 0, 3, 0, 64), MakeRun(0, 0, 2, 2, 1, 64)},  // overlap
      {MakeRun(0, 0, 0, 4, 0, 64), MakeRun(0, 0, 0, 4, 1, 64)},  // twice
      {MakeRun(0, 0, 0, 4, 0, 64), MakeRun(0, 1, 0, 4, 1, 64)},  // a leg too many
      {MakeRun(0, 0, 0, 4, 0, 64), MakeRun(1, 0, 0, 4, 1, 64)},  // a column too many
      {MakeRun(0, 0, 2, 2, 0, 64), MakeRun(0, 0, 0, 2, 0, 64)},  // out of order
      {MakeRun(0, 0, 0, 0, 0, 64), MakeRun(0, 0, 0, 4, 0, 64)},  // empty
      {MakeRun(0, 0, 0, UINT64_MAX, 0, 64)},
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(Check(g, bad[i]).code(), absl::StatusCode::kDataLoss) << i;
  }
  EXPECT_EQ(Check(Mirror(4), {MakeRun(0, 0, 0, 4, 0, 64)}).code(), absl::StatusCode::kDataLoss);
}

TEST(KeepOnePresentLeg, AbsentDeviceIsNoSurvivorWhileAnotherCopyIsThere) {
  const std::vector<MapRun> runs = {MakeRun(0, 0, 0, 8, 0, 64), MakeRun(0, 1, 0, 8, 1, 64)};
  auto kept =
      KeepOnePresentLeg(Mirror(8), runs, [](DeviceIndex device) { return device.value() == 1; });
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(*kept,
            (std::vector<MapRun>{MakeRun(0, 0, 0, 8, 0, 64, true), MakeRun(0, 1, 0, 8, 1, 64)}));
}

// Whatever the map and whichever devices are there: one in-sync copy of every extent is
// left, it was in sync before, and it is on a device that is there if any was.
TEST(KeepOnePresentLeg, LeavesOneCopyWhichWasInSync) {
  const char* given = std::getenv("BRAID_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  SCOPED_TRACE(absl::StrCat("BRAID_SEED=", seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 500; ++round) {
    const auto legs = static_cast<uint32_t>(2 + random() % 3);
    const Geometry g = Mirror(1 + random() % 30, legs);
    std::vector<MapRun> runs;
    for (uint32_t leg = 0; leg < legs; ++leg) {
      for (uint64_t first = 0; first < g.extents_per_column();) {
        const uint64_t count = std::min(1 + random() % 8, g.extents_per_column() - first);
        runs.push_back(MakeRun(0, leg, first, count, static_cast<uint16_t>(random() % 6),
                               random() % 1000 * 64, leg != 0 && random() % 3 == 0));
        first += count;
      }
    }
    const uint64_t there = random();
    const auto present = [&](DeviceIndex d) { return (there >> d.value() & 1) != 0; };
    auto kept = KeepOnePresentLeg(g, runs, present);
    ASSERT_TRUE(kept.ok()) << kept.status();
    const auto run_at = [](const std::vector<MapRun>& all, uint32_t leg, uint64_t extent) {
      for (const MapRun& run : all) {
        if (run.leg == leg && run.first.value() <= extent && extent < run.first.value() + run.count)
          return run;
      }
      return MapRun();
    };
    for (uint64_t extent = 0; extent < g.extents_per_column(); ++extent) {
      int in_sync = 0;
      bool could_be_there = false;
      bool is_there = false;
      for (uint32_t leg = 0; leg < legs; ++leg) {
        const MapRun before = run_at(runs, leg, extent);
        const MapRun after = run_at(*kept, leg, extent);
        EXPECT_EQ(before.device, after.device);
        EXPECT_EQ(before.unit.value() + (extent - before.first.value()) * kSmallPerExtent,
                  after.unit.value() + (extent - after.first.value()) * kSmallPerExtent);
        could_be_there = could_be_there || (!before.stale && present(before.device));
        if (after.stale) continue;
        ++in_sync;
        EXPECT_FALSE(before.stale);
        is_there = present(after.device);
      }
      ASSERT_EQ(in_sync, 1);
      ASSERT_EQ(is_there, could_be_there);
    }
  }
}

TEST(CheckReadable, NamesTheMissingDeviceThatHasTheOnlyCopy) {
  const std::vector<MapRun> runs = {MakeRun(0, 0, 0, 4, 0, 64), MakeRun(0, 0, 4, 4, 2, 64),
                                    MakeRun(0, 1, 0, 8, 1, 64, true)};
  const auto name = [](DeviceIndex d) { return absl::StrCat("d", d.value()); };
  EXPECT_TRUE(CheckReadable(
                  Mirror(8), runs, [](DeviceIndex d) { return d.value() != 1; }, name)
                  .ok());
  absl::Status status = CheckReadable(
      Mirror(8), runs, [](DeviceIndex d) { return d.value() != 2; }, name);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "'d2'")) << status.message();
}

}  // namespace
}  // namespace braid
