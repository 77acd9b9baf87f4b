#include "controlplane/core/volumes.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "controlplane/core/site_for_test.h"
#include "lib/testing/crash_device.h"

namespace braid {
namespace {

constexpr uint64_t kDeviceBytes = 36 * kMiB;  // 8 extents of data

class VolumesTest : public testing::Test {
 protected:
  VolumesTest() : medium_(std::make_shared<MemoryMedium>()) { Restart(); }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  // Into the pool, with what someone left where its extents are.
  FaultyDevice& AddUsedDevice(const std::string& path, int threads = 0) {
    FaultyDevice& device = host_.MakeDevice(path, kDeviceBytes, threads);
    EXPECT_TRUE(site_->AddDevice(path).ok());
    LeaveSecrets(device, kLabelDataOffset, kDeviceBytes);
    return device;
  }
  VolumeState StateOf(const std::string& name) {
    return site_->volumes->Get(name)->volume->record.state;
  }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
};

TEST_F(VolumesTest, NewVolumeShowsNothingOfWhatWasThere) {
  FaultyDevice* devices[] = {&AddUsedDevice("/dev/a"), &AddUsedDevice("/dev/b")};
  ASSERT_TRUE(site_->Create({.name = "v", .size_bytes = 20 * kMiB, .copies = 2}).ok());
  const VolumePtr volume = site_->volumes->Get("v")->volume;
  EXPECT_EQ(volume->record.state, VolumeState::kReady);
  for (const MapRun& run : *volume->runs) {
    const std::string name =
        site_->state->FindDevice(volume->record.devices[run.device.value()])->name;
    EXPECT_TRUE(HidesSecrets(*devices[name == "a" ? 0 : 1], run));
  }
}

TEST_F(VolumesTest, ReadyVolumeIsZeroAfterPowerLoss) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const std::string path = absl::StrCat("/dev/c", seed);
    auto owned = std::make_unique<CrashDevice>(path, 12 * kMiB);
    CrashDevice& crash = *owned;
    host_.MakeDevice(path, std::move(owned));
    LeaveSecrets(crash, kLabelDataOffset, 12 * kMiB);
    ASSERT_TRUE(crash.Flush().ok());
    ASSERT_TRUE(
        site_->inventory->AddDevice({.path = path, .device_class = absl::StrCat("c", seed)}).ok());
    const std::string name = absl::StrCat("v", seed);
    ASSERT_TRUE(
        site_
            ->Create(
                {.name = name, .size_bytes = 4 * kMiB, .device_class = absl::StrCat("c", seed)})
            .ok());
    crash.PowerCut(seed);
    EXPECT_TRUE(HidesSecrets(crash, site_->volumes->Get(name)->volume->runs->front()))
        << "seed " << seed;
  }
}

TEST_F(VolumesTest, DryRunChoosesAndChangesNothing) {
  AddUsedDevice("/dev/a");
  const Revision before = site_->state->revision();
  auto imagined = site_->volumes->Create({.name = "v", .size_bytes = 6 * kMiB}, /*dry_run=*/true);
  ASSERT_TRUE(imagined.ok()) << imagined.status();
  ASSERT_EQ(imagined->chosen.size(), 1u);
  EXPECT_EQ(imagined->chosen[0].bytes, 8 * kMiB);
  EXPECT_EQ(site_->state->revision(), before);
  EXPECT_EQ(site_->FreeBytes(), 32 * kMiB);
  EXPECT_TRUE(site_->volumes->List("", 10).empty());
}

TEST_F(VolumesTest, RefusalsChangeNothing) {
  AddUsedDevice("/dev/a");
  ASSERT_TRUE(site_->Create({.name = "v", .size_bytes = 4 * kMiB}).ok());
  const Revision before = site_->state->revision();
  EXPECT_EQ(site_->Create({.name = "v", .size_bytes = kMiB}).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = 32 * kMiB}).code(),
            absl::StatusCode::kResourceExhausted);
  // More than the devices could carry if they were empty.
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = 64 * kMiB}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = kMaxVolumeBytes}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = kMiB, .copies = 2}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = kMiB, .device_class = "tape"}).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(site_->Create({.name = "w", .size_bytes = 511}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(site_->state->revision(), before);
  EXPECT_EQ(site_->FreeBytes(), 28 * kMiB);
}

TEST_F(VolumesTest, MissingDeviceGetsNoExtents) {
  AddUsedDevice("/dev/a");
  AddUsedDevice("/dev/b");
  host_.Unplug("/dev/b");
  absl::Status status = site_->Create({.name = "v", .size_bytes = kMiB, .copies = 2});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "not counting b, missing")) << status;
  EXPECT_TRUE(site_->Create({.name = "v", .size_bytes = 20 * kMiB}).ok());
}

