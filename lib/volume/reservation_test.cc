#include "lib/volume/reservation.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

constexpr uint64_t kRow = kSmallPerExtent;

Geometry Shape(uint32_t columns, uint32_t legs) {
  return Geometry::Make(uint64_t{1000} * columns * kExtentBytes, columns, 64 * kKiB, legs).value();
}

// Leg l lies on device first_device + l, each from unit `unit` + 1000 * l on.
Grant At(uint16_t first_device, uint64_t unit, uint64_t count, uint16_t legs = 1) {
  Grant grant{.count = count, .legs = {}};
  for (uint16_t l = 0; l < legs; ++l) {
    grant.legs.push_back({.device = DeviceIndex(static_cast<uint16_t>(first_device + l)),
                          .unit = DeviceUnit(unit + uint64_t{1000} * l)});
  }
  return grant;
}

TEST(ReservationTest, GivesNothingWhenItHasNothing) {
  Reservation reservation(Shape(1, 1));
  EXPECT_EQ(reservation.TakeRow(0), std::nullopt);
  EXPECT_EQ(reservation.TakeUnits(0, 1), std::nullopt);
  EXPECT_TRUE(reservation.TakeAll().empty());
  reservation.Add(At(0, 5, 1));
  EXPECT_EQ(reservation.TakeUnits(0, 0), std::nullopt);
  EXPECT_EQ(reservation.TakeUnits(0, 1), At(0, 5, 1));
  EXPECT_EQ(reservation.TakeUnits(0, 1), std::nullopt);
}

TEST(ReservationTest, GivesRowsFromTheFrontSideBySide) {
  Reservation reservation(Shape(1, 3));
  reservation.Add(At(2, 500, 2 * kRow + 5, 3));
  EXPECT_EQ(reservation.units(), 2 * kRow + 5);
  EXPECT_EQ(reservation.rows(), 2u);
  EXPECT_EQ(reservation.TakeRow(0), At(2, 500, kRow, 3));
  EXPECT_EQ(reservation.TakeRow(0), At(2, 500 + kRow, kRow, 3));
  EXPECT_EQ(reservation.TakeRow(0), std::nullopt);
  EXPECT_EQ(reservation.rows(), 0u);
  EXPECT_EQ(reservation.units(), 5u);
}

TEST(ReservationTest, KeepsSmallExtentsOfOneTimeTogetherAndRowsWhole) {
  Reservation reservation(Shape(1, 1));
  reservation.Add(At(0, 1000, 4 * kRow));
  EXPECT_EQ(reservation.TakeUnits(0, 3), At(0, 1000, 3));
  EXPECT_EQ(reservation.rows(), 3u);
  EXPECT_EQ(reservation.TakeRow(0), At(0, 1000 + kRow, kRow));
  EXPECT_EQ(reservation.TakeUnits(0, 60), At(0, 1003, 60));
  // One unit is left of the open row: too short for this, so another row is opened.
  EXPECT_EQ(reservation.TakeUnits(0, 2), At(0, 1000 + 2 * kRow, 2));
  EXPECT_EQ(reservation.rows(), 1u);
  EXPECT_EQ(reservation.TakeUnits(0, 62), At(0, 1002 + 2 * kRow, 62));
  // Where it is long enough, what is left is used before another row.
  EXPECT_EQ(reservation.TakeUnits(0, 1), At(0, 1063, 1));
  EXPECT_EQ(reservation.rows(), 1u);
}

TEST(ReservationTest, GivesTheLongestPieceWhereNoneIsAsLong) {
  Reservation reservation(Shape(1, 1));
  reservation.Add(At(0, 100, 3));
  reservation.Add(At(0, 200, 5));
  reservation.Add(At(0, 300, 4));
  EXPECT_EQ(reservation.TakeUnits(0, 64), At(0, 200, 5));
  EXPECT_EQ(reservation.TakeUnits(0, 3), At(0, 100, 3));
  EXPECT_EQ(reservation.TakeUnits(0, 6), At(0, 300, 4));
  reservation.Add(At(0, 1000, 3 * kRow));
  reservation.Add(At(0, 2000, 5 * kRow));
  EXPECT_EQ(reservation.TakeUnits(0, 4 * kRow), At(0, 2000, 4 * kRow));
  EXPECT_EQ(reservation.TakeUnits(0, 4 * kRow), At(0, 1000, 3 * kRow));
}

