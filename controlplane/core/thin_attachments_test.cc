// What becomes of a thin volume's space when its holder ends, in each of the ways it can.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/thin_holder_for_test.h"

namespace braid {
namespace {

class ThinAttachmentsTest : public testing::Test {
 protected:
  ThinAttachmentsTest() : medium_(std::make_shared<MemoryMedium>()) {
    Restart();
    for (const char* path : {"/dev/a", "/dev/b"}) {
      host_.MakeDevice(path, 64 * kMiB);
      EXPECT_TRUE(site_->AddDevice(path).ok());
    }
    EXPECT_TRUE(site_->Create({.name = "t", .size_bytes = kGiB, .copies = 2, .thin = true}).ok());
    free_ = site_->FreeBytes();
    holder_ = std::make_unique<ThinHolder>(&host_, *site_, "t");
    // Attached, with 10 units bound and 54 granted.
    EXPECT_TRUE(holder_->Open(*site_).ok());
    EXPECT_TRUE(holder_->Take(*site_, 64).ok());
    holder_->Bind(0, 0, 10);
    EXPECT_TRUE(holder_->Commit(*site_).ok());
  }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  VolumePtr Now() { return *site_->state->FindVolume("t"); }
  uint64_t Granted() { return Now()->thin->counts().granted_units; }
  uint64_t UsedUnits() { return (free_ - site_->FreeBytes()) / kSmallExtentBytes; }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
  uint64_t free_ = 0;
  std::unique_ptr<ThinHolder> holder_;
};

TEST_F(ThinAttachmentsTest, CleanEndGivesBackWhatIsNotBound) {
  ASSERT_TRUE(holder_->Close(*site_).ok());
  EXPECT_EQ(Granted(), 0u);
  EXPECT_EQ(UsedUnits(), 2 * 10u);
  auto opened = holder_->Open(*site_);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(opened->grants.empty());
  EXPECT_EQ(opened->runs->size(), 2u);
  EXPECT_EQ(opened->volume->record.map_sequence, 1u);
}

TEST_F(ThinAttachmentsTest, NextProcessWithTheJournalGoesOnWithTheGrants) {
  holder_->Bind(0, 10, 5);  // noted, and not committed
  for (int i = 0; i < 4; ++i) {
    // Killed at once, or braidd with it; the second before its journal says its epoch.
    holder_->Die();
    if (i % 2 == 1) Restart();
    auto opened = holder_->Open(*site_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_TRUE(opened->takes_over);
    ASSERT_EQ(Granted(), 54u);
  }
  EXPECT_TRUE(Now()->record.fault.empty());
  ASSERT_TRUE(holder_->Commit(*site_).ok());
  EXPECT_EQ(Now()->thin->counts().mapped_units, 15u);
  EXPECT_EQ(Now()->thin->counts().stale_units, 0u);
}

TEST_F(ThinAttachmentsTest, LostAnswerToAnOpenLosesNoGrants) {
  const HolderSpec holder{.boot_id = host_.BootId(), .pid = 8, .settles = holder_->epoch()};
  for (int i = 0; i < 3; ++i) {
    auto opened = site_->attachments->Open(holder_->id(), holder);
    ASSERT_TRUE(opened.ok());
    EXPECT_TRUE(opened->takes_over);
    ASSERT_EQ(opened->grants.size(), 1u);
    EXPECT_EQ(opened->grants[0].count, 54u);
  }
  EXPECT_TRUE(Now()->record.fault.empty());
}

TEST_F(ThinAttachmentsTest, LostJournalFreesTheGrantsAndIsAFault) {
  holder_->Die();
  holder_->LoseJournal();
  auto opened = holder_->Open(*site_);
  ASSERT_TRUE(opened.ok());
  EXPECT_FALSE(opened->takes_over);
  EXPECT_TRUE(opened->grants.empty());
  EXPECT_EQ(UsedUnits(), 2 * 10u);
  EXPECT_TRUE(absl::StrContains(Now()->record.fault, "may be lost")) << Now()->record.fault;
  EXPECT_EQ(Now()->thin->counts().stale_units, 10u);  // one leg is kept
  Restart();
  EXPECT_EQ(UsedUnits(), 2 * 10u);
  EXPECT_EQ(Now()->thin->counts().stale_units, 10u);
}

TEST_F(ThinAttachmentsTest, LostJournalOfAHolderWithoutGrantsIsNoFault) {
  ASSERT_TRUE(holder_->Close(*site_).ok());
  holder_->LoseJournal();
  ASSERT_TRUE(holder_->Open(*site_).ok());
  holder_->Die();
  holder_->LoseJournal();
  ASSERT_TRUE(holder_->Open(*site_).ok());
  EXPECT_TRUE(Now()->record.fault.empty());
}

TEST_F(ThinAttachmentsTest, RestartOfTheMachineFreesTheGrantsAtOnce) {
  host_.Reboot();
  holder_->LoseJournal();
  Restart();
  EXPECT_EQ(Granted(), 0u);
  EXPECT_EQ(UsedUnits(), 2 * 10u);
  EXPECT_TRUE(Now()->record.attachment.held);
  const Revision revision = site_->state->revision();
  Restart();
  EXPECT_EQ(site_->state->revision(), revision);
  auto opened = holder_->Open(*site_);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(Now()->record.fault.empty());
  EXPECT_EQ(Now()->thin->counts().stale_units, 10u);
}

TEST_F(ThinAttachmentsTest, BraiddThatRestartsLeavesALiveHoldersGrants) {
  Restart();
  EXPECT_EQ(Granted(), 54u);
  holder_->Bind(0, 10, 5);
  EXPECT_TRUE(holder_->Commit(*site_).ok());
}

TEST_F(ThinAttachmentsTest, ReaderIsRefusedAfterAnUncleanEndOfAWriterOnThisBoot) {
  holder_->Die();
  const auto reader = holder_->Open(*site_, /*read_only=*/true);
  EXPECT_EQ(reader.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(reader.status().message(), "attach it for writing once"));
  EXPECT_EQ(Granted(), 54u);
  ASSERT_TRUE(holder_->Open(*site_).ok());
  ASSERT_TRUE(holder_->Close(*site_).ok());
  ASSERT_TRUE(holder_->Open(*site_, /*read_only=*/true).ok());
  holder_->Die();
  ASSERT_TRUE(holder_->Open(*site_, /*read_only=*/true).ok());
  EXPECT_EQ(Now()->thin->counts().stale_units, 0u);
}

TEST_F(ThinAttachmentsTest, ReaderAfterARestartOfTheMachineIsServed) {
  host_.Reboot();
  holder_->LoseJournal();
  ASSERT_TRUE(holder_->Open(*site_, /*read_only=*/true).ok());
  EXPECT_EQ(Granted(), 0u);
  EXPECT_EQ(Now()->thin->counts().stale_units, 10u);
}

TEST_F(ThinAttachmentsTest, MarkStaleIsDurableAndStoresOnlyWhatChanged) {
  for (uint64_t unit = 20; unit < 60; unit += 2) holder_->Bind(0, unit, 1);
  ASSERT_TRUE(holder_->Commit(*site_).ok());
  ASSERT_TRUE(site_->attachments->MarkStale(holder_->id(), holder_->epoch(), DeviceIndex(1)).ok());
  EXPECT_EQ(Now()->thin->counts().stale_units, 30u);
  const Revision revision = site_->state->revision();
  ASSERT_TRUE(site_->attachments->MarkStale(holder_->id(), holder_->epoch(), DeviceIndex(1)).ok());
  EXPECT_EQ(site_->state->revision(), revision);
  const std::vector<MapRun> runs = Now()->thin->Runs();
  Restart();
  EXPECT_EQ(Now()->thin->Runs(), runs);
  // The last copy is spared.
  ASSERT_TRUE(site_->attachments->MarkStale(holder_->id(), holder_->epoch(), DeviceIndex(0)).ok());
  EXPECT_EQ(Now()->thin->counts().stale_units, 30u);
}

TEST_F(ThinAttachmentsTest, OnlyCopyOfSomethingMissingIsRefusedAndOfNothingIsNot) {
  ASSERT_TRUE(site_->attachments->MarkStale(holder_->id(), holder_->epoch(), DeviceIndex(1)).ok());
  ASSERT_TRUE(holder_->Close(*site_).ok());
  const std::string path = site_->state->FindDevice(Now()->record.devices[0])->path;
  FakeHost::Unplugged gone(host_, path);
  EXPECT_EQ(holder_->Open(*site_).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(site_->Create({.name = "e", .size_bytes = kGiB, .thin = true}).ok());
  EXPECT_TRUE(ThinHolder(&host_, *site_, "e").Open(*site_).ok());
}

TEST_F(ThinAttachmentsTest, DeletedVolumeGivesEverythingBack) {
  EXPECT_EQ(site_->volumes->Delete("t", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  holder_->Die();
  ASSERT_TRUE(site_->volumes->Delete("t", false).ok());
  EXPECT_EQ(UsedUnits(), 0u);
  for (const DeviceUse& use : site_->state->Devices()) {
    EXPECT_EQ(use.reserved_bytes, 0u);
    EXPECT_EQ(use.volume_count, 0u);
  }
  Restart();
  EXPECT_EQ(UsedUnits(), 0u);
}

TEST_F(ThinAttachmentsTest, DeviceThatAVolumeNamesStays) {
  ASSERT_TRUE(holder_->Close(*site_).ok());
  for (const char* name : {"a", "b"}) {
    const absl::Status status = site_->inventory->RemoveDevice(name, false).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(absl::StrContains(status.message(), "'t'") ||
                absl::StrContains(status.message(), "t;"))
        << status;
  }
}

}  // namespace
}  // namespace braid
