#include "controlplane/core/inventory.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/types/span.h"
#include "controlplane/core/labelled_device.h"
#include "controlplane/core/site_for_test.h"
#include "lib/testing/crash_device.h"

namespace braid {
namespace {

class InventoryTest : public testing::Test {
 protected:
  InventoryTest() : medium_(std::make_shared<MemoryMedium>()) { Restart(); }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  absl::Status Add(const std::string& path, bool force = false) {
    return site_->inventory->AddDevice({.path = path, .device_class = "ssd", .force = force})
        .status();
  }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
};

TEST_F(InventoryTest, AddedDeviceIsLabelledAndAllFree) {
  FaultyDevice& device = host_.MakeDevice("/dev/a", 20 * kMiB + 12345);
  auto added = site_->inventory->AddDevice({.path = "/dev/a", .device_class = "nvme"});
  ASSERT_TRUE(added.ok()) << added.status();
  EXPECT_EQ(added->use.record->name, "a");
  EXPECT_EQ(added->use.record->node, "n1");
  EXPECT_EQ(added->use.free_bytes, 16 * kMiB);
  absl::StatusOr<Label> label = ReadLabel(device);
  ASSERT_TRUE(label.ok()) << label.status();
  EXPECT_EQ(label->device, added->use.record->id);
  EXPECT_EQ(label->cluster, site_->state->cluster());
  Restart();
  ASSERT_EQ(site_->inventory->ListDevices().size(), 1u);
  EXPECT_EQ(site_->inventory->ListDevices()[0].problem, "");
}

TEST_F(InventoryTest, BadSpecsAreRefusedAndNothingIsWritten) {
  FaultyDevice& device = host_.MakeDevice("/dev/a", 64 * kMiB);
  host_.MakeDevice("/dev/small", 8 * kMiB - 1);
  host_.MakeDevice("/dev/b\n", 64 * kMiB);
  const DeviceSpec bad[] = {
      {.path = "", .device_class = "ssd"},
      {.path = "dev/a", .device_class = "ssd"},
      {.path = "/dev/" + std::string(5000, 'a'), .device_class = "ssd"},
      {.path = std::string("/dev/a\0b", 8), .device_class = "ssd"},
      {.path = "/dev/b\n", .device_class = "ssd", .name = "b"},
      {.path = "/dev/a", .device_class = ""},
      {.path = "/dev/a", .device_class = "s s"},
      {.path = "/dev/a", .device_class = "ssd", .name = "a/b"},
      {.path = "/dev/a", .device_class = "ssd", .name = std::string(64, 'a')},
      {.path = "/dev/a", .device_class = "ssd", .name = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"},
      {.path = "/dev/a", .device_class = "ssd", .node = "-n"},
      {.path = "/dev/small", .device_class = "ssd"},
  };
  for (const DeviceSpec& spec : bad) {
    EXPECT_EQ(site_->inventory->AddDevice(spec).status().code(), absl::StatusCode::kInvalidArgument)
        << spec.path << " " << spec.name;
  }
  EXPECT_EQ(Add("/dev/none").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(device.counters().submitted_of(IoKind::kWrite), 0u);
  EXPECT_TRUE(site_->inventory->ListDevices().empty());
}

TEST_F(InventoryTest, SameDeviceOrNameTwiceIsRefusedEvenByForce) {
  host_.MakeDevice("/dev/a", 64 * kMiB);
  host_.MakeDevice("/other/a", 64 * kMiB);
  host_.Alias("/dev/a", "/dev/link");
  ASSERT_TRUE(Add("/dev/a").ok());
  for (const char* path : {"/dev/a", "/dev/link", "/other/a"}) {
    EXPECT_EQ(Add(path, true).code(), absl::StatusCode::kAlreadyExists) << path;
  }
}

TEST(DeviceIdentity, DiskAndItsPartitionsOverlapButPartitionsDoNot) {
  const DeviceIdentity disk{.is_block_device = true, .number = 8, .disk = 8};
  const DeviceIdentity first{.is_block_device = true, .number = 9, .disk = 8};
  const DeviceIdentity second{.is_block_device = true, .number = 10, .disk = 8};
  const DeviceIdentity file{.number = 8, .inode = 5};
  EXPECT_TRUE(Overlap(disk, disk));
  EXPECT_TRUE(Overlap(disk, first));
  EXPECT_TRUE(Overlap(second, disk));
  EXPECT_FALSE(Overlap(first, second));
  EXPECT_FALSE(Overlap(disk, file));
  EXPECT_TRUE(Overlap(file, file));
}

TEST_F(InventoryTest, DataIsRefusedUnlessForced) {
  host_.MakeDevice("/dev/a", 64 * kMiB);
  host_.SetRecognised("xfs file system");
  absl::Status status = Add("/dev/a");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "xfs file system")) << status;
  EXPECT_TRUE(Add("/dev/a", true).ok());
}

TEST_F(InventoryTest, LabelOfAnotherClusterIsRefusedUnlessForced) {
  host_.MakeDevice("/dev/a", 64 * kMiB);
  auto elsewhere = SiteForTest::Open(std::make_shared<MemoryMedium>(), &host_, "munich");
  ASSERT_TRUE((*elsewhere)->AddDevice("/dev/a").ok());
  absl::Status status = Add("/dev/a");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "another cluster")) << status;
  EXPECT_TRUE(Add("/dev/a", true).ok());
  // And the other site sees that its device is gone.
  EXPECT_NE((*elsewhere)->inventory->ListDevices()[0].problem, "");
}

