#include "lib/volume/volume.h"

#include <cerrno>
#include <chrono>
#include <future>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "lib/base/errno_status.h"
#include "lib/volume/volume_fixture.h"

namespace braid {
namespace {

constexpr uint64_t kSize = 3 * kExtentBytes + 5 * kSectorBytes;
constexpr Shape kLinear{"linear", 1, 1};
constexpr Shape kMirror{"mirrored2", 1, 2};
constexpr Shape kMirror3{"mirrored3", 1, 3};
constexpr Shape kStripedMirrors{"striped_mirrors2x2", 2, 2};

std::string Pattern(uint64_t length, uint64_t salt) {
  std::string bytes(length, '\0');
  for (uint64_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<char>((i * 131 + (i >> 9) * 17 + salt * 71) >> 3);
  }
  return bytes;
}

std::string ReadBack(Volume& volume, uint64_t offset, uint64_t length) {
  std::string bytes(length, 'x');
  absl::Status s = volume.Read(offset, absl::MakeSpan(bytes));
  EXPECT_TRUE(s.ok()) << s;
  return bytes;
}

bool StaysAway(const std::future<void>& event) {
  return event.wait_for(std::chrono::milliseconds(30)) == std::future_status::timeout;
}

class VolumeOfEachShape : public testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, VolumeOfEachShape, testing::ValuesIn(kShapes),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST_P(VolumeOfEachShape, GivesBackWhatWasWrittenAcrossStripesAndExtents) {
  VolumeFixture f(GetParam(), kSize);
  EXPECT_EQ(ReadBack(*f.volume, 0, kSize), std::string(kSize, '\0'));
  const std::string all = Pattern(kSize, 1);
  ASSERT_TRUE(f.volume->Write(0, all, false).ok());
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == all);
  // A range that begins and ends inside stripes and spans an extent boundary.
  const uint64_t offset = kExtentBytes - 3 * kSectorBytes;
  const std::string part = Pattern(40 * kKiB + kSectorBytes, 2);
  ASSERT_TRUE(f.volume->Write(offset, part, true).ok());
  std::string expected = all;
  expected.replace(offset, part.size(), part);
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  for (uint32_t leg = 0; leg < f.geometry.legs(); ++leg) {
    EXPECT_TRUE(f.LegBytes(leg, 0, kSize) == expected) << "leg " << leg;
  }
  EXPECT_TRUE(f.volume->Flush().ok());
}

TEST_P(VolumeOfEachShape, ZeroesAndTrimsExactlyTheRangeOnEveryLeg) {
  VolumeFixture f(GetParam(), kSize);
  std::string expected = Pattern(kSize, 3);
  ASSERT_TRUE(f.volume->Write(0, expected, false).ok());
  const auto zero = [&](uint64_t offset, uint64_t length) {
    expected.replace(offset, length, length, '\0');
  };
  ASSERT_TRUE(f.volume->Zero(5 * kSectorBytes, 50 * kKiB, {}).ok());
  zero(5 * kSectorBytes, 50 * kKiB);
  ASSERT_TRUE(f.volume->Zero(kExtentBytes - 512, 1024, {.fua = true, .may_trim = true}).ok());
  zero(kExtentBytes - 512, 1024);
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  // A trim may or may not zero; around it nothing changes, and legs agree.
  ASSERT_TRUE(f.volume->Trim(kExtentBytes, 64 * kKiB, false).ok());
  const std::string after = ReadBack(*f.volume, 0, kSize);
  EXPECT_TRUE(after.substr(0, kExtentBytes) == expected.substr(0, kExtentBytes));
  EXPECT_TRUE(after.substr(kExtentBytes + 64 * kKiB) == expected.substr(kExtentBytes + 64 * kKiB));
  for (uint32_t leg = 0; leg < f.geometry.legs(); ++leg) {
    EXPECT_TRUE(f.LegBytes(leg, 0, kSize) == after) << "leg " << leg;
  }
}

TEST_P(VolumeOfEachShape, TellsExtentsThatCoverTheRange) {
  VolumeFixture f(GetParam(), kSize);
  ASSERT_TRUE(f.volume->Write(kExtentBytes, Pattern(kSectorBytes, 1), false).ok());
  const uint64_t offset = 7 * kSectorBytes, length = kSize - 9 * kSectorBytes;
  uint64_t at = offset;
  bool written_is_data = false;
  ASSERT_TRUE(f.volume
                  ->Extents(offset, length,
                            [&](uint64_t o, uint64_t l, bool hole) {
                              EXPECT_EQ(o, at);
                              at += l;
                              if (o <= kExtentBytes && kExtentBytes < o + l)
                                written_is_data = !hole;
                              return true;
                            })
                  .ok());
  EXPECT_EQ(at, offset + length);
  EXPECT_TRUE(written_is_data);
  int calls = 0;
  ASSERT_TRUE(f.volume->Extents(0, kSize, [&](auto...) { return ++calls < 1; }).ok());
  EXPECT_EQ(calls, 1);
}

TEST_P(VolumeOfEachShape, RefusesRangesPastItsEndAndTakesEmptyOnes) {
  VolumeFixture f(GetParam(), kSize);
  std::string bytes(kSectorBytes, 'x');
  for (uint64_t offset : {kSize, kSize - 1, UINT64_MAX, UINT64_MAX - 511}) {
    EXPECT_EQ(f.volume->Read(offset, absl::MakeSpan(bytes)).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(f.volume->Write(offset, bytes, false).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(f.volume->Zero(offset, 512, {}).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(f.volume->Trim(offset, 512, false).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(f.volume->Cache(offset, 512).code(), absl::StatusCode::kOutOfRange);
  }
  EXPECT_TRUE(f.volume->Write(kSize, {}, false).ok());
  EXPECT_TRUE(f.volume->Read(0, {}).ok());
  EXPECT_TRUE(f.volume->Zero(kSize, 0, {}).ok());
}

TEST(Volume, OpensOnlyOnAMapWithoutGapsOverlapsOrPlacesPastADevice) {
  const Geometry g = Geometry::Make(kSize, 1, 0, 2).value();
  const auto open = [&](const std::vector<MapRun>& runs, uint64_t device_bytes) {
    std::vector<std::unique_ptr<BlockDevice>> devices(2);
    for (auto& device : devices) device = MakeMemoryDevice("d", device_bytes);
    FakeAuthority authority(runs);
    return Volume::Open(g, runs, std::move(devices), &authority, nullptr, {}).status().code();
  };
  const std::vector<MapRun> good = VolumeFixture::Runs(g);
  constexpr uint64_t kEnough = 5 * kExtentBytes;
  EXPECT_EQ(open(good, kEnough), absl::StatusCode::kOk);
  EXPECT_EQ(open(good, kEnough - 1), absl::StatusCode::kInvalidArgument);
  auto bad = good;
  bad.pop_back();
  EXPECT_EQ(open(bad, kEnough), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.push_back(good[0]);
  EXPECT_EQ(open(bad, kEnough), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad[0].device = DeviceIndex(2);
  EXPECT_EQ(open(bad, kEnough), absl::StatusCode::kInvalidArgument);
}

TEST(Volume, TakesNoChangeWhenReadOnly) {
  VolumeFixture f(kMirror, kSize);
  std::vector<std::unique_ptr<BlockDevice>> borrowed;
  for (auto& device : f.devices) borrowed.push_back(BorrowDevice(device.get()));
  auto volume = Volume::Open(f.geometry, f.authority.runs(), std::move(borrowed), &f.authority,
                             nullptr, {.read_only = true})
                    .value();
  EXPECT_EQ(ErrnoOf(volume->Write(0, Pattern(512, 1), false)), EROFS);
  EXPECT_EQ(ErrnoOf(volume->Zero(0, 512, {})), EROFS);
  EXPECT_EQ(ErrnoOf(volume->Trim(0, 512, false)), EROFS);
  EXPECT_TRUE(volume->Flush().ok());
  EXPECT_EQ(ReadBack(*volume, 0, 512), std::string(512, '\0'));
}

// The authority and the page table apply one rule to one map, so they agree on units within
// an extent, too.
TEST(Volume, TurnsStaleByUnitsAsItsAuthorityDoes) {
  VolumeFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
  // Of leg 1 units 3 to 9 of the first extent are stale already: their last copy is leg 0's.
  std::vector<MapRun> runs;
  for (const MapRun& run : f.authority.runs()) {
    const uint64_t cuts[] = {0, 3, 10, run.count};
    for (size_t i = 0; i + 1 < std::size(cuts); ++i) {
      MapRun part = run;
      part.first = run.first + cuts[i];
      part.unit = run.unit + cuts[i];
      part.count = cuts[i + 1] - cuts[i];
      part.stale = run.leg == 1 && run.first.value() == 0 && i == 1;
      runs.push_back(part);
    }
  }
  FakeAuthority authority(Normalize(runs));
  std::vector<std::unique_ptr<BlockDevice>> borrowed;
  for (auto& device : f.devices) borrowed.push_back(BorrowDevice(device.get()));
  auto volume =
      Volume::Open(f.geometry, authority.runs(), std::move(borrowed), &authority, nullptr, {})
          .value();
  f.devices[0]->AddFault({.kinds = {IoKind::kWrite}, .count = 1, .error = EIO});
  ASSERT_TRUE(volume->Write(kExtentBytes, Pattern(kSmallExtentBytes, 2), false).ok());
  EXPECT_EQ(authority.asked(), 1);
  const uint64_t begin = 3 * kSmallExtentBytes;
  const uint64_t end = 10 * kSmallExtentBytes;
  for (const MapRun& run : authority.runs()) {
    const bool sole = run.first.value() == 3 && run.count == 7;
    EXPECT_EQ(run.stale, (run.leg == 0) != sole) << run.leg << " " << run.first.value();
  }
  // New bytes go where the authority says that copies are in sync, and nowhere else.
  ASSERT_TRUE(volume->Write(0, Pattern(kExtentBytes, 3), false).ok());
  EXPECT_TRUE(ReadBack(*volume, 0, kExtentBytes) == Pattern(kExtentBytes, 3));
  for (uint32_t leg : {0, 1}) {
    std::string expected = Pattern(kExtentBytes, leg == 0 ? 1 : 3);
    expected.replace(begin, end - begin, Pattern(kExtentBytes, leg == 0 ? 3 : 1), begin,
                     end - begin);
    EXPECT_TRUE(f.LegBytes(leg, 0, kExtentBytes) == expected) << leg;
  }
  EXPECT_TRUE(volume->Flush().ok());
}

TEST(Volume, SpreadsReadsOverLegs) {
  VolumeFixture f(kMirror, 64 * kMiB);
  for (uint64_t i = 0; i < 64; ++i) ReadBack(*f.volume, i * kMiB, 4096);
  EXPECT_EQ(f.devices[0]->counters().submitted_of(IoKind::kRead), 32u);
  EXPECT_EQ(f.devices[1]->counters().submitted_of(IoKind::kRead), 32u);
}

TEST(Volume, ReadsFromAnotherLegWhenOneFails) {
  VolumeFixture f(kMirror3, kSize);
  const std::string all = Pattern(kSize, 1);
  ASSERT_TRUE(f.volume->Write(0, all, false).ok());
  f.devices[0]->Die();
  f.devices[2]->Die();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == all);
  // A read that failed says nothing about what was written.
  EXPECT_EQ(f.authority.asked(), 0);
  f.devices[1]->Die();
  std::string bytes(512, 'x');
  EXPECT_EQ(ErrnoOf(f.volume->Read(0, absl::MakeSpan(bytes))), EIO);
}

TEST(Volume, AnswersAWriteThatALegMissedOnlyOnceTheLegIsStale) {
  VolumeFixture f(kMirror, kSize);
  f.devices[0]->Die();
  f.authority.HoldUp(true);
  std::promise<void> written;
  const std::future<void> done = written.get_future();
  std::thread writer([&] {
    EXPECT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
    written.set_value();
  });
  f.authority.AwaitAsked();
  EXPECT_TRUE(StaysAway(done));
  f.authority.HoldUp(false);
  writer.join();
  // Back with its old bytes, the device must not be read, nor written.
  f.devices[0]->Revive();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == Pattern(kSize, 1));
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 2), false).ok());
  EXPECT_TRUE(f.LegBytes(0, 0, kSize) == std::string(kSize, '\0'));
  EXPECT_EQ(f.authority.asked(), 1);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == Pattern(kSize, 2));
}

TEST(Volume, HoldsReadsOfARangeThatAFailingWriteLeavesOpen) {
  VolumeFixture f(kMirror, kSize);
  f.devices[1]->Die();
  f.authority.HoldUp(true);
  std::thread writer([&] { EXPECT_TRUE(f.volume->Write(0, Pattern(4096, 1), false).ok()); });
  f.authority.AwaitAsked();
  std::promise<void> read;
  const std::future<void> read_done = read.get_future();
  std::thread reader([&] {
    EXPECT_TRUE(ReadBack(*f.volume, 0, 512) == Pattern(512, 1));
    read.set_value();
  });
  // Elsewhere life goes on.
  EXPECT_EQ(ReadBack(*f.volume, 8192, 512), std::string(512, '\0'));
  EXPECT_TRUE(StaysAway(read_done));
  f.authority.HoldUp(false);
  writer.join();
  reader.join();
}

TEST(Volume, NeverMakesTheLastCopyStale) {
  VolumeFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
  f.devices[0]->Die();
  f.devices[1]->AddFault({.kinds = {IoKind::kWrite}, .count = 1, .error = EIO});
  EXPECT_EQ(ErrnoOf(f.volume->Write(0, Pattern(512, 2), false)), EIO);
  uint64_t in_sync = 0;
  for (const MapRun& run : f.authority.runs()) {
    if (!run.stale) {
      in_sync += run.count;
      EXPECT_EQ(run.device, DeviceIndex(1));
    }
  }
  EXPECT_EQ(in_sync, f.geometry.rows() * kSmallPerExtent);
  // The client knows of the failed write; the rest is there, and writes go on.
  EXPECT_TRUE(ReadBack(*f.volume, 512, kSize - 512) == Pattern(kSize, 1).substr(512));
  EXPECT_TRUE(f.volume->Write(0, Pattern(512, 3), false).ok());
  EXPECT_TRUE(ReadBack(*f.volume, 0, 512) == Pattern(512, 3));
}

TEST(Volume, GoesOnWithOneLegOfEachColumn) {
  VolumeFixture f(kStripedMirrors, kSize);
  const std::string all = Pattern(kSize, 1);
  f.devices[0]->Die();
  f.devices[3]->Die();
  ASSERT_TRUE(f.volume->Write(0, all, true).ok());
  EXPECT_TRUE(f.volume->Flush().ok());
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == all);
  EXPECT_TRUE(f.authority.faults().empty());
}

