#include "controlplane/core/attachments.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/site_for_test.h"

namespace braid {
namespace {

class AttachmentsTest : public testing::Test {
 protected:
  AttachmentsTest() : medium_(std::make_shared<MemoryMedium>()) {
    Restart();
    for (const char* path : {"/dev/a", "/dev/b"}) {
      host_.MakeDevice(path, 64 * kMiB);
      EXPECT_TRUE(site_->AddDevice(path).ok());
    }
    EXPECT_TRUE(site_->Create({.name = "m", .size_bytes = 16 * kMiB, .copies = 2}).ok());
    id_ = Now()->record.id;
    lock_ = *site_->attachments->Prepare(Now()->record);
  }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  VolumePtr Now() { return site_->volumes->Get("m")->volume; }
  // A new process that takes the lock first.
  absl::StatusOr<Opened> Open(bool read_only = false, Epoch settles = Epoch()) {
    host_.SetLocked(lock_, true);
    return site_->attachments->Open(
        id_, {.boot_id = host_.BootId(), .pid = 7, .read_only = read_only, .settles = settles});
  }
  void Die() { host_.SetLocked(lock_, false); }
  // The names of the devices with stale extents.
  std::string Stale() {
    std::string names;
    for (const MapRun& run : *Now()->runs) {
      if (run.stale) {
        absl::StrAppend(&names,
                        site_->state->FindDevice(Now()->record.devices[run.device.value()])->name);
      }
    }
    return names;
  }
  DeviceIndex IndexOf(const std::string& name) {
    const auto& devices = Now()->record.devices;
    for (size_t i = 0; i < devices.size(); ++i) {
      if (site_->state->FindDevice(devices[i])->name == name) {
        return DeviceIndex(static_cast<uint16_t>(i));
      }
    }
    return DeviceIndex(99);
  }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
  Uuid id_;
  std::string lock_;
};

TEST_F(AttachmentsTest, CleanEndsLeaveNothingStaleAndEpochsRise) {
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    auto opened = Open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->volume->record.attachment.epoch, Epoch(epoch));
    EXPECT_TRUE(Now()->record.attachment.held);
    ASSERT_TRUE(site_->attachments->Close(id_, Epoch(epoch)).ok());
    ASSERT_TRUE(site_->attachments->Close(id_, Epoch(epoch)).ok());  // its answer was lost
    Die();
    Restart();
  }
  EXPECT_EQ(Stale(), "");
}

TEST_F(AttachmentsTest, UncleanWriterLeavesOneLeg) {
  ASSERT_TRUE(Open().ok());
  Die();
  Restart();
  EXPECT_EQ(Stale(), "");  // nothing is decided before the next one comes
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Stale().size(), 1u);
  EXPECT_EQ(site_->volumes->Get("m")->health, VolumeHealth::kDegraded);
  EXPECT_EQ(site_->volumes->Get("m")->stale_bytes, 16 * kMiB);
}

TEST_F(AttachmentsTest, HolderWithTheLastOnesJournalKeepsAllLegs) {
  ASSERT_TRUE(Open().ok());
  for (uint64_t epoch = 1; epoch < 4; ++epoch) {
    Die();
    ASSERT_TRUE(Open(/*read_only=*/false, Epoch(epoch)).ok());
    EXPECT_EQ(Stale(), "");
  }
}

struct UselessJournal {
  const char* name;
  bool reboot, read_only;
  Epoch settles;
};
class UselessJournalTest : public AttachmentsTest,
                           public testing::WithParamInterface<UselessJournal> {};
