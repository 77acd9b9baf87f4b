// What a thin volume does beyond a thick one: takes space at the first write, gives it back,
// waits for it, folds, and survives the death of its process at any moment.
#include <cerrno>
#include <chrono>
#include <future>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "lib/base/errno_status.h"
#include "lib/volume/thin_fixture.h"

namespace braid {
namespace {

constexpr uint64_t kUnit = kSmallExtentBytes;
constexpr uint64_t kSize = 6 * kExtentBytes + 5 * kSectorBytes;
constexpr Shape kLinear{"linear", 1, 1};
constexpr Shape kMirror{"mirrored2", 1, 2};

// No 512 bytes of it are zeros.
std::string Pattern(uint64_t length, uint64_t salt) {
  std::string bytes(length, '\0');
  for (uint64_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<char>(1 + (i * 131 + (i >> 9) * 17 + salt * 71) % 251);
  }
  return bytes;
}

std::string ReadBack(Volume& volume, uint64_t offset, uint64_t length) {
  std::string bytes(length, 'x');
  absl::Status s = volume.Read(offset, absl::MakeSpan(bytes));
  EXPECT_TRUE(s.ok()) << s;
  return bytes;
}

template <class T>
bool StaysAway(const std::future<T>& event) {
  return event.wait_for(std::chrono::milliseconds(30)) == std::future_status::timeout;
}

// Waits for what a thread of the volume's does, at most for a while.
template <class Fn>
bool Eventually(Fn&& holds) {
  for (int i = 0; i < 5000; ++i) {
    if (holds()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

std::future<absl::Status> WriteAsync(Volume& volume, uint64_t offset, std::string data) {
  return std::async(std::launch::async, [&volume, offset, data = std::move(data)] {
    return volume.Write(offset, data, false);
  });
}

class ThinVolumeOfEachShape : public testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, ThinVolumeOfEachShape, testing::ValuesIn(kShapes),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST_P(ThinVolumeOfEachShape, GivesBackWhatWasWrittenAndZerosElsewhere) {
  ThinFixture f(GetParam(), kSize);
  std::string expected(kSize, '\0');
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  uint64_t salt = 0;
  for (const auto& [offset, length] : {std::pair<uint64_t, uint64_t>{kExtentBytes - 5000, 10000},
                                       {3 * kExtentBytes + kUnit - 512, 512},
                                       {kSize - 700, 700},
                                       {0, 512},
                                       {kExtentBytes / 2, 2 * kExtentBytes}}) {
    const std::string data = Pattern(length, ++salt);
    ASSERT_TRUE(f.volume->Write(offset, data, salt % 2 == 0).ok());
    expected.replace(offset, length, data);
    EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  }
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->CompareLegs(), "");
  EXPECT_LT(f.site->bound_units() * kUnit, 4 * kExtentBytes);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  ASSERT_TRUE(f.volume->Finish().ok());
  EXPECT_EQ(f.site->granted_units(), 0u);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
}

TEST_P(ThinVolumeOfEachShape, GivesBackTheSpaceOfWhatIsTrimmedAndZeroesTheRest) {
  ThinFixture f(GetParam(), kSize);
  std::string expected = Pattern(kSize, 3);
  ASSERT_TRUE(f.volume->Write(0, expected, false).ok());
  const uint64_t mapped = f.volume->MappedBytes(0, kSize);
  const auto zero = [&](uint64_t offset, uint64_t length) {
    expected.replace(offset, length, length, '\0');
  };
  ASSERT_TRUE(f.volume->Trim(5 * kSectorBytes, kExtentBytes, false).ok());
  zero(5 * kSectorBytes, kExtentBytes);
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  EXPECT_LT(f.volume->MappedBytes(0, kSize), mapped - kExtentBytes / 2);
  // Zeroes keep their space unless they may trim.
  const uint64_t left = f.volume->MappedBytes(0, kSize);
  ASSERT_TRUE(f.volume->Zero(2 * kExtentBytes, kExtentBytes, {}).ok());
  zero(2 * kExtentBytes, kExtentBytes);
  EXPECT_EQ(f.volume->MappedBytes(0, kSize), left);
  ASSERT_TRUE(
      f.volume->Zero(3 * kExtentBytes - 512, kExtentBytes, {.fua = true, .may_trim = true}).ok());
  zero(3 * kExtentBytes - 512, kExtentBytes);
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  EXPECT_LT(f.volume->MappedBytes(0, kSize), left - kExtentBytes / 2);
  // The last unit, which the volume ends in, too.
  ASSERT_TRUE(f.volume->Trim(4 * kExtentBytes, kSize - 4 * kExtentBytes, true).ok());
  zero(4 * kExtentBytes, kSize - 4 * kExtentBytes);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  ASSERT_TRUE(f.volume->Trim(0, kSize, true).ok());
  EXPECT_EQ(f.site->bound_units(), 0u);
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == std::string(kSize, '\0'));
}

TEST_P(ThinVolumeOfEachShape, TakesNoSpaceForZeros) {
  ThinFixture f(GetParam(), kSize);
  ASSERT_TRUE(f.volume->Write(uint64_t{1000} * 512, std::string(kExtentBytes, '\0'), true).ok());
  ASSERT_TRUE(f.volume->Zero(0, kSize, {}).ok());
  ASSERT_TRUE(f.volume->Zero(512, kSize - 512, {.fua = true, .may_trim = true}).ok());
  EXPECT_EQ(f.site->bound_units(), 0u);
  // One byte that is not zero takes one unit of each leg.
  std::string data(kExtentBytes, '\0');
  data[kExtentBytes / 2] = 'x';
  ASSERT_TRUE(f.volume->Write(kExtentBytes, data, true).ok());
  EXPECT_EQ(f.site->bound_units(), 1u);
  EXPECT_TRUE(ReadBack(*f.volume, kExtentBytes, kExtentBytes) == data);
  // Zeros over what has space are written.
  data[kExtentBytes / 2] = '\0';
  ASSERT_TRUE(f.volume->Write(kExtentBytes, data, true).ok());
  EXPECT_TRUE(ReadBack(*f.volume, kExtentBytes, kExtentBytes) == data);
}

TEST_P(ThinVolumeOfEachShape, AddsUpTrimsOfPartsOfAUnit) {
  ThinFixture f(GetParam(), kSize);
  // As long as it takes for units in every column.
  const uint64_t length = kUnit * GetParam().columns;
  ASSERT_TRUE(f.volume->Write(0, Pattern(2 * length, 1), true).ok());
  const uint64_t before = f.site->bound_units();
  for (uint64_t at = 4096; at < length; at += 4096) {
    ASSERT_TRUE(f.volume->Trim(at * 5 % length, 4096, false).ok());
  }
  // The first 4 KiB are left.
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->bound_units(), before - (GetParam().columns - 1));
  EXPECT_TRUE(ReadBack(*f.volume, 0, 4096) == Pattern(4096, 1));
  ASSERT_TRUE(f.volume->Trim(0, 4096, true).ok());
  EXPECT_EQ(f.site->bound_units(), before - GetParam().columns);
  EXPECT_TRUE(ReadBack(*f.volume, length, length) == Pattern(2 * length, 1).substr(length));
  EXPECT_TRUE(ReadBack(*f.volume, 0, length) == std::string(length, '\0'));
}

TEST_P(ThinVolumeOfEachShape, TellsUnitsWithoutSpaceAsHoles) {
  ThinFixture f(GetParam(), kSize);
  ASSERT_TRUE(f.volume->Write(2 * kExtentBytes, Pattern(512, 1), false).ok());
  uint64_t at = 0;
  uint64_t data = 0;
  int calls = 0;
  ASSERT_TRUE(f.volume
                  ->Extents(0, kSize,
                            [&](uint64_t offset, uint64_t length, bool hole) {
                              EXPECT_EQ(offset, at);
                              at += length;
                              ++calls;
                              if (hole) {
                                EXPECT_FALSE(offset <= 2 * kExtentBytes && 2 * kExtentBytes < at);
                              } else {
                                data += length;
                              }
                              return true;
                            })
                  .ok());
  EXPECT_EQ(at, kSize);
  EXPECT_LE(data, kUnit);
  EXPECT_LE(calls, 9);
  ASSERT_TRUE(f.volume->Cache(0, kSize).ok());
}

TEST_P(ThinVolumeOfEachShape, TakesOverFromAHolderThatDiedWithChangesUncommitted) {
  ThinFixture f(GetParam(), kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(3 * kExtentBytes, 1), true).ok());
  std::string expected(kSize, '\0');
  expected.replace(0, 3 * kExtentBytes, Pattern(3 * kExtentBytes, 1));
  f.site->HoldUp(true);
  const uint64_t applied = f.site->applied();
  for (uint64_t i = 0; i < 20; ++i) {
    const uint64_t offset = (i * 37 % 96) * kUnit + 512;
    if (i % 3 == 0) {
      const uint64_t length = 3 * kUnit * GetParam().columns;
      ASSERT_TRUE(f.volume->Trim(offset, length, false).ok());
      expected.replace(offset, length, length, '\0');
    } else {
      // As much as the reservation holds: nobody can be asked for more.
      ASSERT_TRUE(f.volume->Write(offset, Pattern(4096, i), false).ok());
      expected.replace(offset, 4096, Pattern(4096, i));
    }
  }
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  f.Kill();
  EXPECT_EQ(f.site->applied(), applied);
  f.site->HoldUp(false);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_GT(f.site->applied(), applied);
  f.Open();
  EXPECT_TRUE(ReadBack(*f.volume, 0, kSize) == expected);
  EXPECT_EQ(f.site->CheckGrantsZero(), "");
}

// --------------------------------------------------------------- what it takes, and when

TEST(ThinVolume, TakesASmallExtentForAScatteredWriteAndALargeOneForNeighbours) {
  ThinFixture f(kLinear, 16 * kExtentBytes);
  for (uint64_t i = 0; i < 16; i += 3) {
    ASSERT_TRUE(f.volume->Write(i * kExtentBytes + kExtentBytes / 2, Pattern(4096, i), true).ok());
  }
  EXPECT_EQ(f.site->bound_units(), 6u);
  // Three quarters of a row are as good as all of it; less is not.
  ASSERT_TRUE(f.volume->Write(kExtentBytes, Pattern(3 * kExtentBytes / 4, 1), true).ok());
  EXPECT_EQ(f.site->bound_units(), 6u + 64);
  ASSERT_TRUE(f.volume->Write(4 * kExtentBytes + kUnit, Pattern(kExtentBytes / 2, 1), true).ok());
  EXPECT_EQ(f.site->bound_units(), 6u + 64 + 32);
  // Where mapped space ends a small write goes on in a large extent.
  ASSERT_TRUE(f.volume->Write(2 * kExtentBytes, Pattern(4096, 1), true).ok());
  EXPECT_EQ(f.site->bound_units(), 6u + 64 + 32 + 64);
}

TEST(ThinVolume, NotesABindingBeforeItsFirstByte) {
  ThinFixture f(kMirror, kSize, {.device = {.threads = 1}});
  ASSERT_TRUE(f.volume->Write(0, Pattern(512, 1), true).ok());
  f.site->HoldUp(true);
  for (auto& device : f.devices) device->Pause();
  auto written = WriteAsync(*f.volume, kExtentBytes, Pattern(512, 2));
  for (auto& device : f.devices) device->AwaitPaused(1);
  // What the next holder would find, should this one die now.
  const auto look = AttachmentJournal::Open(f.journal_file.get(), f.boot, true).value();
  for (auto& device : f.devices) device->Resume();
  EXPECT_TRUE(written.get().ok());
  ASSERT_TRUE(look->past().has_value());
  const auto changes = look->past()->ChangesAfter(f.site->applied()).value();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].kind, MapChange::Kind::kBind);
  EXPECT_EQ(changes[0].first, FirstUnit(ExtentIndex(1)));
  f.site->HoldUp(false);
}