TEST(Volume, TakesALegWhoseFlushFailedAsStale) {
  VolumeFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
  f.devices[1]->AddFault({.kinds = {IoKind::kFlush}, .count = 1});
  EXPECT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.authority.asked(), 1);
  const uint64_t flushes = f.devices[1]->counters().submitted_of(IoKind::kFlush);
  EXPECT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.devices[1]->counters().submitted_of(IoKind::kFlush), flushes) << "tried again";
}

TEST(Volume, FailsLoudlyAndForGoodWhenAnOnlyCopyCannotBeFlushed) {
  for (const Shape& shape : {kLinear, kMirror}) {
    for (bool by_fua : {false, true}) {
      VolumeFixture f(shape, kSize);
      ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
      for (auto& device : f.devices) {
        device->AddFault(
            {.kinds = {by_fua ? IoKind::kWrite : IoKind::kFlush}, .count = 1, .error = EIO});
      }
      const absl::Status s = by_fua ? f.volume->Write(0, Pattern(512, 2), true) : f.volume->Flush();
      EXPECT_EQ(ErrnoOf(s), EIO) << shape.name;
      ASSERT_EQ(f.authority.faults().size(), 1u);
      EXPECT_NE(f.authority.faults()[0].find("only copy"), std::string::npos);
      // The device would say yes now; what it dropped is gone all the same.
      EXPECT_EQ(ErrnoOf(f.volume->Flush()), EIO);
      EXPECT_EQ(ErrnoOf(f.volume->Write(0, Pattern(512, 3), false)), EIO);
      EXPECT_TRUE(ReadBack(*f.volume, 512, 512) == Pattern(kSize, 1).substr(512, 512));
      EXPECT_EQ(f.authority.faults().size(), 1u) << "reported once";
    }
  }
}