INSTANTIATE_TEST_SUITE_P(
    Journals, UselessJournalTest,
    testing::Values(UselessJournal{"OfAnOlderEpoch", false, false, Epoch(1)},
                    UselessJournal{"OfAnEpochToCome", false, false, Epoch(4)},
                    UselessJournal{"FromBeforeARestart", true, false, Epoch(3)},
                    UselessJournal{"WithAReaderWhoCannotSettle", false, true, Epoch(3)}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST_P(UselessJournalTest, LeavesOneLeg) {
  ASSERT_TRUE(Open().ok());
  Die();
  ASSERT_TRUE(Open(/*read_only=*/false, Epoch(1)).ok());
  Die();
  ASSERT_TRUE(Open(/*read_only=*/false, Epoch(2)).ok());
  Die();
  if (GetParam().reboot) host_.Reboot();
  const auto opened = Open(GetParam().read_only, GetParam().settles);
  ASSERT_TRUE(opened.ok());
  EXPECT_FALSE(opened->takes_over);
  EXPECT_EQ(Stale().size(), 1u);
}

TEST_F(AttachmentsTest, HolderThatNeverBeganLeavesTheJournalBeforeItStanding) {
  ASSERT_TRUE(Open().ok());
  // Their answers were lost, or they died before their journals said their epochs.
  for (int i = 0; i < 3; ++i) {
    if (i > 0) Die();
    if (i > 1) Restart();
    const auto opened = Open(/*read_only=*/false, Epoch(1));
    ASSERT_TRUE(opened.ok());
    EXPECT_TRUE(opened->takes_over);
    EXPECT_EQ(opened->volume->record.attachment.epoch, Epoch(2 + static_cast<uint64_t>(i)));
    EXPECT_EQ(Stale(), "");
  }
  // One that took no journal over proves nothing with that of an earlier one.
  Die();
  ASSERT_TRUE(Open().ok());
  const std::string stale = Stale();
  EXPECT_EQ(stale.size(), 1u);
  Die();
  EXPECT_FALSE(Open(/*read_only=*/false, Epoch(1))->takes_over);
}

TEST_F(AttachmentsTest, DetachedVolumeIsLeftAlone) {
  auto kept = site_->attachments->KeepDetached(*Now());
  ASSERT_TRUE(kept.ok());
  const auto busy = absl::StatusCode::kUnavailable;
  EXPECT_EQ(Open().status().code(), busy);
  EXPECT_EQ(site_->attachments->KeepDetached(*Now()).status().code(), busy);
  EXPECT_EQ(site_->volumes->Delete("m", false).status().code(), busy);
  kept->reset();
  EXPECT_TRUE(Open().ok());
  EXPECT_EQ(site_->attachments->KeepDetached(*Now()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(AttachmentsTest, ReaderAfterUncleanWriterSeesOneLegToo) {
  ASSERT_TRUE(Open().ok());
  Die();
  auto reader = Open(/*read_only=*/true);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(Stale().size(), 1u);
}

TEST_F(AttachmentsTest, UncleanReaderLeavesNothingStale) {
  ASSERT_TRUE(Open(/*read_only=*/true).ok());
  Die();
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Stale(), "");
}

TEST_F(AttachmentsTest, RebootCountsAsUncleanEnd) {
  ASSERT_TRUE(Open().ok());
  host_.Reboot();
  Restart();
  EXPECT_FALSE(site_->volumes->Get("m")->alive);
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Stale().size(), 1u);
}

TEST_F(AttachmentsTest, SurvivorOfAnUncleanEndIsOnADeviceThatIsThere) {
  for (const char* missing : {"/dev/a", "/dev/b"}) {
    ASSERT_TRUE(site_->Create({.name = "x", .size_bytes = 4 * kMiB, .copies = 2}).ok());
    const VolumeRecord record = site_->volumes->Get("x")->volume->record;
    host_.SetLocked(*site_->attachments->Prepare(record), true);
    const HolderSpec holder{.boot_id = host_.BootId(), .pid = 1};
    ASSERT_TRUE(site_->attachments->Open(record.id, holder).ok());
    FakeHost::Unplugged gone(host_, missing);
    auto opened = site_->attachments->Open(record.id, holder);
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const MapRun& run : *opened->runs) {
      const DevicePtr device = site_->state->FindDevice(record.devices[run.device.value()]);
      EXPECT_EQ(run.stale, device->path == missing);
    }
    ASSERT_TRUE(site_->attachments->Close(record.id, Epoch(2)).ok());
    host_.SetLocked("/locks/" + record.id.ToString() + ".lock", false);
    ASSERT_TRUE(site_->volumes->Delete("x", false).ok());
  }
}

TEST_F(AttachmentsTest, DegradedOpensButOnlyCopyMissingDoesNot) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(site_->attachments->MarkStale(id_, Epoch(1), IndexOf("b")).ok());
  ASSERT_TRUE(site_->attachments->Close(id_, Epoch(1)).ok());
  {
    FakeHost::Unplugged gone(host_, "/dev/b");
    ASSERT_TRUE(Open().ok());
    ASSERT_TRUE(site_->attachments->Close(id_, Epoch(2)).ok());
  }
  FakeHost::Unplugged gone(host_, "/dev/a");
  absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(status.message(), "'a'")) << status;
  EXPECT_EQ(Now()->record.attachment.epoch, Epoch(2));
}