TEST(ThinVolume, MakesOnlyFlushAndFuaWaitForTheControlPlane) {
  ThinFixture f(kLinear, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(512, 1), true).ok());
  f.site->HoldUp(true);
  ASSERT_TRUE(f.volume->Write(kExtentBytes, Pattern(512, 2), false).ok());
  auto fua = std::async(std::launch::async,
                        [&] { return f.volume->Write(2 * kExtentBytes, Pattern(512, 3), true); });
  auto flush = std::async(std::launch::async, [&] { return f.volume->Flush(); });
  EXPECT_TRUE(StaysAway(fua));
  EXPECT_TRUE(StaysAway(flush));
  ASSERT_TRUE(f.volume->Write(3 * kExtentBytes, Pattern(512, 4), false).ok());
  EXPECT_TRUE(ReadBack(*f.volume, 3 * kExtentBytes, 512) == Pattern(512, 4));
  f.site->HoldUp(false);
  EXPECT_TRUE(fua.get().ok());
  EXPECT_TRUE(flush.get().ok());
  EXPECT_GE(f.site->applied(), 3u);
}

TEST(ThinVolume, DrainsRequestsBeforeFreedUnitsAreAnothers) {
  ThinFixture f(kLinear, kSize, {.device = {.threads = 1}});
  ASSERT_TRUE(f.volume->Write(0, Pattern(kUnit, 1), true).ok());
  f.devices[0]->Pause();
  auto read = std::async(std::launch::async, [&] { return ReadBack(*f.volume, 0, kUnit); });
  f.devices[0]->AwaitPaused(1);
  ASSERT_TRUE(f.volume->Trim(0, kUnit, false).ok());
  absl::SleepFor(absl::Milliseconds(30));
  EXPECT_EQ(f.site->bound_units(), 1u) << "freed under a read";
  f.devices[0]->Resume();
  EXPECT_TRUE(read.get() == Pattern(kUnit, 1));
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->bound_units(), 0u);
}