TEST_F(VolumesTest, StripedWithoutACountUsesTheDevicesThereAre) {
  for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) AddUsedDevice(path);
  ASSERT_TRUE(
      site_->Create({.name = "v", .size_bytes = 12 * kMiB, .layout = Layout::kStriped}).ok());
  EXPECT_EQ(site_->volumes->Get("v")->volume->record.columns, 3u);
}

TEST_F(VolumesTest, FailedZeroingLeavesAFaultAndAVolumeThatCanBeDeleted) {
  FaultyDevice& device = AddUsedDevice("/dev/a");
  for (IoKind kind : {IoKind::kZero, IoKind::kFlush}) {
    device.AddFault({.kinds = {kind}});
    absl::Status status = site_->Create({.name = "v", .size_bytes = 8 * kMiB});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    auto volume = site_->volumes->Get("v");
    EXPECT_EQ(volume->volume->record.state, VolumeState::kPreparing);
    EXPECT_EQ(volume->health, VolumeHealth::kFaulty);
    EXPECT_EQ(site_->attachments->Prepare(volume->volume->record).status().code(),
              absl::StatusCode::kFailedPrecondition);
    device.ClearFaults();
    ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
    EXPECT_EQ(site_->FreeBytes(), 32 * kMiB);
  }
}

TEST_F(VolumesTest, RestartTriesAFailedPreparationAgain) {
  FaultyDevice& device = AddUsedDevice("/dev/a");
  device.AddFault({.kinds = {IoKind::kZero}});
  ASSERT_FALSE(site_->Create({.name = "v", .size_bytes = 8 * kMiB}).ok());
  device.ClearFaults();
  Restart();
  const VolumePtr volume = site_->volumes->Get("v")->volume;
  ASSERT_TRUE(site_->volumes->AwaitReady(volume->record.id, [] { return false; }).ok());
  EXPECT_EQ(StateOf("v"), VolumeState::kReady);
  EXPECT_EQ(site_->volumes->Get("v")->volume->record.fault, "");
  EXPECT_TRUE(HidesSecrets(device, volume->runs->front()));
}

TEST_F(VolumesTest, VolumeInPreparationCanBeDeletedAndItsExtentsAreFreeAfter) {
  FaultyDevice& device = AddUsedDevice("/dev/a", /*threads=*/1);
  // Holds the zeroing, and nothing else, until it is cleared by time.
  device.AddFault({.kinds = {IoKind::kZero}, .error = 0, .delay = absl::Milliseconds(300)});
  auto created = site_->volumes->Create({.name = "v", .size_bytes = 8 * kMiB}, false);
  ASSERT_TRUE(created.ok());
  EXPECT_EQ(StateOf("v"), VolumeState::kPreparing);
  ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  // Nothing is under way on extents that are free.
  const auto counters = device.counters();
  EXPECT_EQ(site_->FreeBytes(), 32 * kMiB);
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(device.counters().submitted, counters.submitted);
  EXPECT_EQ(site_->volumes->AwaitReady(created->status.volume->record.id, [] { return false; })
                .status()
                .code(),
            absl::StatusCode::kNotFound);
}

TEST_F(VolumesTest, CallerThatGoesAwayOnlyStopsWaiting) {
  FaultyDevice& device = AddUsedDevice("/dev/a", /*threads=*/1);
  device.AddFault(
      {.kinds = {IoKind::kZero}, .count = 1, .error = 0, .delay = absl::Milliseconds(400)});
  auto created = site_->volumes->Create({.name = "v", .size_bytes = 8 * kMiB}, false);
  ASSERT_TRUE(created.ok());
  const Uuid id = created->status.volume->record.id;
  auto early = site_->volumes->AwaitReady(id, [] { return true; });
  ASSERT_TRUE(early.ok());
  EXPECT_EQ(early->volume->record.state, VolumeState::kPreparing);
  ASSERT_TRUE(site_->volumes->AwaitReady(id, [] { return false; }).ok());
  EXPECT_EQ(StateOf("v"), VolumeState::kReady);
}

TEST_F(VolumesTest, NextOwnerOfDeletedExtentsFindsZeros) {
  FaultyDevice& device = AddUsedDevice("/dev/a");
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(site_->Create({.name = "v", .size_bytes = 32 * kMiB}).ok());
    const MapRun run = site_->volumes->Get("v")->volume->runs->front();
    EXPECT_TRUE(HidesSecrets(device, run));
    LeaveSecrets(device, kLabelDataOffset, kDeviceBytes);
    ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  }
}