TEST(Volume, StopsWhenStalenessCannotBeRecorded) {
  VolumeFixture f(kMirror, kSize);
  f.devices[0]->Die();
  f.authority.Refuse(absl::FailedPreconditionError("epoch 3 is over"));
  const absl::Status s = f.volume->Write(0, Pattern(512, 1), false);
  EXPECT_EQ(ErrnoOf(s), EIO);
  EXPECT_NE(s.message().find("epoch 3 is over"), absl::string_view::npos);
  f.devices[0]->Revive();
  std::string bytes(512, 'x');
  EXPECT_FALSE(f.volume->Read(0, absl::MakeSpan(bytes)).ok());
  EXPECT_FALSE(f.volume->Write(0, bytes, false).ok());
  EXPECT_FALSE(f.volume->Flush().ok()) << "a clean end would hide that the legs differ";
}

// The same volume, opened by the next holder once the authority listens again.
TEST(Volume, SettlesWhatItStoppedOver) {
  VolumeFixture f(kMirror, kSize);
  f.devices[0]->Die();
  f.authority.Refuse(absl::UnavailableError("no disk"));
  EXPECT_FALSE(f.volume->Write(0, Pattern(4096, 1), false).ok());
  f.devices[0]->Revive();
  f.authority.Refuse(absl::OkStatus());
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, 4096) == Pattern(4096, 1));
  EXPECT_TRUE(f.LegBytes(0, 0, 512) == std::string(512, '\0')) << "the leg in doubt was used";
  for (const MapRun& run : f.authority.runs()) EXPECT_EQ(run.stale, run.leg == 0);
}