// ------------------------------------------------------------------------ running full

TEST(ThinVolume, FailsWithNoSpaceBeforeAnythingIsWritten) {
  ThinFixture f(kMirror, 64 * kExtentBytes, {.units = 100, .when_full = WhenFull::kFail});
  ASSERT_TRUE(f.volume->Write(0, Pattern(90 * kUnit, 1), true).ok());
  // Of this the first half has space, and all of it does not.
  const absl::Status s = f.volume->Write(80 * kUnit, Pattern(30 * kUnit, 2), false);
  EXPECT_EQ(ErrnoOf(s), ENOSPC) << s;
  std::string expected(120 * kUnit, '\0');
  expected.replace(0, 90 * kUnit, Pattern(90 * kUnit, 1));
  EXPECT_TRUE(ReadBack(*f.volume, 0, 120 * kUnit) == expected);
  // Overwrites, zeros, and what still fits go on.
  EXPECT_TRUE(f.volume->Write(70 * kUnit, Pattern(20 * kUnit, 3), true).ok());
  EXPECT_TRUE(f.volume->Write(200 * kUnit, std::string(kUnit, '\0'), true).ok());
  EXPECT_TRUE(f.volume->Write(300 * kUnit, Pattern(5 * kUnit, 4), true).ok());
  EXPECT_EQ(ErrnoOf(f.volume->Write(400 * kUnit, Pattern(6 * kUnit, 5), false)), ENOSPC);
  // Trimmed space serves the next who asks, once it has been asked for.
  ASSERT_TRUE(f.volume->Trim(0, 10 * kUnit, true).ok());
  EXPECT_TRUE(
      Eventually([&] { return f.volume->Write(400 * kUnit, Pattern(6 * kUnit, 5), false).ok(); }));
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->CompareLegs(), "");
}