TEST_F(InventoryTest, DamagedLabelIsDataLossUnlessForced) {
  FaultyDevice& device = host_.MakeDevice("/dev/a", 64 * kMiB);
  ASSERT_TRUE(Add("/dev/a").ok());
  ASSERT_TRUE(site_->inventory->RemoveDevice("a", false).ok());
  ASSERT_TRUE(Add("/dev/a").ok());
  for (uint64_t offset : kLabelOffsets) {
    char byte = 0;
    ASSERT_TRUE(device.Read(offset + 100, absl::MakeSpan(&byte, 1)).ok());
    byte = static_cast<char>(byte ^ 4);
    ASSERT_TRUE(device.Write(offset + 100, absl::MakeConstSpan(&byte, 1)).ok());
  }
  EXPECT_NE(site_->inventory->ListDevices()[0].problem, "");
  auto removed = site_->inventory->RemoveDevice("a", false);
  ASSERT_TRUE(removed.ok());
  EXPECT_NE(removed->problem, "");  // nothing was wiped that is not ours
  EXPECT_EQ(Add("/dev/a").code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(Add("/dev/a", true).ok());
}

TEST_F(InventoryTest, AddThatWasCutShortCanBeForced) {
  host_.MakeDevice("/dev/a", 64 * kMiB);
  medium_->FailCommit(0);
  EXPECT_EQ(Add("/dev/a").code(), absl::StatusCode::kUnavailable);
  Restart();
  EXPECT_TRUE(site_->inventory->ListDevices().empty());
  absl::Status status = Add("/dev/a");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "cut short")) << status;
  EXPECT_TRUE(Add("/dev/a", true).ok());
}

TEST_F(InventoryTest, AddWhoseCommitSurvivedUnseenIsInThePoolAfterRestart) {
  host_.MakeDevice("/dev/a", 64 * kMiB);
  medium_->FailCommit(0, /*survives=*/true);
  EXPECT_EQ(Add("/dev/a").code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(site_->inventory->ListDevices().empty());
  Restart();
  ASSERT_EQ(site_->inventory->ListDevices().size(), 1u);
  EXPECT_EQ(site_->inventory->ListDevices()[0].problem, "");
}

TEST_F(InventoryTest, LabelOfAnAddedDeviceSurvivesPowerLoss) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const std::string path = absl::StrCat("/dev/c", seed);
    auto owned = std::make_unique<CrashDevice>(path, 12 * kMiB);
    CrashDevice& crash = *owned;
    host_.MakeDevice(path, std::move(owned));
    ASSERT_TRUE(Add(path).ok());
    crash.PowerCut(seed);
    EXPECT_TRUE(ReadLabel(crash).ok()) << "seed " << seed;
  }
}

TEST_F(InventoryTest, DeviceWithExtentsIsNotRemovedAndVolumesAreNamed) {
  FaultyDevice& device = host_.MakeDevice("/dev/a", 64 * kMiB);
  ASSERT_TRUE(Add("/dev/a").ok());
  ASSERT_TRUE(site_->Create({.name = "v0", .size_bytes = kMiB}).ok());
  absl::Status status = site_->inventory->RemoveDevice("a", false).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "v0")) << status;
  ASSERT_TRUE(site_->volumes->Delete("v0", false).ok());
  ASSERT_TRUE(site_->inventory->RemoveDevice("a", /*dry_run=*/true).ok());
  EXPECT_EQ(site_->inventory->ListDevices().size(), 1u);
  ASSERT_TRUE(site_->inventory->RemoveDevice("a", false).ok());
  EXPECT_EQ(ReadLabel(device).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(site_->inventory->RemoveDevice("a", false).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(InventoryTest, DeviceIsMissingWhenItsPathIsGoneOrHoldsAnother) {
  FaultyDevice& a = host_.MakeDevice("/dev/a", 64 * kMiB);
  FaultyDevice& b = host_.MakeDevice("/dev/b", 64 * kMiB);
  ASSERT_TRUE(Add("/dev/a").ok());
  ASSERT_TRUE(Add("/dev/b").ok());
  host_.Unplug("/dev/a");
  EXPECT_NE(site_->inventory->ListDevices()[0].problem, "");
  host_.Plug("/dev/a", b);
  EXPECT_TRUE(absl::StrContains(site_->inventory->ListDevices()[0].problem, "another device"));
  host_.Plug("/dev/a", a);
  EXPECT_EQ(site_->inventory->ListDevices()[0].problem, "");
}

}  // namespace
}  // namespace braid
