#include "controlplane/core/spaces.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/thin_holder_for_test.h"

namespace braid {
namespace {

constexpr uint64_t kDeviceBytes = 20 * kMiB;  // 4 extents
constexpr uint64_t kDeviceUnits = uint64_t{4} * kSmallPerExtent;

class SpacesTest : public testing::Test {
 protected:
  SpacesTest() : medium_(std::make_shared<MemoryMedium>()) {
    Restart();
    for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
      LeaveSecrets(host_.MakeDevice(path, kDeviceBytes), 0, kDeviceBytes);
      EXPECT_TRUE(site_->AddDevice(path).ok());
    }
  }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  ThinHolder MakeThin(const std::string& name, uint32_t copies = 1, uint64_t reserve_bytes = 0) {
    const absl::Status made = site_->Create({.name = name,
                                             .size_bytes = kGiB,
                                             .copies = copies,
                                             .thin = true,
                                             .reserve_bytes = reserve_bytes});
    EXPECT_TRUE(made.ok()) << made;
    ThinHolder holder(&host_, *site_, name);
    EXPECT_TRUE(holder.Open(*site_).ok());
    return holder;
  }
  ThinCounts Counts(const ThinHolder& holder) {
    return (*site_->state->FindVolume(holder.id()))->thin->counts();
  }
  // Units of a grant that are not zero on some leg.
  int Dirty(ThinHolder& holder, const Grant& grant) {
    int dirty = 0;
    holder.ForEachUnit(*site_, grant, [&](BlockDevice& device, uint64_t offset) {
      std::string bytes(kSmallExtentBytes, 'x');
      EXPECT_TRUE(device.Read(offset, absl::MakeSpan(bytes)).ok());
      if (bytes.find_first_not_of('\0') != std::string::npos) ++dirty;
    });
    return dirty;
  }
  uint64_t ReservedBytes() {
    uint64_t bytes = 0;
    for (const DeviceUse& use : site_->state->Devices()) bytes += use.reserved_bytes;
    return bytes;
  }
  PoolState StateOfPool() { return site_->pools->List().at(0).state; }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
};

TEST_F(SpacesTest, TakenSpaceIsZeroDurableAndOnDifferentDevices) {
  ThinHolder holder = MakeThin("t", /*copies=*/2);
  const auto taken = holder.Take(*site_, kSmallPerExtent);
  ASSERT_TRUE(taken.ok()) << taken.status();
  uint64_t units = 0;
  for (const Grant& grant : taken->grants) {
    ASSERT_EQ(grant.legs.size(), 2u);
    EXPECT_NE(grant.legs[0].device, grant.legs[1].device);
    EXPECT_EQ(Dirty(holder, grant), 0);
    units += grant.count;
  }
  EXPECT_EQ(units, kSmallPerExtent);
  EXPECT_EQ(taken->first_device, 0u);
  EXPECT_EQ(taken->devices.size(), 2u);
  const uint64_t free = site_->FreeBytes();
  EXPECT_EQ(ReservedBytes(), 2 * kExtentBytes);
  EXPECT_EQ(free + ReservedBytes(), 3 * kDeviceUnits * kSmallExtentBytes);
  Restart();
  EXPECT_EQ(site_->FreeBytes(), free);
  EXPECT_EQ(Counts(holder).granted_units, kSmallPerExtent);
  // Whose answer was lost: the next says again which devices there are.
  const auto again = site_->spaces->Take(holder.id(), holder.epoch(), 1, 0);
  ASSERT_TRUE(again.ok());
  EXPECT_GE(again->devices.size(), 2u);
  EXPECT_EQ(site_->spaces->Take(holder.id(), holder.epoch(), 1, 4).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SpacesTest, OneCallGetsAShareAndTheLastUnitIsFound) {
  ThinHolder holder = MakeThin("t");
  const auto first = holder.Take(*site_, 1'000'000);
  ASSERT_TRUE(first.ok());
  uint64_t got = 0;
  for (const Grant& grant : first->grants) got += grant.count;
  EXPECT_EQ(got, 3 * kSmallPerExtent);  // of 12 rows
  for (;;) {
    const auto more = holder.Take(*site_, 1'000'000);
    if (!more.ok()) {
      EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted) << more.status();
      break;
    }
    for (const Grant& grant : more->grants) {
      got += grant.count;
      ASSERT_EQ(Dirty(holder, grant), 0);
    }
  }
  EXPECT_EQ(got, 3 * kDeviceUnits);
  EXPECT_EQ(site_->FreeBytes(), 0u);
  EXPECT_EQ(StateOfPool(), PoolState::kFull);
  ASSERT_TRUE(holder.Return(*site_, 0).ok());
  EXPECT_NE(StateOfPool(), PoolState::kFull);
  EXPECT_TRUE(holder.Take(*site_, 1).ok());
}

TEST_F(SpacesTest, ChangesCountOnceAndHaveNoGaps) {
  ThinHolder holder = MakeThin("t", /*copies=*/2);
  ASSERT_TRUE(holder.Take(*site_, 64).ok());
  for (uint64_t unit = 0; unit < 10; ++unit) {
    ASSERT_EQ(holder.Bind(0, unit * 3, 2), 2u);
    ASSERT_TRUE(holder.Commit(*site_, /*again=*/unit).ok());
    if (unit % 3 == 0) Restart();
  }
  EXPECT_EQ(Counts(holder).mapped_units, 20u);
  EXPECT_EQ(Counts(holder).granted_units, 44u);
  const MapChange unbind{.kind = MapChange::Kind::kUnbind, .count = 1};
  const auto commit = [&](uint64_t first) {
    return site_->spaces->CommitMap(holder.id(), holder.epoch(), first, {unbind});
  };
  for (uint64_t gap : {uint64_t{0}, uint64_t{12}, UINT64_MAX}) {
    EXPECT_EQ(commit(gap).status().code(), absl::StatusCode::kInvalidArgument) << gap;
  }
  EXPECT_EQ(commit(10).value(), 10u);
  EXPECT_EQ(Counts(holder).mapped_units, 20u);
  EXPECT_EQ(commit(11).value(), 11u);
  EXPECT_EQ(Counts(holder).mapped_units, 19u);
}

TEST_F(SpacesTest, ChangeThatDoesNotFitChangesNothing) {
  ThinHolder holder = MakeThin("t", /*copies=*/2);
  ASSERT_TRUE(holder.Take(*site_, 8).ok());
  holder.Bind(0, 0, 1);
  ASSERT_TRUE(holder.Commit(*site_).ok());
  const VolumePtr volume = *site_->state->FindVolume(holder.id());
  const auto runs = volume->thin->Runs();
  const auto grants = volume->thin->Grants();
  const auto contents = medium_->Contents();

  MapChange good{.kind = MapChange::Kind::kBind, .first = ColumnUnit(1), .count = 1};
  for (uint32_t leg = 0; leg < 2; ++leg) good.legs[leg] = holder.reservation()[0].legs[leg];
  MapChange bound = good, elsewhere = good, one_device = good, outside = good, empty = good;
  bound.first = ColumnUnit(0);
  elsewhere.legs[0].unit = elsewhere.legs[0].unit + 100;
  one_device.legs[1] = one_device.legs[0];
  outside.first = ColumnUnit(kGiB / kSmallExtentBytes);
  empty.count = 0;
  for (const MapChange& bad : {bound, elsewhere, one_device, outside, empty}) {
    EXPECT_EQ(site_->spaces->CommitMap(holder.id(), holder.epoch(), 2, {good, bad}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(volume->thin->Runs(), runs);
  EXPECT_EQ(volume->thin->Grants(), grants);
  EXPECT_EQ(medium_->Contents(), contents);
  EXPECT_TRUE(site_->spaces->CommitMap(holder.id(), holder.epoch(), 2, {good}).ok());
}

TEST_F(SpacesTest, OnlyTheWriterOfAThinVolumeIsServed) {
  ThinHolder holder = MakeThin("t");
  const auto refused = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(site_->spaces->Take(holder.id(), holder.epoch() + 1, 1, 0).status().code(), refused);
  EXPECT_EQ(site_->spaces->CommitMap(holder.id(), Epoch(), 1, {}).status().code(), refused);
  ASSERT_TRUE(holder.Close(*site_).ok());
  EXPECT_EQ(site_->spaces->Take(holder.id(), holder.epoch(), 1, 0).status().code(), refused);
  ASSERT_TRUE(holder.Open(*site_, /*read_only=*/true).ok());
  EXPECT_EQ(site_->spaces->Take(holder.id(), holder.epoch(), 1, 0).status().code(), refused);
  EXPECT_EQ(site_->spaces->Return(holder.id(), holder.epoch(), {}).code(), refused);
  EXPECT_EQ(site_->spaces->Take(Uuid::Random(), holder.epoch(), 1, 0).status().code(),
            absl::StatusCode::kNotFound);

  ASSERT_TRUE(site_->Create({.name = "thick", .size_bytes = kMiB}).ok());
  ThinHolder thick(&host_, *site_, "thick");
  ASSERT_TRUE(thick.Open(*site_).ok());
  EXPECT_EQ(site_->spaces->Take(thick.id(), thick.epoch(), 1, 0).status().code(), refused);
}

TEST_F(SpacesTest, CommitThatFailsLeavesTheUnitsFreeOrGranted) {
  for (bool survives : {false, true}) {
    ThinHolder holder = MakeThin(absl::StrCat("t", survives), /*copies=*/2);
    const uint64_t free = site_->FreeBytes();
    medium_->FailCommit(0, survives);
    EXPECT_EQ(holder.Take(*site_, 64).status().code(), absl::StatusCode::kUnavailable);
    // Until it is known what is so, nothing is given out.
    EXPECT_EQ(holder.Take(*site_, 64).status().code(), absl::StatusCode::kUnavailable);
    Restart();
    EXPECT_EQ(site_->FreeBytes(), free - (survives ? 2 * kExtentBytes : 0));
    EXPECT_EQ(Counts(holder).granted_units, survives ? 64u : 0u);
    // The holder never heard of them, and a clean end gives them back.
    ASSERT_TRUE(holder.Take(*site_, 3).ok());
    ASSERT_TRUE(holder.Close(*site_).ok());
    EXPECT_EQ(site_->FreeBytes(), free);
  }
}

TEST_F(SpacesTest, TwoVolumesInTurnShareNothing) {
  ThinHolder one = MakeThin("one"), two = MakeThin("two", /*copies=*/2);
  for (uint64_t turn = 0; turn < 40; ++turn) {
    ThinHolder& holder = turn % 2 == 0 ? one : two;
    ASSERT_TRUE(holder.Take(*site_, 1 + turn % 5).ok());
    holder.Bind(0, turn * 4, 3);
    ASSERT_TRUE(holder.Commit(*site_).ok());
    // Reading the store again finds any unit that has two owners.
    if (turn % 8 == 0) Restart();
  }
  for (ThinHolder* holder : {&one, &two}) {
    ASSERT_TRUE(holder->Close(*site_).ok());
    EXPECT_EQ(Counts(*holder).granted_units, 0u);
  }
  EXPECT_EQ(ReservedBytes(), 0u);
  const uint64_t used = 3 * kDeviceUnits * kSmallExtentBytes - site_->FreeBytes();
  EXPECT_EQ(used, (Counts(one).mapped_units + 2 * Counts(two).mapped_units) * kSmallExtentBytes);
}

TEST_F(SpacesTest, ReserveStaysWithTheVolumeWhateverItDoes) {
  ThinHolder holder = MakeThin("r", /*copies=*/2, /*reserve_bytes=*/6 * kMiB);
  const uint64_t reserve = 96;
  const auto guaranteed = [&] {
    const ThinCounts counts = Counts(holder);
    return counts.mapped_units + counts.granted_units;
  };
  EXPECT_EQ(Counts(holder).set_aside_units, reserve);
  // Somebody else takes all the rest.
  ThinHolder other = MakeThin("other");
  while (other.Take(*site_, 1'000'000).ok()) {
  }
  ASSERT_EQ(site_->FreeBytes(), 0u);
  const auto taken = holder.Take(*site_, 40);
  ASSERT_TRUE(taken.ok()) << taken.status();
  for (const Grant& grant : taken->grants) EXPECT_EQ(Dirty(holder, grant), 0);
  ASSERT_TRUE(holder.Take(*site_, 1000).ok());
  EXPECT_EQ(Counts(holder).set_aside_units, 0u);
  EXPECT_EQ(holder.Take(*site_, 1).status().code(), absl::StatusCode::kResourceExhausted);
  uint64_t bound = 0;
  while (const uint64_t units = holder.Bind(0, bound, 10)) bound += units;
  EXPECT_EQ(bound, reserve);
  ASSERT_TRUE(holder.Commit(*site_).ok());
  holder.Unbind(0, 5, 50);
  ASSERT_TRUE(holder.Commit(*site_).ok());
  EXPECT_EQ(guaranteed(), reserve);
  EXPECT_EQ(Counts(holder).set_aside_units, 50u);
  Restart();
  ASSERT_TRUE(holder.Take(*site_, 50).ok());
  ASSERT_TRUE(holder.Return(*site_, 0).ok());
  EXPECT_EQ(guaranteed(), reserve);
  ASSERT_TRUE(holder.Close(*site_).ok());
  EXPECT_EQ(guaranteed(), reserve);
  EXPECT_EQ(site_->FreeBytes(), 0u);
  Restart();
  EXPECT_EQ(guaranteed(), reserve);
}

TEST_F(SpacesTest, DeviceThatCannotBeZeroedIsLeftOut) {
  ThinHolder holder = MakeThin("t");
  for (const char* gone : {"/dev/a", "/dev/b", "/dev/c"}) {
    FakeHost::Unplugged unplugged(host_, gone);
    for (int i = 0; i < 3; ++i) {
      const auto taken = holder.Take(*site_, 64);
      ASSERT_TRUE(taken.ok()) << taken.status();
      for (const DevicePtr& device : taken->devices) EXPECT_NE(device->path, gone);
    }
  }
  FakeHost::Unplugged a(host_, "/dev/a"), b(host_, "/dev/b"), c(host_, "/dev/c");
  const uint64_t free = site_->FreeBytes();
  EXPECT_EQ(holder.Take(*site_, 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(site_->FreeBytes(), free);
}

// Space is zeroed for a holder that ends meanwhile.
class HangingTest : public SpacesTest {
 protected:
  HangingTest() : device_(host_.MakeDevice("/dev/slow", kDeviceBytes, /*threads=*/1)) {
    for (const char* name : {"a", "b", "c"}) {
      EXPECT_TRUE(site_->inventory->RemoveDevice(name, false).ok());
    }
    EXPECT_TRUE(site_->AddDevice("/dev/slow").ok());
  }
  FaultyDevice& device_;
};

TEST_F(HangingTest, TakeOfAHolderThatEndedGivesNothing) {
  ThinHolder holder = MakeThin("t");
  const uint64_t free = site_->FreeBytes();
  device_.Pause();
  absl::Status taken;
  std::thread taking([&] { taken = ThinHolder(holder).Take(*site_, 64).status(); });
  device_.AwaitPaused(1);
  // Nobody else's meanwhile, and counted.
  EXPECT_EQ(site_->FreeBytes(), free - kExtentBytes);
  EXPECT_EQ(ReservedBytes(), kExtentBytes);
  EXPECT_EQ(holder.Take(*site_, 1).status().code(), absl::StatusCode::kUnavailable);
  holder.Die();
  EXPECT_EQ(site_->volumes->Delete("t", false).status().code(), absl::StatusCode::kUnavailable);
  device_.Resume();
  taking.join();
  // The next one came first in this round.
  EXPECT_TRUE(taken.ok());
  ASSERT_TRUE(holder.Open(*site_).ok());
  EXPECT_EQ(holder.reservation().size(), 1u);

  device_.Pause();
  std::thread again([&] { taken = ThinHolder(holder).Take(*site_, 64).status(); });
  device_.AwaitPaused(1);
  holder.Die();
  // Opening looks at the device too.
  std::thread opening([&] { EXPECT_TRUE(holder.Open(*site_).ok()); });
  device_.AwaitPaused(2);
  device_.Resume();
  again.join();
  opening.join();
  EXPECT_TRUE(taken.ok() || absl::IsFailedPrecondition(taken)) << taken;
  ASSERT_TRUE(holder.Close(*site_).ok());
  EXPECT_EQ(site_->FreeBytes(), free);
  EXPECT_EQ(ReservedBytes(), 0u);
}

TEST_F(HangingTest, DeviceStaysInThePoolWhileItIsZeroed) {
  ThinHolder holder = MakeThin("t");
  device_.Pause();
  absl::Status taken;
  std::thread taking([&] { taken = holder.Take(*site_, 64).status(); });
  device_.AwaitPaused(1);
  EXPECT_EQ(site_->inventory->RemoveDevice("slow", false).status().code(),
            absl::StatusCode::kUnavailable);
  device_.Resume();
  taking.join();
  EXPECT_TRUE(taken.ok()) << taken;
  EXPECT_EQ(site_->inventory->RemoveDevice("slow", false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace braid