TEST(ThinVolume, HoldsWritesOfAFullPoolAndNothingElse) {
  for (const Shape& shape : {kLinear, kMirror}) {
    ThinFixture f(shape, 512 * kExtentBytes, {.units = 64});
    const std::string first = Pattern(40 * kUnit, 1);
    ASSERT_TRUE(f.volume->Write(0, first, true).ok());
    // Two units each.
    constexpr uint64_t kHeld = 128;
    std::vector<std::future<absl::Status>> held;
    for (uint64_t i = 0; i < kHeld; ++i) {
      held.push_back(WriteAsync(*f.volume, (i + 1) * kExtentBytes + kUnit, Pattern(2 * kUnit, i)));
    }
    // Some of them fit.
    const auto done = [&] {
      return std::count_if(held.begin(), held.end(), [](auto& h) {
        return h.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
      });
    };
    EXPECT_TRUE(Eventually([&] { return done() == 12; }));
    EXPECT_TRUE(ReadBack(*f.volume, 0, first.size()) == first);
    EXPECT_TRUE(f.volume->Write(0, Pattern(kUnit, 7), true).ok());
    EXPECT_TRUE(f.volume->Write(400 * kExtentBytes, std::string(kUnit, '\0'), true).ok());
    EXPECT_TRUE(f.volume->Flush().ok());
    EXPECT_EQ(done(), 12);
    const absl::Time began = absl::Now();
    ASSERT_TRUE(f.volume->Trim(kUnit, 30 * kUnit, false).ok());
    EXPECT_TRUE(Eventually([&] { return done() == 27; }));
    EXPECT_LT(absl::Now() - began, absl::Seconds(1));
    f.site->Extend(2 * kHeld);
    for (auto& h : held) EXPECT_TRUE(h.get().ok());
    EXPECT_LT(absl::Now() - began, absl::Seconds(2));
    for (uint64_t i = 0; i < kHeld; ++i) {
      EXPECT_TRUE(ReadBack(*f.volume, (i + 1) * kExtentBytes, 4 * kUnit) ==
                  std::string(kUnit, '\0') + Pattern(2 * kUnit, i) + std::string(kUnit, '\0'));
    }
    ASSERT_TRUE(f.volume->Flush().ok());
    EXPECT_EQ(f.site->CompareLegs(), "");
  }
}

