#include "controlplane/core/pools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "controlplane/core/thin_holder_for_test.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kStart = 1'700'000'000;
constexpr uint64_t kData = 400 * kMiB;  // of each device: 100 extents

class PoolsTest : public testing::Test {
 protected:
  PoolsTest() : site_(*SiteForTest::Open(std::make_shared<MemoryMedium>(), &host_)) {
    host_.SetNow(kStart);
  }
  void AddDevice(const std::string& name, const std::string& device_class = "ssd") {
    const std::string path = absl::StrCat("/dev/", name);
    host_.MakeDevice(path, kLabelDataOffset + kData);
    ASSERT_TRUE(site_->inventory->AddDevice({.path = path, .device_class = device_class}).ok());
    site_->pools->Look();
  }
  void Create(const VolumeSpec& spec) {
    const absl::Status status = site_->Create(spec);
    ASSERT_TRUE(status.ok()) << status;
    site_->pools->Look();
  }
  void Delete(const std::string& name) {
    ASSERT_TRUE(site_->volumes->Delete(name, false).ok());
    site_->pools->Look();
  }
  PoolUsage Of(const std::string& device_class) {
    for (const PoolUsage& usage : site_->pools->List()) {
      EXPECT_EQ(usage.capacity, usage.allocated + usage.reserved + usage.free);
      if (usage.device_class == device_class) return usage;
    }
    ADD_FAILURE() << "no pool " << device_class;
    return {};
  }
  void PassTime(int64_t seconds) {
    for (now_ += 30; seconds > 0; seconds -= 30, now_ += 30) {
      host_.SetNow(kStart + now_);
      site_->pools->Look();
    }
    now_ -= 30;
  }

  FakeHost host_;
  std::unique_ptr<SiteForTest> site_;
  int64_t now_ = 0;
};

TEST_F(PoolsTest, CountsWhatIsThickReservedBoundAndPromised) {
  AddDevice("a");
  AddDevice("b");
  AddDevice("c", "hdd-slow");
  Create({.name = "thick", .size_bytes = 40 * kMiB, .copies = 2, .device_class = "ssd"});
  Create({.name = "thin",
          .size_bytes = kTiB,
          .device_class = "ssd",
          .thin = true,
          .reserve_bytes = 8 * kMiB});
  Create({.name = "any", .size_bytes = 100 * kMiB + 512, .copies = 2, .thin = true});
  PoolUsage ssd = Of("ssd");
  EXPECT_EQ(ssd.device_count, 2u);
  EXPECT_EQ(ssd.capacity, 2 * kData);
  EXPECT_EQ(ssd.allocated, 80 * kMiB);
  EXPECT_EQ(ssd.reserved, 8 * kMiB);
  EXPECT_EQ(ssd.largest_free, kData - 40 * kMiB);
  // The volume for any class lies nowhere yet, and counts with the largest pool.
  const uint64_t promised = kTiB + 2 * (100 * kMiB + 64 * kKiB);
  EXPECT_EQ(ssd.promised, promised);
  EXPECT_DOUBLE_EQ(ssd.commitment_ratio,
                   static_cast<double>(80 * kMiB + promised) / static_cast<double>(2 * kData));
  const PoolUsage hdd = Of("hdd-slow");
  EXPECT_EQ(hdd.promised, 0u);
  EXPECT_EQ(hdd.free, kData);

  ThinHolder holder(&host_, *site_, "thin");
  ASSERT_TRUE(holder.Open(*site_).ok());
  ASSERT_TRUE(holder.Take(*site_, 64).ok());
  ASSERT_EQ(holder.Bind(0, 0, 10), 10u);
  ASSERT_TRUE(holder.Commit(*site_).ok());
  ssd = Of("ssd");
  EXPECT_EQ(ssd.allocated, 80 * kMiB + 10 * kSmallExtentBytes);
  EXPECT_EQ(ssd.promised, promised);
  Delete("any");
  EXPECT_EQ(Of("ssd").promised, kTiB);
}

TEST_F(PoolsTest, PromisesBeyondAllNumbersStayTheMostThereIs) {
  AddDevice("a");
  AddDevice("b");
  for (const char* name : {"v", "w", "x"}) {
    Create({.name = name, .size_bytes = kMaxVolumeBytes, .copies = 2, .thin = true});
  }
  EXPECT_EQ(Of("ssd").promised, UINT64_MAX);
  EXPECT_GT(Of("ssd").commitment_ratio, 1e10);
}

TEST_F(PoolsTest, TellsTheRateOfTheLastHourAndWhenThePoolIsFull) {
  AddDevice("a");
  EXPECT_EQ(Of("ssd").allocation_per_second, 0);
  Create({.name = "v0", .size_bytes = 36 * kMiB});
  host_.SetNow(kStart + 59);
  EXPECT_EQ(Of("ssd").allocation_per_second, 0);
  PassTime(1800);
  PoolUsage usage = Of("ssd");
  EXPECT_DOUBLE_EQ(usage.allocation_per_second, 36.0 * kMiB / 1800);
  EXPECT_EQ(usage.seconds_to_full, (364 * uint64_t{1800} + 35) / 36);
  PassTime(1800);
  EXPECT_DOUBLE_EQ(Of("ssd").allocation_per_second, 36.0 * kMiB / 3600);
  // An hour later it is forgotten.
  PassTime(3600);
  EXPECT_EQ(Of("ssd").allocation_per_second, 0);
  EXPECT_EQ(Of("ssd").seconds_to_full, 0u);
  Delete("v0");
  PassTime(60);
  EXPECT_LT(Of("ssd").allocation_per_second, 0);
  EXPECT_EQ(Of("ssd").seconds_to_full, 0u);
  // A clock that was set back.
  host_.SetNow(kStart - 100000);
  EXPECT_EQ(Of("ssd").allocation_per_second, 0);
}