TEST(Volume, MakesLegsEqualWhereTheHolderBeforeDiedWriting) {
  VolumeFixture f(kMirror3, kSize);
  const std::string all = Pattern(kSize, 1);
  ASSERT_TRUE(f.volume->Write(0, all, false).ok());
  // Two writes that reached one leg each, the second one in part, across an extent boundary.
  const uint64_t first = 8192, second = kExtentBytes - 2 * kMiB, length = 3 * kMiB;
  const auto reach = [&](uint32_t leg, uint64_t offset, const std::string& bytes) {
    ForEachPiece(f.geometry, offset, bytes.size(), [&](const Piece& piece) {
      const uint64_t extent = piece.place.offset / kExtentBytes;
      const uint64_t at = (f.geometry.extents_per_column() - extent) * kExtentBytes +
                          piece.place.offset % kExtentBytes;
      EXPECT_TRUE(
          f.devices[leg]
              ->Write(at, absl::MakeConstSpan(&bytes[piece.volume_offset - offset], piece.length))
              .ok());
      return true;
    });
  };
  reach(1, first, Pattern(4096, 2));
  AttachmentJournal::Write(f.journal.get(), first, 4096).Keep();
  reach(2, second, Pattern(length / 2, 3));
  AttachmentJournal::Write(f.journal.get(), second, length).Keep();
  ASSERT_FALSE(f.LegBytes(0, 0, kSize) == f.LegBytes(1, 0, kSize));
  f.Open();
  const std::string now = ReadBack(*f.volume, 0, kSize);
  for (uint32_t leg = 0; leg < 3; ++leg) EXPECT_TRUE(f.LegBytes(leg, 0, kSize) == now);
  EXPECT_TRUE(now.substr(0, first) == all.substr(0, first));
  EXPECT_TRUE(now.substr(second + length) == all.substr(second + length));
  EXPECT_EQ(f.authority.asked(), 0);
  EXPECT_FALSE(f.journal->past().has_value());
}