TEST(ThinVolume, FailsAHeldWriteWhenItsTimeIsOver) {
  ThinFixture f(kLinear, kSize, {.units = 8, .full_timeout = absl::Milliseconds(50)});
  const absl::Time began = absl::Now();
  EXPECT_EQ(ErrnoOf(f.volume->Write(0, Pattern(9 * kUnit, 1), false)), ENOSPC);
  EXPECT_GE(absl::Now() - began, absl::Milliseconds(50));
  EXPECT_TRUE(f.volume->Write(0, Pattern(8 * kUnit, 1), true).ok());
}

TEST(ThinVolume, WaitsForAControlPlaneThatIsAwayWhateverItDoesWhenFull) {
  ThinFixture f(kLinear, kSize, {.when_full = WhenFull::kFail});
  f.Kill();
  f.site->SetUnreachable(true);
  f.site->Crash([](uint64_t) { return 0; });  // so that nothing is in reserve
  f.LosePower();
  f.Open();
  auto written = WriteAsync(*f.volume, 0, Pattern(512, 1));
  EXPECT_TRUE(StaysAway(written));
  f.site->SetUnreachable(false);
  EXPECT_TRUE(written.get().ok());
}

TEST(ThinVolume, EndsWhatWaitsForSpaceAtAShutdown) {
  ThinFixture f(kLinear, kSize, {.units = 0});
  auto written = WriteAsync(*f.volume, 0, Pattern(512, 1));
  EXPECT_TRUE(StaysAway(written));
  f.volume->EndWaits();
  EXPECT_EQ(ErrnoOf(written.get()), ESHUTDOWN);
  EXPECT_EQ(ErrnoOf(f.volume->Write(0, Pattern(512, 1), false)), ESHUTDOWN);
  EXPECT_TRUE(f.volume->Flush().ok());
}

TEST(ThinVolume, GivesUpAWriteWhoseClientIsGoneBeforeItTakesSpace) {
  ThinFixture f(kLinear, kSize, {.units = 0});
  std::atomic<bool> there{true};
  f.wanted = [&] { return there.load(); };
  f.Open();
  auto written = WriteAsync(*f.volume, 0, Pattern(512, 1));
  EXPECT_TRUE(StaysAway(written));
  there = false;
  f.site->Extend(64);
  EXPECT_EQ(ErrnoOf(written.get()), ESHUTDOWN);
  EXPECT_EQ(ReadBack(*f.volume, 0, 512), std::string(512, '\0'));
  EXPECT_EQ(f.volume->MappedBytes(0, kSize), 0u);
}