TEST(ReservationTest, KeepsColumnsApart) {
  constexpr uint32_t kColumns = 3;
  Reservation reservation(Shape(kColumns, 1));
  for (uint16_t d = 0; d < kColumns; ++d) reservation.Add(At(d, 0, 8 * kRow));
  std::vector<DeviceIndex> home(kColumns);
  std::set<DeviceIndex> homes;
  for (uint32_t c = 0; c < kColumns; ++c) {
    home[c] = reservation.TakeRow(c)->legs[0].device;
    homes.insert(home[c]);
  }
  EXPECT_EQ(homes.size(), kColumns);
  for (int round = 0; round < 3; ++round) {
    for (uint32_t c = 0; c < kColumns; ++c) {
      EXPECT_EQ(reservation.TakeRow(c)->legs[0].device, home[c]);
      EXPECT_EQ(reservation.TakeUnits(c, 7)->legs[0].device, home[c]);
    }
  }
  // More of each arrives in pieces of a row: the columns stay where they are.
  for (uint64_t i = 0; i < 8; ++i) {
    for (uint16_t d = 0; d < kColumns; ++d) reservation.Add(At(d, 10000 + i * 100, kRow));
  }
  for (int round = 0; round < 8; ++round) {
    for (uint32_t c = 0; c < kColumns; ++c) {
      EXPECT_EQ(reservation.TakeRow(c)->legs[0].device, home[c]);
    }
  }
}

TEST(ReservationTest, PutsBackToWhereItWas) {
  Reservation reservation(Shape(1, 2));
  reservation.Add(At(0, 0, 3 * kRow, 2));
  const Grant first = *reservation.TakeUnits(0, 10), second = *reservation.TakeUnits(0, 4);
  const Grant row = *reservation.TakeRow(0);
  reservation.PutBack(first);
  reservation.PutBack(row);
  reservation.PutBack(second);
  EXPECT_EQ(reservation.rows(), 3u);
  EXPECT_EQ(reservation.TakeAll(), (std::vector<Grant>{At(0, 0, 3 * kRow, 2)}));
}

TEST(ReservationTest, NeverJoinsTwoGrants) {
  Reservation reservation(Shape(1, 1));
  reservation.Add(At(0, 0, 40));
  reservation.Add(At(0, 40, 40));
  EXPECT_EQ(reservation.rows(), 0u);
  EXPECT_EQ(reservation.TakeUnits(0, 64)->count, 40u);
  EXPECT_EQ(reservation.TakeUnits(0, 30), At(0, 40, 30));
  reservation.PutBack(At(0, 0, 40));
  reservation.PutBack(At(0, 40, 30));
  EXPECT_EQ(reservation.rows(), 0u);
  EXPECT_EQ(reservation.TakeUnits(0, 64)->count, 40u);
  EXPECT_EQ(reservation.TakeUnits(0, 64)->count, 40u);
}

TEST(ReservationTest, PassesOverAGrantThatCameTwice) {
  Reservation reservation(Shape(1, 1));
  reservation.Add(At(0, 100, 50));
  for (const Grant& again : {At(0, 100, 50), At(0, 149, 1), At(0, 90, 11), At(0, 50, 500)}) {
    reservation.Add(again);
    EXPECT_EQ(reservation.units(), 50u);
  }
  reservation.Add(At(0, 150, 1));
  reservation.Add(At(0, 99, 1));
  reservation.Add(At(1, 100, 50));
  EXPECT_EQ(reservation.units(), 102u);
}