TEST(Volume, RefusesToSettleNotesThatCannotBeItsOwn) {
  VolumeFixture f(kMirror, kSize);
  AttachmentJournal::Past past{.writes = {{kSize - 512, 1024}}};
  EXPECT_EQ(f.volume->Settle(past).code(), absl::StatusCode::kDataLoss);
  past = {.doubted = {DeviceIndex(2)}};
  EXPECT_EQ(f.volume->Settle(past).code(), absl::StatusCode::kDataLoss);
}

TEST(Volume, BeginsDegradedWithoutADevice) {
  VolumeFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
  std::vector<std::unique_ptr<BlockDevice>> devices;
  devices.push_back(MakeMissingDevice("d0", f.devices[0]->traits().size_bytes));
  devices.push_back(BorrowDevice(f.devices[1].get()));
  auto volume =
      Volume::Open(f.geometry, f.authority.runs(), std::move(devices), &f.authority, nullptr, {})
          .value();
  EXPECT_TRUE(ReadBack(*volume, 0, kSize) == Pattern(kSize, 1));
  EXPECT_EQ(f.authority.asked(), 0);
  ASSERT_TRUE(volume->Write(0, Pattern(512, 2), false).ok());
  EXPECT_EQ(f.authority.asked(), 1);
}

TEST(Volume, FinishesTheSlowWayWhenALegCannotZeroFast) {
  VolumeFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kSize, 1), false).ok());
  f.devices[1]->AddFault({.kinds = {IoKind::kZero}, .count = 1, .error = EOPNOTSUPP});
  ASSERT_TRUE(f.volume->Zero(0, 64 * kKiB, {.only_fast = true}).ok());
  EXPECT_EQ(f.authority.asked(), 0);
  for (uint32_t leg = 0; leg < 2; ++leg) {
    EXPECT_EQ(f.LegBytes(leg, 0, 64 * kKiB), std::string(64 * kKiB, '\0'));
  }
}