TEST_F(AttachmentsTest, MarkStaleIsDurableRepeatableAndSparesTheLastCopy) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(site_->attachments->MarkStale(id_, Epoch(1), IndexOf("a")).ok());
  const Revision revision = site_->state->revision();
  ASSERT_TRUE(site_->attachments->MarkStale(id_, Epoch(1), IndexOf("a")).ok());
  EXPECT_EQ(site_->state->revision(), revision);
  ASSERT_TRUE(site_->attachments->MarkStale(id_, Epoch(1), IndexOf("b")).ok());
  EXPECT_EQ(Stale(), "a");
  Restart();
  EXPECT_EQ(Stale(), "a");
  EXPECT_EQ(site_->attachments->MarkStale(id_, Epoch(1), DeviceIndex(2)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AttachmentsTest, MarkStaleIsNotAnsweredWhenItIsNotDurable) {
  for (bool survives : {false, true}) {
    ASSERT_TRUE(Open().ok());
    const Epoch epoch = Now()->record.attachment.epoch;
    medium_->FailCommit(0, survives);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(site_->attachments->MarkStale(id_, epoch, IndexOf("a")).code(),
                absl::StatusCode::kUnavailable);
    }
    Restart();
    EXPECT_EQ(Stale(), survives ? "a" : "");
    ASSERT_TRUE(site_->attachments->MarkStale(id_, epoch, IndexOf("a")).ok());
    EXPECT_EQ(Stale(), "a");
    ASSERT_TRUE(site_->attachments->Close(id_, epoch).ok());
    Die();
    // Whole again, for the second round.
    ASSERT_TRUE(site_->volumes->Delete("m", false).ok());
    ASSERT_TRUE(site_->Create({.name = "m", .size_bytes = 16 * kMiB, .copies = 2}).ok());
    id_ = Now()->record.id;
    lock_ = *site_->attachments->Prepare(Now()->record);
  }
}

TEST_F(AttachmentsTest, OldEpochsCanDoNothing) {
  ASSERT_TRUE(Open().ok());
  Die();
  ASSERT_TRUE(Open().ok());
  const auto over = absl::StatusCode::kFailedPrecondition;
  for (uint64_t epoch : {0, 1, 3}) {
    EXPECT_EQ(site_->attachments->MarkStale(id_, Epoch(epoch), DeviceIndex(0)).code(), over);
    EXPECT_EQ(site_->attachments->ReportFault(id_, Epoch(epoch), "x").code(), over);
    EXPECT_EQ(site_->attachments->Close(id_, Epoch(epoch)).code(), over);
  }
  ASSERT_TRUE(site_->attachments->Close(id_, Epoch(2)).ok());
  EXPECT_EQ(site_->attachments->MarkStale(id_, Epoch(2), DeviceIndex(0)).code(), over);
}

TEST_F(AttachmentsTest, OpenNeedsTheLockThisBootAndAReadyVolume) {
  const auto refused = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(site_->attachments->Open(id_, {.boot_id = host_.BootId()}).status().code(), refused);
  host_.SetLocked(lock_, true);
  EXPECT_EQ(site_->attachments->Open(id_, {.boot_id = Uuid::Random()}).status().code(), refused);
  EXPECT_EQ(site_->attachments->Open(Uuid::Random(), {.boot_id = host_.BootId()}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Now()->record.attachment.epoch, Epoch(0));
}

TEST_F(AttachmentsTest, FaultIsKeptInOneLineAndTheFirstStays) {
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(site_->attachments->ReportFault(id_, Epoch(1), "flush\nfailed").ok());
  ASSERT_TRUE(site_->attachments->ReportFault(id_, Epoch(1), "another").ok());
  ASSERT_TRUE(site_->attachments->Close(id_, Epoch(1)).ok());
  Restart();
  EXPECT_EQ(Now()->record.fault, "flush failed");
  EXPECT_EQ(site_->volumes->Get("m")->health, VolumeHealth::kFaulty);
}

TEST_F(AttachmentsTest, VolumeWithALivingHolderIsNotDeleted) {
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(site_->volumes->Delete("m", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(site_->volumes->Delete("m", /*dry_run=*/true).status().code(),
            absl::StatusCode::kFailedPrecondition);
  Die();
  EXPECT_TRUE(site_->volumes->Delete("m", false).ok());
}

}  // namespace
}  // namespace braid