// ----------------------------------------------------------------------- fold, release

TEST(ThinVolume, FoldsARowThatFilledUpInPieces) {
  for (const Shape& shape : {kLinear, Shape{"", 2, 2}}) {
    ThinFixture f(shape, kSize);
    const uint64_t row = kExtentBytes * shape.columns;
    std::string expected(row, '\0');
    std::atomic<bool> reading{true};
    std::string now(row, 'x');
    for (uint64_t i = 0; i < row / kUnit; ++i) {
      const uint64_t at = (i * 27 % (row / kUnit)) * kUnit;
      ASSERT_TRUE(f.volume->Write(at, Pattern(kUnit, i), false).ok());
      expected.replace(at, kUnit, Pattern(kUnit, i));
    }
    std::thread reader([&] {
      while (reading) EXPECT_TRUE(ReadBack(*f.volume, 0, row) == expected);
    });
    EXPECT_TRUE(Eventually([&] {
      EXPECT_TRUE(f.volume->Flush().ok());
      return f.site->moves() == shape.columns;
    }));
    reading = false;
    reader.join();
    // One run for each leg of the columns.
    EXPECT_EQ(f.site->runs().size(), uint64_t{shape.columns} * shape.legs);
    EXPECT_EQ(f.site->CompareLegs(), "");
    EXPECT_EQ(f.site->CheckGrantsZero(), "");
    ASSERT_TRUE(f.volume->Write(512, Pattern(512, 99), false).ok());
    expected.replace(512, 512, Pattern(512, 99));
    f.Open();
    EXPECT_TRUE(ReadBack(*f.volume, 0, row) == expected);
  }
}

TEST(ThinVolume, LeavesEverythingAsItWasWhenAFoldFails) {
  // Without whole rows in the reservation there is no fold.
  ThinFixture f(kMirror, kSize, {.longest_piece = 16});
  std::string expected(kExtentBytes, '\0');
  for (uint64_t i = 0; i < 64; ++i) {
    const uint64_t at = (i * 27 % 64) * kUnit;
    ASSERT_TRUE(f.volume->Write(at, Pattern(kUnit, i), false).ok());
    expected.replace(at, kUnit, Pattern(kUnit, i));
  }
  ASSERT_TRUE(f.volume->Finish().ok());
  for (auto& device : f.devices) {
    device->AddFault(
        {.kinds = {IoKind::kWrite}, .count = 1, .error = ENOSPC, .effect = Fault::Effect::kTorn});
  }
  f.site->SetLongestPiece(1024);
  f.Open();
  EXPECT_TRUE(Eventually([&] {
    return f.devices[0]->counters().failed_of(IoKind::kWrite) == 1 &&
           f.devices[1]->counters().failed_of(IoKind::kWrite) == 1;
  }));
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_TRUE(ReadBack(*f.volume, 0, kExtentBytes) == expected);
  // Checks, as it takes the space back, that it is zero again.
  ASSERT_TRUE(f.volume->Finish().ok());
  EXPECT_EQ(f.site->granted_units(), 0u);
  EXPECT_EQ(f.site->moves(), 0u);
  for (const MapRun& run : f.site->runs()) EXPECT_FALSE(run.stale);
}

TEST(ThinVolume, KeepsWhatWasFlushedBeforeAFoldWhenPowerIsLostAfterIt) {
  for (uint64_t seed : {1, 2}) {
    PowerSupply power;
    ThinFixture f(kMirror, kSize, {.units = 384, .power = &power, .longest_piece = 16});
    f.site->SetPower([&] { return power.on(); });
    std::string expected(kExtentBytes, '\0');
    for (uint64_t i = 0; i < 64; ++i) {
      const uint64_t at = (i * 27 % 64) * kUnit;
      ASSERT_TRUE(f.volume->Write(at, Pattern(kUnit, i), false).ok());
      expected.replace(at, kUnit, Pattern(kUnit, i));
    }
    ASSERT_TRUE(f.volume->Finish().ok());
    // Now there are rows to fold to. Nobody flushes any more.
    f.site->SetLongestPiece(1024);
    f.Open();
    EXPECT_TRUE(Eventually([&] { return f.site->moves() == 1; }));
    power.CutNow();
    f.Kill();
    power.Restore(seed);
    f.site->Crash([&](uint64_t n) { return seed % n; });
    f.LosePower();
    f.Open();
    EXPECT_TRUE(ReadBack(*f.volume, 0, kExtentBytes) == expected);
  }
}

