#include <cerrno>

#include "gtest/gtest.h"
#include "lib/base/checked.h"
#include "lib/base/checksum.h"
#include "lib/base/errno_status.h"
#include "lib/base/size_text.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"

namespace braid {
namespace {

TEST(Checked, RefusesWhatDoesNotFit) {
  EXPECT_EQ(CheckedAdd(1, 2), 3u);
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1));
  EXPECT_EQ(CheckedMul(uint64_t{1} << 32, 2), uint64_t{1} << 33);
  EXPECT_FALSE(CheckedMul(uint64_t{1} << 32, uint64_t{1} << 32));
  EXPECT_TRUE(RangeFits(0, 10, 10));
  EXPECT_TRUE(RangeFits(10, 0, 10));
  EXPECT_FALSE(RangeFits(11, 0, 10));
  EXPECT_FALSE(RangeFits(UINT64_MAX, 2, 10));
  EXPECT_EQ(DivideUp(UINT64_MAX, 1), UINT64_MAX);
  EXPECT_EQ(DivideUp(9, 4), 3u);
}

TEST(Checksum, MatchesRfc3720Examples) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(""), 0u);
}

TEST(Errno, SurvivesTheWayThroughStatus) {
  for (int e : {EIO, ENOSPC, EROFS, ESTALE, EOPNOTSUPP, ENXIO}) {
    EXPECT_EQ(ErrnoOf(ErrnoStatus(e, "x")), e);
  }
  EXPECT_EQ(ErrnoOf(absl::OkStatus()), 0);
  EXPECT_EQ(ErrnoOf(absl::ResourceExhaustedError("")), ENOSPC);
  EXPECT_EQ(ErrnoOf(absl::InternalError("")), EIO);
}

TEST(SizeText, ReadsPowersOf1024) {
  const std::pair<const char*, uint64_t> good[] = {
      {"0", 0},         {"512", 512},       {"64K", 64 * kKiB},
      {"4m", 4 * kMiB}, {"10G", 10 * kGiB}, {"1T", kTiB},
      {"1TiB", kTiB},   {"7B", 7},          {"1.5G", 1536 * kMiB},
      {"0.5K", 512},    {"7E", 7ull << 60}, {"9223372036854775807", INT64_MAX}};
  for (const auto& [text, bytes] : good) {
    auto parsed = ParseSize(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status();
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(SizeText, RefusesTheRestAndSaysWhatASizeLooksLike) {
  for (const char* text :
       {"", "-1", "-4K", "K", "4X", "4KK", "1.K", ".5K", "1.3", "8E", "0x10", "9223372036854775808",
        "99999999999999999999999999", "4 K", "1e3", "1.0000000001T"}) {
    auto parsed = ParseSize(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("10G"), absl::string_view::npos);
  }
}

TEST(SizeText, PrintsWhatItReads) {
  for (uint64_t bytes : {uint64_t{0}, uint64_t{512}, 64 * kKiB, 4 * kMiB, 10 * kGiB, kTiB}) {
    EXPECT_EQ(ParseSize(FormatSize(bytes)).value(), bytes);
  }
  EXPECT_EQ(FormatSize(1536 * kMiB), "1.5G");
  EXPECT_EQ(FormatSize(kGiB - 1), "1023.9M");
  EXPECT_EQ(FormatSize(UINT64_MAX), "15.9E");
}

TEST(Uuid, RoundTripsAndRefusesDamage) {
  const Uuid id = Uuid::Random();
  EXPECT_FALSE(id.IsNil());
  EXPECT_NE(id, Uuid::Random());
  const std::string text = id.ToString();
  EXPECT_EQ(Uuid::Parse(text).value(), id);
  EXPECT_EQ(text[14], '4');
  for (size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = 'g';
    EXPECT_FALSE(Uuid::Parse(damaged).ok()) << damaged;
  }
  EXPECT_FALSE(Uuid::Parse(text.substr(1)).ok());
  EXPECT_FALSE(Uuid::Parse("").ok());
}

}  // namespace
}  // namespace braid