TEST_F(PoolsTest, ComesToEachStateOnceWhileItSwingsAboutAThreshold) {
  AddDevice("a");
  Create({.name = "base", .size_bytes = uint64_t{79} * 4 * kMiB});
  EXPECT_EQ(Of("ssd").state, PoolState::kGood);
  for (int i = 0; i < 5; ++i) {
    Create({.name = "more", .size_bytes = 4 * kMiB});
    EXPECT_EQ(Of("ssd").state, PoolState::kLow);
    Delete("more");
    EXPECT_EQ(Of("ssd").state, PoolState::kLow);
  }
  ASSERT_EQ(site_->pools->Events().size(), 1u);
  Create({.name = "much", .size_bytes = uint64_t{16} * 4 * kMiB});
  EXPECT_EQ(Of("ssd").state, PoolState::kCritical);
  Delete("base");
  EXPECT_EQ(Of("ssd").state, PoolState::kGood);
  const std::vector<PoolEvent> events = site_->pools->Events();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[1].state, PoolState::kCritical);
  EXPECT_EQ(events[1].unix_seconds, kStart);
  EXPECT_THAT(events[1].what,
              HasSubstr("pool ssd is critically low on space: 380M of 400M used; add devices"));
  EXPECT_EQ(events[2].state, PoolState::kGood);
  EXPECT_THAT(host_.warnings(),
              ::testing::ElementsAre(events[0].what, events[1].what, events[2].what));
}

TEST_F(PoolsTest, IsFullFromAFirstWriteThatFoundNothingUntilSpaceIsFreeAgain) {
  AddDevice("a");
  AddDevice("h", "hdd-slow");
  Create({.name = "base", .size_bytes = 400 * kMiB, .device_class = "ssd"});
  Create({.name = "thin", .size_bytes = kTiB, .device_class = "ssd", .thin = true});
  ThinHolder holder(&host_, *site_, "thin");
  ASSERT_TRUE(holder.Open(*site_).ok());
  EXPECT_EQ(Of("ssd").state, PoolState::kCritical);
  EXPECT_TRUE(absl::IsResourceExhausted(holder.Take(*site_, 64).status()));
  EXPECT_EQ(Of("ssd").state, PoolState::kFull);
  EXPECT_EQ(Of("hdd-slow").state, PoolState::kGood);
  for (int i = 0; i < 3; ++i) (void)holder.Take(*site_, 64);
  EXPECT_EQ(site_->pools->Events().size(), 2u);
  Delete("base");
  EXPECT_EQ(Of("ssd").state, PoolState::kGood);
  site_->pools->NoteFull("");
  EXPECT_EQ(Of("hdd-slow").state, PoolState::kFull);
  AddDevice("h2", "hdd-slow");
  EXPECT_EQ(Of("hdd-slow").state, PoolState::kGood);
}

TEST_F(PoolsTest, RemembersAThousandEvents) {
  AddDevice("a");
  Create({.name = "base", .size_bytes = uint64_t{70} * 4 * kMiB});
  for (int i = 0; i < 600; ++i) {
    Create({.name = "more", .size_bytes = uint64_t{12} * 4 * kMiB});
    Delete("more");
  }
  const auto events = site_->pools->Events();
  EXPECT_EQ(events.size(), 1000u);
  EXPECT_EQ(events.back().state, PoolState::kGood);
}

TEST_F(PoolsTest, SumsWhatCanBeReclaimedOfVolumesThatExist) {
  AddDevice("a");
  Create({.name = "v", .size_bytes = kTiB, .thin = true});
  Create({.name = "w", .size_bytes = kTiB, .thin = true});
  const auto id = [&](const char* name) { return site_->volumes->Get(name)->volume->record.id; };
  const Uuid gone = id("v");
  EXPECT_EQ(site_->pools->ReclaimableOf(gone).unix_seconds, 0);
  site_->pools->NoteReclaimable(id("v"), 5 * kMiB);
  site_->pools->NoteReclaimable(id("w"), 7 * kMiB);
  site_->pools->NoteReclaimable(Uuid::Random(), kGiB);
  EXPECT_EQ(Of("ssd").reclaimable, 12 * kMiB);
  EXPECT_EQ(site_->pools->ReclaimableOf(gone).bytes, 5 * kMiB);
  EXPECT_EQ(site_->pools->ReclaimableOf(gone).unix_seconds, kStart);
  Delete("v");
  EXPECT_EQ(Of("ssd").reclaimable, 7 * kMiB);
  EXPECT_EQ(site_->pools->ReclaimableOf(gone).bytes, 0u);
}

}  // namespace
}  // namespace braid
