#include "lib/metadata/keys.h"

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/format/doc_example.h"

namespace braid {
namespace {

TEST(RunKey, IsWhatItsPageShows) {
  MapRun run;
  run.leg = 1;
  EXPECT_EQ(RunKey(Uuid::Parse("0f1e2d3c-4b5a-4697-8877-665544332211").value(), run),
            DocExample("store.md", "run-key"));
}

TEST(GrantKey, IsWhatItsPageShows) {
  EXPECT_EQ(GrantKey(Uuid::Parse("0f1e2d3c-4b5a-4697-8877-665544332211").value(),
                     {DeviceIndex(0), DeviceUnit(192), false}),
            DocExample("store.md", "grant-key"));
}

TEST(GrantKey, SortsByDeviceAndUnit) {
  const Uuid volume = Uuid::Random();
  const auto key = [&](uint16_t device, uint64_t unit) {
    return GrantKey(volume, {DeviceIndex(device), DeviceUnit(unit), false});
  };
  EXPECT_LT(key(0, 256), key(1, 0));
  EXPECT_LT(key(1, 255), key(1, 256));
  EXPECT_LT(key(255, 0), key(256, 0));
}

TEST(RunKey, SortsAsItsNumbersDoAndComesBack) {
  std::mt19937_64 random(TestSeed());
  const Uuid volume = Uuid::Random();
  std::vector<std::pair<std::string, std::tuple<uint32_t, uint32_t, uint64_t>>> keys;
  for (int i = 0; i < 2000; ++i) {
    MapRun run, back;
    run.column = static_cast<uint32_t>(random() % kMaxColumns);
    run.leg = static_cast<uint32_t>(random() % kMaxLegs);
    run.first = ColumnUnit(random() >> (random() % 64));
    const std::string key = RunKey(volume, run);
    ASSERT_TRUE(ReadRunKey(key, back).ok());
    ASSERT_EQ(back, run);
    keys.emplace_back(key, std::tuple(run.column, run.leg, run.first.value()));
  }
  std::sort(keys.begin(), keys.end());
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end(),
                             [](const auto& a, const auto& b) { return a.second < b.second; }));
}

TEST(RunKey, OfAnotherLengthIsDamage) {
  const std::string key = RunKey(Uuid::Random(), MapRun());
  MapRun run;
  for (size_t size = 0; size < key.size(); ++size) {
    EXPECT_TRUE(absl::IsDataLoss(ReadRunKey(key.substr(0, size), run)));
  }
  EXPECT_TRUE(absl::IsDataLoss(ReadRunKey(key + "x", run)));
  EXPECT_TRUE(absl::IsDataLoss(IdOfKey(key).status()));
  EXPECT_TRUE(absl::IsDataLoss(IdOfKey("").status()));
}

TEST(PrefixEnd, IsTheFirstKeyBehindThePrefix) {
  EXPECT_EQ(PrefixEnd("a"), "b");
  EXPECT_EQ(PrefixEnd("a\xff\xff"), "b");
  EXPECT_EQ(PrefixEnd(std::string("a\0", 2)), "a\x01");
  // The volume with the last UUID does not take the site's record with it.
  std::array<uint8_t, 16> last;
  last.fill(0xff);
  EXPECT_LE(PrefixEnd(RunPrefix(Uuid(last))), kSiteKey);
}

}  // namespace
}  // namespace braid