TEST(Volume, HasAllLegsOfAWriteInFlightAtOnce) {
  VolumeFixture f(kMirror3, kSize, {.threads = 1});
  for (auto& device : f.devices) device->Pause();
  std::thread writer([&] { EXPECT_TRUE(f.volume->Write(0, Pattern(4096, 1), false).ok()); });
  for (auto& device : f.devices) device->AwaitPaused(1);
  for (auto& device : f.devices) device->Resume();
  writer.join();
}

// What a read returns every leg must have: should the leg it came from be lost right after,
// the others must not give an older answer.
TEST(Volume, ReturnsNothingOfAWriteThatSomeLegDoesNotHaveYet) {
  for (bool read_first : {false, true}) {
    VolumeFixture f(kMirror, kSize, {.threads = 1});
    for (auto& device : f.devices) device->Pause();
    std::promise<void> answered;
    const std::future<void> read_done = answered.get_future();
    const auto read = [&] {
      ReadBack(*f.volume, 0, 512);
      answered.set_value();
    };
    std::thread reader;
    if (read_first) {
      reader = std::thread(read);
      f.devices[0]->AwaitPaused(1);
    }
    std::thread writer([&] { EXPECT_TRUE(f.volume->Write(0, Pattern(512, 1), false).ok()); });
    f.devices[0]->AwaitPaused(read_first ? 2 : 1);
    f.devices[1]->AwaitPaused(1);
    f.devices[0]->Resume();
    if (!read_first) reader = std::thread(read);
    EXPECT_TRUE(StaysAway(read_done));
    f.devices[1]->Resume();
    writer.join();
    reader.join();
  }
}

TEST(Volume, LetsWritesThatDoNotOverlapRunTogetherAndOthersInTurn) {
  VolumeFixture f(kMirror, kSize, {.threads = 1});
  for (auto& device : f.devices) device->Pause();
  std::thread a([&] { EXPECT_TRUE(f.volume->Write(0, Pattern(4096, 1), false).ok()); });
  std::thread b([&] { EXPECT_TRUE(f.volume->Write(4096, Pattern(4096, 2), false).ok()); });
  for (auto& device : f.devices) device->AwaitPaused(2);
  std::thread c([&] { EXPECT_TRUE(f.volume->Write(2048, Pattern(4096, 3), false).ok()); });
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(f.devices[0]->counters().submitted_of(IoKind::kWrite), 2u);
  for (auto& device : f.devices) device->Resume();
  for (std::thread* t : {&a, &b, &c}) t->join();
  EXPECT_TRUE(ReadBack(*f.volume, 2048, 4096) == Pattern(4096, 3));
}

}  // namespace
}  // namespace braid