TEST(ThinVolume, MakesTheTargetOfAFoldThatDiedZeroAgain) {
  ThinFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(512, 1), true).ok());
  const auto grants = f.site->grants();
  const auto row =
      std::find_if(grants.begin(), grants.end(), [](const Grant& g) { return g.count > 64; });
  ASSERT_NE(row, grants.end());
  Grant target{.count = 64, .legs = row->legs};
  for (UnitPlace& leg : target.legs) leg.unit = leg.unit + (row->count - 64);
  f.journal->NoteScratch(target);
  for (const UnitPlace& leg : target.legs) {
    ASSERT_TRUE(f.devices[leg.device.value()]
                    ->Write(leg.unit.value() * kUnit, Pattern(10 * kUnit, 5))
                    .ok());
  }
  ASSERT_NE(f.site->CheckGrantsZero(), "");
  f.Open();
  EXPECT_EQ(f.site->CheckGrantsZero(), "");
  ASSERT_TRUE(f.volume->Finish().ok());
  EXPECT_EQ(f.site->granted_units(), 0u);
}

TEST(ThinVolume, ReleasesARangeOnlyIfItIsStillFree) {
  ThinFixture f(kMirror, kSize, {.device = {.threads = 1}});
  const std::string all = Pattern(2 * kExtentBytes, 1);
  ASSERT_TRUE(f.volume->Write(0, all, true).ok());
  EXPECT_EQ(f.volume->MappedBytes(512, kExtentBytes), kExtentBytes - kUnit);
  EXPECT_EQ(f.volume->ReleaseIf(0, kExtentBytes, [] { return false; }).value(), 0u);
  EXPECT_TRUE(ReadBack(*f.volume, 0, 2 * kExtentBytes) == all);
  // A write under way is waited for before the question is asked.
  for (auto& device : f.devices) device->Pause();
  auto written = WriteAsync(*f.volume, kUnit, Pattern(512, 2));
  for (auto& device : f.devices) device->AwaitPaused(1);
  std::atomic<bool> asked{false};
  auto released = std::async(std::launch::async, [&] {
    return f.volume->ReleaseIf(512, kExtentBytes, [&] {
      asked = true;
      return true;
    });
  });
  EXPECT_TRUE(StaysAway(released));
  EXPECT_FALSE(asked);
  for (auto& device : f.devices) device->Resume();
  EXPECT_TRUE(written.get().ok());
  EXPECT_EQ(released.get().value(), kExtentBytes - kUnit);
  EXPECT_TRUE(ReadBack(*f.volume, kUnit, kExtentBytes - kUnit) ==
              std::string(kExtentBytes - kUnit, '\0'));
  EXPECT_TRUE(ReadBack(*f.volume, 0, kUnit) == all.substr(0, kUnit));
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->bound_units(), 65u);
}

// ---------------------------------------------------------------------------- failures

TEST(ThinVolume, BindsAsStaleOnADeviceThatFailed) {
  ThinFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(kUnit, 1), true).ok());
  f.site->HoldUp(true);
  // Bound and not committed as the device fails.
  ASSERT_TRUE(f.volume->Write(kExtentBytes, Pattern(kUnit, 2), false).ok());
  f.devices[1]->Die();
  auto written = WriteAsync(*f.volume, 0, Pattern(kUnit, 3));
  EXPECT_TRUE(StaysAway(written));
  f.site->HoldUp(false);
  EXPECT_TRUE(written.get().ok());
  ASSERT_TRUE(f.volume->Write(2 * kExtentBytes, Pattern(kUnit, 4), true).ok());
  f.devices[1]->Revive();
  for (const MapRun& run : f.site->runs()) {
    EXPECT_EQ(run.stale, f.site->OpenDevices()[run.device.value()]->name() == "d1");
  }
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(ReadBack(*f.volume, 0, kUnit) == Pattern(kUnit, 3));
    EXPECT_TRUE(ReadBack(*f.volume, kExtentBytes, kUnit) == Pattern(kUnit, 2));
    EXPECT_TRUE(ReadBack(*f.volume, 2 * kExtentBytes, kUnit) == Pattern(kUnit, 4));
    f.Open();
  }
}

