#include "controlplane/core/volume_spec.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "lib/base/units.h"

namespace braid {
namespace {

struct BadCase {
  const char* what;
  VolumeSpec spec;
  const char* says;  // part of the message
};

class BadSpec : public testing::TestWithParam<BadCase> {};

TEST_P(BadSpec, IsInvalidArgumentInOneLine) {
  absl::Status status = PlanVolume(GetParam().spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << GetParam().what;
  EXPECT_TRUE(absl::StrContains(status.message(), GetParam().says)) << status.message();
  EXPECT_FALSE(absl::StrContains(status.message(), "\n"));
}

const BadCase kBadCases[] = {
    {"no size", {.name = "v"}, "needs a size"},
    {"not sectors", {.name = "v", .size_bytes = 513}, "not whole sectors"},
    {"2^63", {.name = "v", .size_bytes = uint64_t{1} << 63}, "too large"},
    {"negative", {.name = "v", .size_bytes = static_cast<uint64_t>(-4096)}, "too large"},
    {"no name", {.size_bytes = kMiB}, "empty"},
    {"long name", {.name = std::string(64, 'v'), .size_bytes = kMiB}, "long"},
    {"slash", {.name = "a/b", .size_bytes = kMiB}, "'/'"},
    {"control character", {.name = "a\nb", .size_bytes = kMiB}, "\\n"},
    {"leading dot", {.name = "..", .size_bytes = kMiB}, "begin"},
    {"UUID", {.name = "6ba7b810-9dad-41d1-80b4-00c04fd430c8", .size_bytes = kMiB}, "UUID"},
    {"bad class", {.name = "v", .size_bytes = kMiB, .device_class = "a b"}, "class"},
    {"many stripes", {.name = "v", .size_bytes = kMiB, .stripes = 65}, "too many"},
    {"many copies", {.name = "v", .size_bytes = kMiB, .copies = 5}, "too many"},
    {"stripe size 0x",
     {.name = "v", .size_bytes = kMiB, .stripes = 2, .stripe_bytes = 3 * kKiB},
     "power of two"},
    {"tiny stripes",
     {.name = "v", .size_bytes = kMiB, .stripes = 2, .stripe_bytes = 2 * kKiB},
     "power of two"},
    {"huge stripes",
     {.name = "v", .size_bytes = kMiB, .stripes = 2, .stripe_bytes = 8 * kMiB},
     "power of two"},
    {"stripe size without stripes",
     {.name = "v", .size_bytes = kMiB, .stripe_bytes = 64 * kKiB},
     "no stripe size"},
    {"linear with stripes",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kLinear, .stripes = 2},
     "ask for striped"},
    {"linear with copies",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kLinear, .copies = 2},
     "ask for mirrored"},
    {"striped with copies",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kStriped, .copies = 2},
     "ask for striped-mirrors"},
    {"mirrored with stripes",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kMirrored, .stripes = 2},
     "ask for striped-mirrors"},
    {"striped by one",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kStriped, .stripes = 1},
     "at least 2 stripes"},
    {"mirrored once",
     {.name = "v", .size_bytes = kMiB, .layout = Layout::kMirrored, .copies = 1},
     "at least 2 copies"},
    {"thick reserve",
     {.name = "v", .size_bytes = kMiB, .reserve_bytes = kMiB},
     "a reserve is for thin volumes"},
    {"thick on full",
     {.name = "v", .size_bytes = kMiB, .on_full = OnFull::kFail},
     "(--thin) or leave it out"},
    {"thick timeout", {.name = "v", .size_bytes = kMiB, .full_timeout_seconds = 1}, "timeout"},
    {"half a unit",
     {.name = "v", .size_bytes = kMiB, .thin = true, .reserve_bytes = 32 * kKiB},
     "multiple of 64K"},
    {"reserve of more",
     {.name = "v", .size_bytes = kMiB, .thin = true, .reserve_bytes = 2 * kMiB},
     "at most its size"},
    {"on full",
     {.name = "v", .size_bytes = kMiB, .thin = true, .on_full = static_cast<OnFull>(7)},
     "fail or wait"},
    {"timeout of fail",
     {.name = "v", .size_bytes = kMiB, .thin = true, .full_timeout_seconds = 1},
     "--on-full wait"},
    {"long timeout",
     {.name = "v",
      .size_bytes = kMiB,
      .thin = true,
      .on_full = OnFull::kWait,
      .full_timeout_seconds = UINT64_MAX},
     "too long"},
};
INSTANTIATE_TEST_SUITE_P(, BadSpec, testing::ValuesIn(kBadCases));

TEST(PlanVolume, TakesAThinVolumeWithAllThatIsItsOwn) {
  EXPECT_TRUE(PlanVolume({.name = "v",
                          .size_bytes = 64 * kTiB,
                          .thin = true,
                          .reserve_bytes = 64 * kTiB,
                          .on_full = OnFull::kWait,
                          .full_timeout_seconds = kMaxFullTimeoutSeconds})
                  .ok());
}

TEST(PlanVolume, LayoutFollowsFromCounts) {
  const auto layout = [](uint32_t stripes, uint32_t copies) {
    return PlanVolume({.name = "v", .size_bytes = kMiB, .stripes = stripes, .copies = copies})
        ->layout;
  };
  EXPECT_EQ(layout(0, 0), Layout::kLinear);
  EXPECT_EQ(layout(1, 1), Layout::kLinear);
  EXPECT_EQ(layout(2, 0), Layout::kStriped);
  EXPECT_EQ(layout(0, 2), Layout::kMirrored);
  EXPECT_EQ(layout(3, 4), Layout::kStripedMirrors);
}

TEST(PlanVolume, StripedWithoutACountTriesFourThenFewer) {
  const auto plan =
      PlanVolume({.name = "v", .size_bytes = kMiB, .layout = Layout::kStripedMirrors});
  ASSERT_EQ(plan->shapes.size(), 3u);
  EXPECT_EQ(plan->shapes[0].columns(), 4u);
  EXPECT_EQ(plan->shapes[2].columns(), 2u);
  EXPECT_EQ(plan->shapes[0].legs(), 2u);
  EXPECT_EQ(plan->shapes[0].stripe_bytes(), 64 * kKiB);
}

TEST(PlanVolume, LargestAndSmallestSizesAreAccepted) {
  EXPECT_TRUE(PlanVolume({.name = "v", .size_bytes = 512}).ok());
  EXPECT_TRUE(PlanVolume({.name = "v", .size_bytes = kMaxVolumeBytes}).ok());
}

}  // namespace
}  // namespace braid