TEST_F(VolumesTest, NamesAreResolvedWithSiteOrByUuid) {
  AddUsedDevice("/dev/a");
  ASSERT_TRUE(site_->Create({.name = "v", .size_bytes = kMiB}).ok());
  const std::string id = site_->volumes->Get("v")->volume->record.id.ToString();
  EXPECT_TRUE(site_->volumes->Get("berlin/v").ok());
  EXPECT_TRUE(site_->volumes->Get(id).ok());
  EXPECT_TRUE(site_->volumes->Get("berlin/" + id).ok());
  for (const char* name : {"munich/v", "w", "", "/", "berlin/", "/v", "berlin/v/"}) {
    EXPECT_EQ(site_->volumes->Get(name).status().code(), absl::StatusCode::kNotFound) << name;
  }
}

TEST_F(VolumesTest, ThinVolumeIsThereAtOnceHoweverLarge) {
  AddUsedDevice("/dev/a");
  const absl::Time begin = absl::Now();
  auto created = site_->volumes->Create(
      {.name = "v", .size_bytes = 64 * kTiB, .thin = true, .on_full = OnFull::kWait}, false);
  const absl::Duration took = absl::Now() - begin;
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_LT(took, absl::Milliseconds(50));
  EXPECT_EQ(created->status.volume->record.state, VolumeState::kReady);
  EXPECT_EQ(created->status.volume->record.on_full, OnFull::kWait);
  EXPECT_EQ(created->status.allocated_bytes, 0u);
  EXPECT_EQ(created->status.mapped_bytes, 0u);
  EXPECT_TRUE(created->chosen.empty());
  EXPECT_EQ(site_->FreeBytes(), 32 * kMiB);
  Restart();
  EXPECT_EQ(site_->volumes->Get("v")->volume->record, created->status.volume->record);
  // The device is in no volume's way.
  EXPECT_TRUE(site_->inventory->RemoveDevice("a", false).ok());
}

TEST_F(VolumesTest, ThinVolumeIsRefusedWhereNoDevicesCouldEverServeIt) {
  AddUsedDevice("/dev/a");
  const auto refused = [&](VolumeSpec spec) {
    spec.name = "v";
    spec.size_bytes = kTiB;
    spec.thin = true;
    return site_->Create(spec);
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(refused({.copies = 2})));
  EXPECT_TRUE(absl::IsFailedPrecondition(refused({.stripes = 2})));
  EXPECT_TRUE(absl::IsFailedPrecondition(refused({.device_class = "tape"})));
  // However full they are: space may come.
  ASSERT_TRUE(site_->Create({.name = "all", .size_bytes = 32 * kMiB}).ok());
  EXPECT_TRUE(refused({}).ok());
  AddUsedDevice("/dev/b");
  AddUsedDevice("/dev/c");
  ASSERT_TRUE(
      site_->Create({.name = "s", .size_bytes = kTiB, .layout = Layout::kStriped, .thin = true})
          .ok());
  EXPECT_EQ(site_->volumes->Get("s")->volume->record.columns, 3u);
}

TEST_F(VolumesTest, ReserveIsSetAsideAtOnceOrRefused) {
  AddUsedDevice("/dev/a");
  AddUsedDevice("/dev/b");
  const VolumeSpec spec = {.name = "v",
                           .size_bytes = kTiB,
                           .copies = 2,
                           .thin = true,
                           .reserve_bytes = 20 * kMiB + 64 * kKiB};
  auto imagined = site_->volumes->Create(spec, /*dry_run=*/true);
  ASSERT_TRUE(imagined.ok()) << imagined.status();
  EXPECT_EQ(imagined->status.reserved_bytes, 2 * spec.reserve_bytes);
  ASSERT_EQ(imagined->chosen.size(), 2u);
  EXPECT_EQ(imagined->chosen[0].bytes, spec.reserve_bytes);
  EXPECT_EQ(site_->FreeBytes(), 64 * kMiB);
  ASSERT_TRUE(site_->Create(spec).ok());
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(site_->FreeBytes(), 64 * kMiB - 2 * spec.reserve_bytes);
    const VolumeStatus status = *site_->volumes->Get("v");
    EXPECT_EQ(status.reserved_bytes, 2 * spec.reserve_bytes);
    for (const GrantRecord& grant : status.volume->thin->Grants()) EXPECT_FALSE(grant.handed_out);
    Restart();
  }
  VolumeSpec more = spec;
  more.name = "w";
  EXPECT_TRUE(absl::IsResourceExhausted(site_->Create(more)));
  EXPECT_TRUE(absl::StrContains(site_->Create(more).message(), "no space for 20.0M on each of 2"))
      << site_->Create(more);
  ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  EXPECT_EQ(site_->FreeBytes(), 64 * kMiB);
  EXPECT_TRUE(site_->Create(more).ok());
}

}  // namespace
}  // namespace braid
