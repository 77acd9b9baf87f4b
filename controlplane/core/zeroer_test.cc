#include "controlplane/core/zeroer.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/types/span.h"
#include "controlplane/core/labelled_device.h"
#include "controlplane/core/site_for_test.h"

namespace braid {
namespace {

constexpr uint64_t kDeviceBytes = 36 * kMiB;
constexpr uint64_t kFirst = kLabelDataOffset / kSmallExtentBytes;

class ZeroerTest : public testing::Test {
 protected:
  ZeroerTest() {
    site_ = *SiteForTest::Open(std::make_shared<MemoryMedium>(), &host_);
    for (int i = 0; i < 2; ++i) {
      const std::string path = absl::StrCat("/dev/d", i);
      devices_[i] = &host_.MakeDevice(path, kDeviceBytes);
      EXPECT_TRUE(site_->AddDevice(path).ok());
      LeaveSecrets(*devices_[i], kLabelDataOffset, kDeviceBytes);
      ids_[i] = site_->state->FindDevice(absl::StrCat("d", i))->record->id;
    }
  }
  static UnitRun Units(uint64_t first, uint64_t count) {
    return {DeviceUnit(kFirst + first), count};
  }
  bool IsZero(int device, uint64_t unit) {
    MapRun run;
    run.count = 1;
    run.unit = DeviceUnit(kFirst + unit);
    return HidesSecrets(*devices_[device], run);
  }

  FakeHost host_;
  std::unique_ptr<SiteForTest> site_;
  FaultyDevice* devices_[2];
  Uuid ids_[2];
};

TEST_F(ZeroerTest, ZeroesTheseUnitsAndNoOthersWithOneFlushADevice) {
  const auto before = devices_[0]->counters();
  ASSERT_TRUE(ZeroUnits(*site_->state,
                        {{ids_[0], Units(12, 3)},
                         {ids_[1], Units(7, 1)},
                         {ids_[0], Units(10, 2)},
                         {ids_[0], Units(30, 1)}},
                        FileBlocks::kGiveBack)
                  .ok());
  for (uint64_t unit = 0; unit < 40; ++unit) {
    EXPECT_EQ(IsZero(0, unit), (unit >= 10 && unit < 15) || unit == 30) << unit;
    EXPECT_EQ(IsZero(1, unit), unit == 7) << unit;
  }
  const auto after = devices_[0]->counters();
  EXPECT_EQ(after.submitted_of(IoKind::kFlush) - before.submitted_of(IoKind::kFlush), 1u);
  EXPECT_EQ(after.submitted_of(IoKind::kZero) - before.submitted_of(IoKind::kZero), 2u);
}

TEST_F(ZeroerTest, ZeroesPartsOfUnits) {
  const std::string full(3 * kSmallExtentBytes, 'x');
  ASSERT_TRUE(devices_[0]->Write(kLabelDataOffset, absl::MakeConstSpan(full)).ok());
  ASSERT_TRUE(
      ZeroBytes(*site_->state, {{ids_[0], kLabelDataOffset + 512, 2 * kSmallExtentBytes}}).ok());
  std::string now(full.size(), '?');
  ASSERT_TRUE(devices_[0]->Read(kLabelDataOffset, absl::MakeSpan(now)).ok());
  std::string expected = full;
  expected.replace(512, 2 * kSmallExtentBytes, 2 * kSmallExtentBytes, '\0');
  EXPECT_TRUE(now == expected);
}

TEST_F(ZeroerTest, NeverTouchesTheLabelsOrWhatIsBehindTheData) {
  const UnitRun outside[] = {{DeviceUnit(0), 1},
                             {DeviceUnit(kFirst - 1), 2},
                             Units(kDeviceBytes / kSmallExtentBytes, 1),
                             Units(511, 2),
                             Units(0, UINT64_MAX / kSmallExtentBytes)};
  for (const UnitRun& run : outside) {
    EXPECT_TRUE(absl::IsInternal(ZeroUnits(*site_->state, {{ids_[0], run}}, FileBlocks::kKeep)));
  }
  EXPECT_TRUE(absl::IsInternal(
      ZeroUnits(*site_->state, {{Uuid::Random(), Units(0, 1)}}, FileBlocks::kKeep)));
  EXPECT_TRUE(ReadLabel(*devices_[0]).ok());
  EXPECT_FALSE(IsZero(0, 0));
}

TEST_F(ZeroerTest, NamesEveryDeviceThatFailsAndZeroesTheOthers) {
  devices_[0]->AddFault({.kinds = {IoKind::kFlush}});
  std::vector<Uuid> failed;
  const absl::Status status = ZeroUnits(
      *site_->state, {{ids_[0], Units(0, 1)}, {ids_[1], Units(0, 1)}}, FileBlocks::kKeep, &failed);
  EXPECT_TRUE(absl::StrContains(status.message(), "device 'd0' cannot be zeroed")) << status;
  EXPECT_EQ(failed, std::vector{ids_[0]});
  EXPECT_TRUE(IsZero(1, 0));
}

TEST_F(ZeroerTest, LeavesAloneWhatTookADevicesPlace) {
  FaultyDevice& other = host_.MakeDevice("/dev/d0", kDeviceBytes);
  LeaveSecrets(other, kLabelDataOffset, kDeviceBytes);
  EXPECT_FALSE(ZeroUnits(*site_->state, {{ids_[0], Units(0, 8)}}, FileBlocks::kKeep).ok());
  EXPECT_EQ(other.counters().submitted_of(IoKind::kZero), 0u);
  host_.Unplug("/dev/d0");
  EXPECT_FALSE(ZeroUnits(*site_->state, {{ids_[0], Units(0, 8)}}, FileBlocks::kGiveBack).ok());
  host_.Plug("/dev/d0", *devices_[0]);
  EXPECT_TRUE(ZeroUnits(*site_->state, {{ids_[0], Units(0, 8)}}, FileBlocks::kKeep).ok());
}

}  // namespace
}  // namespace braid