TEST(ThinVolume, RetiresADeviceWhileAnUnbindWaitsForRequests) {
  // The unbind waits for the failing write, which waits for the authority, which must not
  // wait for the unbind.
  ThinFixture f(kMirror, kSize, {.device = {.threads = 1}});
  ASSERT_TRUE(f.volume->Write(0, Pattern(2 * kExtentBytes, 1), true).ok());
  for (auto& device : f.devices) device->Pause();
  auto written = WriteAsync(*f.volume, 0, Pattern(kUnit, 2));
  for (auto& device : f.devices) device->AwaitPaused(1);
  ASSERT_TRUE(f.volume->Trim(kExtentBytes, kExtentBytes, false).ok());
  f.devices[0]->Die();
  for (auto& device : f.devices) device->Resume();
  EXPECT_TRUE(written.get().ok());
  EXPECT_TRUE(ReadBack(*f.volume, 0, kUnit) == Pattern(kUnit, 2));
  ASSERT_TRUE(f.volume->Flush().ok());
  EXPECT_EQ(f.site->bound_units(), 64u);
}

TEST(ThinVolume, RefusesAMapWhoseLegsDoNotGoTogether) {
  ThinFixture f(kMirror, kSize);
  ASSERT_TRUE(f.volume->Write(0, Pattern(512, 1), true).ok());
  std::vector<MapRun> runs = f.site->runs();
  runs.pop_back();
  const auto opened = Volume::Open(f.geometry, runs, f.site->OpenDevices(), f.site.get(), nullptr,
                                   {.read_only = true, .thin = true});
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  // And reads one that is whole without a journal.
  auto reader = Volume::Open(f.geometry, f.site->runs(), f.site->OpenDevices(), f.site.get(),
                             nullptr, {.read_only = true, .thin = true})
                    .value();
  EXPECT_TRUE(ReadBack(*reader, 0, 512) == Pattern(512, 1));
  EXPECT_EQ(ReadBack(*reader, kExtentBytes, 512), std::string(512, '\0'));
  EXPECT_EQ(ErrnoOf(reader->Write(0, Pattern(512, 1), false)), EROFS);
  EXPECT_EQ(reader->ReleaseIf(0, kUnit, [] { return true; }).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST(ThinVolume, KeepsFillingItsReservationAheadOfAWriter) {
  ThinFixture f(kLinear, 200 * kExtentBytes, {.units = 8192});
  ASSERT_TRUE(f.volume->Write(0, Pattern(3 * kExtentBytes / 4, 1), false).ok());
  // Each takes a row.
  for (uint64_t i = 1; i < 60; ++i) {
    ASSERT_TRUE(f.volume->Write(i * kExtentBytes, Pattern(4096, i), false).ok());
  }
  // About as much as that took within two seconds.
  EXPECT_TRUE(Eventually([&] { return f.site->granted_units() >= uint64_t{16} * 64; }));
}

TEST(RecentCount, TellsTheHighestRateOfTwoSeconds) {
  const RecentCount::Clock::time_point start{std::chrono::hours(1)};
  const auto after = [start](int ms) { return start + std::chrono::milliseconds(ms); };
  RecentCount count;
  EXPECT_EQ(count.AtPeak(start), 0u);
  // Known by what he does in his first moment, eight quarters of a second of it.
  count.Add(5, after(0));
  EXPECT_EQ(count.AtPeak(after(1)), 40u);
  count.Add(1, after(260));
  EXPECT_EQ(count.AtPeak(after(1900)), 40u);
  EXPECT_EQ(count.AtPeak(after(2100)), 8u);
  EXPECT_EQ(count.AtPeak(after(5000)), 0u);
}

}  // namespace
}  // namespace braid
