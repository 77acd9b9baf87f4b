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
