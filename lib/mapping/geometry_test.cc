#include "lib/mapping/geometry.h"

#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/mapping/split.h"

namespace braid {
namespace {

Geometry Make(uint64_t size_bytes, uint32_t columns, uint64_t stripe_bytes, uint32_t legs) {
  absl::StatusOr<Geometry> geometry = Geometry::Make(size_bytes, columns, stripe_bytes, legs);
  EXPECT_TRUE(geometry.ok()) << geometry.status();
  return *geometry;
}

// A geometry of any size: the exponent is uniform, so that small ones are met too.
Geometry RandomGeometry(std::mt19937_64& random) {
  const uint64_t sectors =
      1 + (random() >> (10 + random() % 54)) % (kMaxVolumeBytes / kSectorBytes);
  const uint32_t columns = static_cast<uint32_t>(1 + random() % kMaxColumns);
  const uint64_t stripe_bytes = kMinStripeBytes << (random() % 11);
  return Make(sectors * kSectorBytes, columns, stripe_bytes,
              static_cast<uint32_t>(1 + random() % kMaxLegs));
}

TEST(Geometry, RefusesWhatNoVolumeCanBe) {
  struct {
    uint64_t size_bytes;
    uint64_t columns;
    uint64_t stripe_bytes;
    uint64_t legs;
    const char* says;
  } const cases[] = {
      {0, 1, 0, 1, "a volume of 0 bytes"},
      {511, 1, 0, 1, "a volume of 511 bytes"},
      {kGiB + 1, 1, 0, 1, "take a multiple of 512"},
      {uint64_t{1} << 63, 1, 0, 1, "from 512 to 9223372036854775296"},
      {UINT64_MAX, 1, 0, 1, "a volume of 18446744073709551615 bytes"},
      {kGiB, 0, 64 * kKiB, 1, "0 stripes; take from 1 to 64"},
      {kGiB, 65, 64 * kKiB, 1, "65 stripes; take from 1 to 64"},
      {kGiB, 2, 0, 1, "stripe size of 0 bytes"},
      {kGiB, 2, 2 * kKiB, 1, "stripe size of 2048 bytes"},
      {kGiB, 2, 48 * kKiB, 1, "take a power of two from 4096 to 4194304"},
      {kGiB, 2, 8 * kMiB, 1, "stripe size of 8388608 bytes"},
      {kGiB, 1, 0, 0, "0 copies; take from 1 to 4"},
      {kGiB, 1, 0, 5, "5 copies; take from 1 to 4"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Geometry::Make(c.size_bytes, static_cast<uint32_t>(c.columns),
                                               c.stripe_bytes, static_cast<uint32_t>(c.legs))
                                    .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.says;
    EXPECT_NE(status.ToString().find(c.says), std::string::npos) << status;
  }
}

TEST(Geometry, CountsExtentsAndRows) {
  EXPECT_EQ(Make(512, 1, 0, 1).rows(), 1u);
  EXPECT_EQ(Make(4 * kMiB, 1, 0, 1).rows(), 1u);
  EXPECT_EQ(Make(4 * kMiB + 512, 1, 0, 1).rows(), 2u);
  EXPECT_EQ(Make(64 * kTiB, 1, 0, 2).rows(), uint64_t{1} << 24);
  EXPECT_EQ(Make(64 * kTiB, 1, 0, 2).allocated_bytes(), 128 * kTiB);
  // Three columns of 64 KiB stripes: 193 stripes make 65 rounds, a bit over one extent.
  EXPECT_EQ(Make(uint64_t{193} * 64 * kKiB, 3, 64 * kKiB, 1).extents_per_column(), 2u);
  EXPECT_EQ(Make(uint64_t{192} * 64 * kKiB, 3, 64 * kKiB, 1).extents_per_column(), 1u);
  EXPECT_EQ(Make(kGiB, 1, 4 * kKiB, 1).stripe_bytes(), kExtentBytes);
  EXPECT_EQ(Geometry().rows(), 0u);
}

TEST(Geometry, LargestVolumesDoNotOverflow) {
  EXPECT_EQ(Make(kMaxVolumeBytes, 64, kMinStripeBytes, 1).allocated_bytes(), uint64_t{1} << 63);
  EXPECT_EQ(Make(kMaxVolumeBytes, 64, kMinStripeBytes, 2).allocated_bytes(), UINT64_MAX);
  EXPECT_EQ(Make(kMaxVolumeBytes, 63, kMinStripeBytes, 4).allocated_bytes(), UINT64_MAX);
  const Geometry geometry = Make(kMaxVolumeBytes, 63, kMinStripeBytes, 1);
  EXPECT_EQ(geometry.VolumeOffset(geometry.Locate(kMaxVolumeBytes - 1)), kMaxVolumeBytes - 1);
}

TEST(Geometry, LocateFollowsTheDefinitionAndVolumeOffsetIsItsInverse) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 20'000; ++round) {
    const Geometry g = RandomGeometry(random);
    std::vector<uint64_t> offsets = {0, g.size_bytes() - 1, random() % g.size_bytes()};
    // Next to a boundary of stripes, where a division that is off by one shows.
    const uint64_t boundary = random() % g.size_bytes() / g.stripe_bytes() * g.stripe_bytes();
    offsets.push_back(boundary);
    if (boundary > 0) offsets.push_back(boundary - 1);
    for (const uint64_t offset : offsets) {
      const ColumnPlace place = g.Locate(offset);
      const uint64_t stripe = offset / g.stripe_bytes();
      ASSERT_EQ(place.column, stripe % g.columns());
      ASSERT_EQ(place.offset, stripe / g.columns() * g.stripe_bytes() + offset % g.stripe_bytes());
      ASSERT_EQ(g.VolumeOffset(place), offset);
      ASSERT_LT(place.offset / kExtentBytes, g.extents_per_column());
      ASSERT_LT(g.Row(place), g.rows());
      ASSERT_EQ(g.Row(place), g.Row(place.column, ExtentIndex(place.offset / kExtentBytes)));
    }
  }
}

TEST(Geometry, EveryStripeCountDividesExactly) {
  for (uint32_t columns = 2; columns <= kMaxColumns; ++columns) {
    const Geometry g = Make(kMaxVolumeBytes, columns, kMinStripeBytes, 1);
    const uint64_t last = (kMaxVolumeBytes - 1) / kMinStripeBytes;
    // The last multiples are where the reciprocal's error is largest.
    for (uint64_t back = 0; back < uint64_t{3} * kMaxColumns; ++back) {
      const uint64_t stripe = last - back;
      const ColumnPlace place = g.Locate(stripe * kMinStripeBytes);
      ASSERT_EQ(place.column, stripe % columns);
      ASSERT_EQ(place.offset, stripe / columns * kMinStripeBytes);
    }
  }
}

TEST(Geometry, RowsOfPlacesAreDistinct) {
  const Geometry g = Make(15 * kExtentBytes, 3, 64 * kKiB, 1);
  std::set<uint64_t> rows;
  for (uint32_t column = 0; column < 3; ++column) {
    for (uint64_t extent = 0; extent < g.extents_per_column(); ++extent) {
      rows.insert(g.Row(column, ExtentIndex(extent)));
    }
  }
  EXPECT_EQ(rows.size(), g.rows());
  EXPECT_EQ(*rows.rbegin(), g.rows() - 1);
}

TEST(Split, PiecesTileTheRequestAndEachLiesInOneStripeAndExtent) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 5'000; ++round) {
    const Geometry g = RandomGeometry(random);
    const uint64_t offset = random() % g.size_bytes();
    const uint64_t length = random() % std::min(g.size_bytes() - offset + 1, 64 * kMiB);
    uint64_t next = offset;
    const bool all = ForEachPiece(g, offset, length, [&](const Piece& piece) {
      EXPECT_EQ(piece.volume_offset, next);
      EXPECT_GE(piece.length, 1u);
      next += piece.length;
      // First and last byte lie in one extent of one column, with nothing between.
      const ColumnPlace first = g.Locate(piece.volume_offset);
      const ColumnPlace last = g.Locate(piece.volume_offset + piece.length - 1);
      EXPECT_EQ(piece.place.column, first.column);
      EXPECT_EQ(piece.place.offset, first.offset);
      EXPECT_EQ(last.column, first.column);
      EXPECT_EQ(last.offset - first.offset, piece.length - 1);
      EXPECT_EQ(first.offset / kExtentBytes, last.offset / kExtentBytes);
      // As long as it can be: the next piece lies elsewhere.
      if (next < offset + length) {
        const ColumnPlace after = g.Locate(next);
        EXPECT_TRUE(after.column != last.column || after.offset % kExtentBytes == 0 ||
                    g.columns() > 1);
        EXPECT_EQ(next % (g.columns() == 1 ? kExtentBytes : g.stripe_bytes()), 0u);
      }
      return !::testing::Test::HasFailure();
    });
    ASSERT_FALSE(::testing::Test::HasFailure())
        << "size " << g.size_bytes() << " columns " << g.columns() << " stripe " << g.stripe_bytes()
        << " offset " << offset << " length " << length;
    EXPECT_TRUE(all);
    EXPECT_EQ(next, offset + length);
  }
}

TEST(Split, StopsWhereTheCallerSays) {
  const Geometry g = Make(kGiB, 2, 64 * kKiB, 1);
  int pieces = 0;
  EXPECT_FALSE(ForEachPiece(g, 0, kMiB, [&](const Piece&) { return ++pieces < 3; }));
  EXPECT_EQ(pieces, 3);
}

}  // namespace
}  // namespace braid
