// Do the faulty devices do what their fault models say, and nothing else?
#include <algorithm>
#include <cerrno>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/errno_status.h"
#include "lib/base/test_seed.h"
#include "lib/base/units.h"
#include "lib/blockdev/memory_device.h"
#include "lib/testing/borrowed_device.h"
#include "lib/testing/crash_device.h"
#include "lib/testing/faulty_device.h"

namespace braid {
namespace {

constexpr uint64_t kBytes = 64 * kKiB;

std::string ReadAll(BlockDevice& device) {
  std::string out(device.traits().size_bytes, '?');
  EXPECT_EQ(device.Read(0, absl::MakeSpan(out)), absl::OkStatus());
  return out;
}

int WriteSector(BlockDevice& device, uint64_t sector, char fill, bool fua = false) {
  std::string data(kSectorBytes, fill);
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  DeviceIo io{.kind = IoKind::kWrite,
              .fua = fua,
              .offset = sector * kSectorBytes,
              .length = kSectorBytes,
              .data = absl::MakeConstSpan(&part, 1)};
  IoGroup group(1);
  device.Submit(io, group);
  group.Wait();
  return io.error;
}

char SectorFill(BlockDevice& device, uint64_t sector) {
  std::string out(kSectorBytes, '?');
  EXPECT_EQ(device.Read(sector * kSectorBytes, absl::MakeSpan(out)), absl::OkStatus());
  EXPECT_EQ(out, std::string(kSectorBytes, out[0])) << "sector is a mix";
  return out[0];
}

class Faulty : public testing::Test {
 protected:
  std::unique_ptr<BlockDevice> memory_ = MakeMemoryDevice("memory", kBytes);
  FaultyDevice device_{BorrowDevice(memory_.get()), {}};
};

TEST_F(Faulty, WithoutFaultsPassesEverythingOn) {
  EXPECT_EQ(WriteSector(device_, 3, 'a'), 0);
  EXPECT_EQ(SectorFill(*memory_, 3), 'a');
  EXPECT_EQ(device_.Zero(3 * kSectorBytes, kSectorBytes, true), absl::OkStatus());
  EXPECT_EQ(SectorFill(device_, 3), '\0');
  EXPECT_EQ(device_.Flush(), absl::OkStatus());
  EXPECT_EQ(device_.counters().submitted_of(IoKind::kWrite), 1u);
  EXPECT_EQ(device_.counters().submitted_of(IoKind::kRead), 1u);
  EXPECT_EQ(device_.counters().failed_of(IoKind::kWrite), 0u);
}

TEST_F(Faulty, NthOfAKindInARangeFailsAndChangesNothing) {
  device_.AddFault({.kinds = {IoKind::kWrite},
                    .offset = 2 * kSectorBytes,
                    .length = kSectorBytes,
                    .skip = 1,
                    .count = 2,
                    .error = ENOSPC});
  EXPECT_EQ(WriteSector(device_, 2, 'a'), 0);
  EXPECT_EQ(WriteSector(device_, 1, 'a'), 0);
  EXPECT_EQ(WriteSector(device_, 3, 'a'), 0);
  EXPECT_EQ(WriteSector(device_, 2, 'b'), ENOSPC);
  EXPECT_EQ(SectorFill(device_, 2), 'a');
  EXPECT_EQ(WriteSector(device_, 2, 'c'), ENOSPC);
  EXPECT_EQ(WriteSector(device_, 2, 'd'), 0);
  EXPECT_EQ(SectorFill(device_, 2), 'd');
  EXPECT_EQ(device_.counters().failed_of(IoKind::kWrite), 2u);
}

TEST_F(Faulty, LostAnswerHasTakenEffectAndTornOneInPart) {
  device_.AddFault({.kinds = {IoKind::kWrite}, .effect = Fault::Effect::kAnswerLost});
  EXPECT_EQ(WriteSector(device_, 0, 'a'), EIO);
  EXPECT_EQ(SectorFill(device_, 0), 'a');
  device_.ClearFaults();
  device_.AddFault({.kinds = {IoKind::kWrite}, .effect = Fault::Effect::kTorn});
  EXPECT_EQ(ErrnoOf(device_.Write(100, std::string(kBytes - 200, 't'))), EIO);
  const std::string after = ReadAll(*memory_);
  uint64_t changed = 0;
  for (uint64_t sector = 1; sector + 1 < kBytes / kSectorBytes; ++sector) {
    const std::string bytes = after.substr(sector * kSectorBytes, kSectorBytes);
    ASSERT_TRUE(bytes == std::string(kSectorBytes, 't') ||
                bytes == std::string(kSectorBytes, '\0'));
    changed += bytes[0] == 't' ? 1 : 0;
  }
  EXPECT_GT(changed, 0u);
  EXPECT_LT(changed, kBytes / kSectorBytes - 2);
  EXPECT_EQ(after.substr(0, 100), std::string(100, 'a'));
}

TEST_F(Faulty, SameSeedMeetsTheSameFaults) {
  const uint64_t seed = TestSeed();
  auto failures = [&](uint64_t with) {
    FaultyDevice device(BorrowDevice(memory_.get()), {.seed = with});
    device.AddFault({.probability = 0.3});
    std::string history;
    for (int i = 0; i < 200; ++i) history += WriteSector(device, 0, 'x') == 0 ? '.' : 'E';
    return history;
  };
  const std::string history = failures(seed);
  EXPECT_EQ(failures(seed), history);
  EXPECT_NE(failures(seed + 1), history);
  const auto count = std::count(history.begin(), history.end(), 'E');
  EXPECT_GT(count, 20);
  EXPECT_LT(count, 120);
}

TEST_F(Faulty, DeadDeviceFailsEverythingAndComesBackWithOldBytes) {
  EXPECT_EQ(WriteSector(device_, 0, 'a'), 0);
  device_.Die(ENXIO);
  EXPECT_EQ(WriteSector(device_, 0, 'b'), ENXIO);
  EXPECT_EQ(ErrnoOf(device_.Flush()), ENXIO);
  EXPECT_FALSE(device_.Extents(0, 1, [](uint64_t, uint64_t, bool) { return true; }).ok());
  device_.Revive();
  EXPECT_EQ(SectorFill(device_, 0), 'a');
}

TEST(FaultyThreads, OverlappingRequestsInFlightReallyReorder) {
  const uint64_t seed = TestSeed();
  std::unique_ptr<BlockDevice> memory = MakeMemoryDevice("memory", kBytes);
  FaultyDevice device(BorrowDevice(memory.get()),
                      {.seed = seed, .threads = 2, .max_delay = absl::Microseconds(50)});
  std::set<char> winners;
  for (int round = 0; round < 100; ++round) {
    constexpr int kWrites = 8;
    std::string data[kWrites];
    iovec parts[kWrites];
    DeviceIo ios[kWrites];
    IoGroup group(kWrites);
    device.Pause();
    for (int i = 0; i < kWrites; ++i) {
      data[i] = std::string(kSectorBytes, static_cast<char>('a' + i));
      parts[i] = {.iov_base = data[i].data(), .iov_len = data[i].size()};
      ios[i] = {.kind = IoKind::kWrite,
                .length = kSectorBytes,
                .data = absl::MakeConstSpan(&parts[i], 1)};
      device.Submit(ios[i], group);
    }
    device.AwaitPaused(kWrites);
    device.Resume();
    group.Wait();
    for (const DeviceIo& io : ios) EXPECT_EQ(io.error, 0);
    winners.insert(SectorFill(*memory, 0));
  }
  EXPECT_GT(winners.size(), 2u);
}

TEST(Crash, KeepsTheFlushedAndAnyVersionSince) {
  const uint64_t seed = TestSeed();
  std::set<char> survivors;
  for (uint64_t round = 0; round < 200; ++round) {
    CrashDevice device("crash", kBytes);
    EXPECT_EQ(WriteSector(device, 0, 'a'), 0);
    EXPECT_EQ(WriteSector(device, 1, 'k'), 0);
    EXPECT_EQ(device.Flush(), absl::OkStatus());
    EXPECT_EQ(device.unflushed_sectors(), 0u);
    for (char version : {'b', 'c', 'd'}) EXPECT_EQ(WriteSector(device, 0, version), 0);
    EXPECT_EQ(SectorFill(device, 0), 'd');
    EXPECT_EQ(device.unflushed_sectors(), 1u);
    device.PowerCut(seed + round);
    survivors.insert(SectorFill(device, 0));
    EXPECT_EQ(SectorFill(device, 1), 'k');
    EXPECT_EQ(device.unflushed_sectors(), 0u);
  }
  EXPECT_EQ(survivors, (std::set<char>{'a', 'b', 'c', 'd'}));
}

TEST(Crash, FuaIsDurableWithoutAFlushAndZeroIsNot) {
  const uint64_t seed = TestSeed();
  std::set<char> zeroed;
  for (uint64_t round = 0; round < 50; ++round) {
    CrashDevice device("crash", kBytes);
    EXPECT_EQ(WriteSector(device, 0, 'a'), 0);
    EXPECT_EQ(WriteSector(device, 0, 'b', /*fua=*/true), 0);
    EXPECT_EQ(WriteSector(device, 1, 'c', /*fua=*/true), 0);
    EXPECT_EQ(device.Zero(kSectorBytes, kSectorBytes, true), absl::OkStatus());
    EXPECT_EQ(SectorFill(device, 1), '\0');
    device.PowerCut(seed + round);
    EXPECT_EQ(SectorFill(device, 0), 'b');
    zeroed.insert(SectorFill(device, 1));
  }
  EXPECT_EQ(zeroed, (std::set<char>{'\0', 'c'}));
}

TEST(Crash, SmallWritesKeepTheRestOfTheirSector) {
  CrashDevice device("crash", kBytes);
  EXPECT_EQ(device.Write(500, std::string(600, 's')), absl::OkStatus());
  std::string model(kBytes, '\0');
  model.replace(500, 600, 600, 's');
  EXPECT_EQ(ReadAll(device), model);
}

TEST(Crash, OnePowerSupplyCutsAllDevicesAtOneRequest) {
  const uint64_t seed = TestSeed();
  std::set<char> under_way;
  for (uint64_t round = 0; round < 50; ++round) {
    PowerSupply power;
    CrashDevice a("a", kBytes, &power);
    CrashDevice b("b", kBytes, &power);
    power.CutAtRequest(3);
    EXPECT_EQ(WriteSector(a, 0, 'a', true), 0);
    EXPECT_EQ(WriteSector(b, 0, 'a', true), 0);
    EXPECT_EQ(WriteSector(a, 1, 'a', true), 0);
    EXPECT_FALSE(power.on());
    EXPECT_EQ(WriteSector(b, 1, 'a', true), EIO);  // caught under way
    EXPECT_EQ(WriteSector(a, 2, 'a', true), EIO);
    EXPECT_EQ(ErrnoOf(b.Flush()), EIO);
    EXPECT_EQ(power.requests(), 6u);
    power.Restore(seed + round);
    EXPECT_TRUE(power.on());
    EXPECT_EQ(SectorFill(a, 0), 'a');
    EXPECT_EQ(SectorFill(b, 0), 'a');
    EXPECT_EQ(SectorFill(a, 1), 'a');
    under_way.insert(SectorFill(b, 1));
    EXPECT_EQ(SectorFill(a, 2), '\0');
  }
  EXPECT_EQ(under_way, (std::set<char>{'\0', 'a'}));
}

TEST(Crash, FlushCaughtByTheCutPromisesNothing) {
  const uint64_t seed = TestSeed();
  std::set<char> survivors;
  for (uint64_t round = 0; round < 50; ++round) {
    PowerSupply power;
    CrashDevice device("crash", kBytes, &power);
    EXPECT_EQ(WriteSector(device, 0, 'a'), 0);
    power.CutAtRequest(1);
    EXPECT_EQ(ErrnoOf(device.Flush()), EIO);
    power.Restore(seed + round);
    survivors.insert(SectorFill(device, 0));
  }
  EXPECT_EQ(survivors, (std::set<char>{'\0', 'a'}));
}

TEST(Crash, ErraticTrimReadsAsZerosOrAsBeforeBySector) {
  CrashDevice device("crash", kBytes, nullptr, {.erratic_trim = true, .seed = 5});
  ASSERT_EQ(device.Write(0, std::string(kBytes, 'f')), absl::OkStatus());
  DeviceIo trim{.kind = IoKind::kTrim, .offset = 100, .length = kBytes - 200};
  IoGroup group(1);
  device.Submit(trim, group);
  group.Wait();
  std::set<char> seen;
  for (uint64_t sector = 0; sector < kBytes / kSectorBytes; ++sector) {
    seen.insert(SectorFill(device, sector));
  }
  EXPECT_EQ(seen, (std::set<char>{'\0', 'f'}));
  EXPECT_EQ(SectorFill(device, 0), 'f');
}

}  // namespace
}  // namespace braid