TEST(ReservationTest, TakesExactlyWhatAJournalBinds) {
  Reservation reservation(Shape(1, 2));
  reservation.Add(At(3, 100, 50, 2));
  const auto missing = [&](const Grant& grant) {
    return reservation.TakeExactly(grant).code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(missing(At(3, 99, 1, 2)));
  EXPECT_TRUE(missing(At(3, 150, 1, 2)));
  EXPECT_TRUE(missing(At(3, 149, 2, 2)));
  EXPECT_TRUE(missing(At(3, 100, UINT64_MAX, 2)));
  EXPECT_TRUE(missing(At(3, 100, 0, 2)));
  EXPECT_TRUE(missing(At(4, 100, 1, 2)));
  EXPECT_TRUE(missing(At(3, 100, 1, 1)));
  EXPECT_TRUE(missing(At(3, 100, 1, 3)));
  Grant other_leg = At(3, 100, 1, 2);
  other_leg.legs[1].unit = DeviceUnit(1101);
  EXPECT_TRUE(missing(other_leg));
  EXPECT_EQ(reservation.units(), 50u);
  Grant middle = At(3, 110, 5, 2);
  middle.legs[1].stale = true;
  EXPECT_TRUE(reservation.TakeExactly(middle).ok());
  EXPECT_TRUE(missing(middle));
  EXPECT_TRUE(missing(At(3, 109, 2, 2)));
  EXPECT_TRUE(reservation.TakeExactly(At(3, 100, 10, 2)).ok());
  EXPECT_EQ(reservation.TakeAll(), (std::vector<Grant>{At(3, 115, 35, 2)}));
}

TEST(ReservationTest, GivesNothingOnADeviceThatFailed) {
  Reservation reservation(Shape(1, 2));
  reservation.Add(At(0, 0, 100, 2));  // devices 0 and 1
  reservation.Add(At(2, 0, 70, 2));   // 2 and 3
  reservation.Add(At(1, 0, 60, 2));   // 1 and 2
  const Grant out = *reservation.TakeUnits(0, 5);
  EXPECT_EQ(out, At(1, 0, 5, 2));
  EXPECT_EQ(reservation.DropDevice(DeviceIndex(1)),
            (std::vector<Grant>{At(0, 0, 100, 2), At(1, 5, 55, 2)}));
  EXPECT_EQ(reservation.units(), 70u);
  // What comes later, or back, is only returned.
  reservation.PutBack(out);
  reservation.Add(At(0, 500, 10, 2));
  EXPECT_EQ(reservation.units(), 70u);
  std::vector<Grant> excess = reservation.TakeExcess(70);
  EXPECT_EQ(excess, (std::vector<Grant>{out, At(0, 500, 10, 2)}));
  EXPECT_TRUE(reservation.TakeExcess(70).empty());
  while (const auto grant = reservation.TakeUnits(0, 8)) {
    EXPECT_EQ(grant->legs[0].device, DeviceIndex(2));
  }
}

TEST(ReservationTest, ReturnsFragmentsBeforeRows) {
  Reservation reservation(Shape(1, 1));
  reservation.Add(At(0, 0, 4 * kRow + 3));
  reservation.Add(At(1, 0, 7));
  reservation.Add(At(1, 100, 20));
  EXPECT_EQ(reservation.TakeExcess(4 * kRow + 23), (std::vector<Grant>{At(1, 0, 7)}));
  EXPECT_EQ(reservation.TakeExcess(4 * kRow + 10), (std::vector<Grant>{At(1, 107, 13)}));
  EXPECT_EQ(reservation.TakeExcess(3 * kRow),
            (std::vector<Grant>{At(1, 100, 7), At(0, 3 * kRow, kRow + 3)}));
  EXPECT_EQ(reservation.rows(), 3u);
  EXPECT_TRUE(reservation.TakeExcess(3 * kRow).empty());
}

// Random calls against a set of units: nothing is given twice or invented, legs stay
// together, and the counts are those of what is there.
TEST(ReservationTest, KeepsTheBooks) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 20; ++round) {
    const auto columns = static_cast<uint32_t>(1 + random() % 4);
    const auto legs = static_cast<uint16_t>(1 + random() % 3);
    Reservation reservation(Shape(columns, legs));
    using Unit = std::pair<uint16_t, uint64_t>;  // of the first leg
    std::set<Unit> here;
    std::vector<Grant> out;
    std::vector<uint64_t> next_unit(6, 0);
    const auto units_of = [&](const Grant& grant) {
      std::vector<Unit> units;
      EXPECT_EQ(grant.legs.size(), legs);
      for (uint16_t l = 0; l < legs; ++l) {
        EXPECT_EQ(grant.legs[l].device.value(), grant.legs[0].device.value() + l);
        EXPECT_EQ(grant.legs[l].unit.value(), grant.legs[0].unit.value() + uint64_t{1000} * l);
      }
      for (uint64_t i = 0; i < grant.count; ++i) {
        units.emplace_back(grant.legs[0].device.value(), grant.legs[0].unit.value() + i);
      }
      return units;
    };
    const auto leave = [&](const Grant& grant) {
      for (const Unit& unit : units_of(grant)) ASSERT_EQ(here.erase(unit), 1u) << "not here";
    };
    const auto enter = [&](const Grant& grant) {
      for (const Unit& unit : units_of(grant)) ASSERT_TRUE(here.insert(unit).second);
    };
    for (int step = 0; step < 600; ++step) {
      const auto column = static_cast<uint32_t>(random() % columns);
      switch (random() % 8) {
        case 0: {
          const auto device = static_cast<uint16_t>(random() % 6);
          const uint64_t count = random() % 3 == 0 ? 1 + random() % 300 : 1 + random() % 20;
          const Grant grant = At(device, next_unit[device] += random() % 2, count, legs);
          next_unit[device] += count;
          enter(grant);
          reservation.Add(grant);
          break;
        }
        case 1: {
          const uint64_t rows = reservation.rows();
          const auto row = reservation.TakeRow(column);
          ASSERT_EQ(row.has_value(), rows > 0);
          if (!row.has_value()) break;
          ASSERT_EQ(row->count, kRow);
          ASSERT_EQ(reservation.rows(), rows - 1);
          leave(*row);
          out.push_back(*row);
          break;
        }
        case 2:
        case 3:
        case 4: {
          const uint64_t count = 1 + random() % (random() % 4 == 0 ? 200 : 8);
          const auto grant = reservation.TakeUnits(column, count);
          ASSERT_EQ(grant.has_value(), !here.empty());
          if (!grant.has_value()) break;
          ASSERT_GE(grant->count, 1u);
          ASSERT_LE(grant->count, count);
          leave(*grant);
          out.push_back(*grant);
          break;
        }
        case 5:
          if (!out.empty()) {
            std::swap(out[random() % out.size()], out.back());
            enter(out.back());
            reservation.PutBack(out.back());
            out.pop_back();
          }
          break;
        case 6: {
          if (here.empty()) break;
          const Unit unit = *std::next(here.begin(), static_cast<int64_t>(random() % here.size()));
          const Grant grant = At(unit.first, unit.second, 1 + random() % 3, legs);
          if (!reservation.TakeExactly(grant).ok()) break;
          leave(grant);
          out.push_back(grant);
          break;
        }
        default: {
          const uint64_t keep = random() % 5 == 0 ? random() % 400 : here.size();
          for (const Grant& grant : reservation.TakeExcess(keep)) leave(grant);
          ASSERT_LE(reservation.units(), keep);
        }
      }
      ASSERT_EQ(reservation.units(), here.size());
    }
    for (const Grant& grant : reservation.TakeAll()) leave(grant);
    EXPECT_TRUE(here.empty());
    EXPECT_EQ(reservation.rows(), 0u);
  }
}

}  // namespace
}  // namespace braid
