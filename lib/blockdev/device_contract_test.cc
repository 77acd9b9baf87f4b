// What every BlockDevice promises, against each implementation, in place and with legs at
// once, with the thread's io_uring and without.
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"
#include "lib/blockdev/file_device.h"
#include "lib/blockdev/memory_device.h"
#include "lib/blockdev/test_files.h"
#include "lib/blockdev/thread_ring.h"

namespace braid {
namespace {

constexpr uint64_t kDeviceBytes = 16 * kMiB;

enum class Kind { kMemory, kFile, kFileWithoutRing, kTmpfs, kLoop };

std::string KindName(const testing::TestParamInfo<Kind>& info) {
  switch (info.param) {
    case Kind::kMemory:
      return "Memory";
    case Kind::kFile:
      return "File";
    case Kind::kFileWithoutRing:
      return "FileWithoutRing";
    case Kind::kTmpfs:
      return "Tmpfs";
    case Kind::kLoop:
      return "Loop";
  }
  return "";
}

class DeviceContract : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    ThreadRing::DisableForTest(GetParam() == Kind::kFileWithoutRing);
    if (GetParam() == Kind::kLoop) {
      if (access("/dev/loop-control", F_OK) != 0) GTEST_SKIP() << "there is no /dev/loop-control";
    }
    for (int i = 0; i < 2; ++i) device_[i] = Make(i);
  }
  void TearDown() override { ThreadRing::DisableForTest(false); }

  std::unique_ptr<BlockDevice> Make(int i) {
    if (GetParam() == Kind::kMemory) return MakeMemoryDevice("memory", kDeviceBytes);
    file_[i] =
        std::make_unique<TestFile>(kDeviceBytes, GetParam() == Kind::kTmpfs ? "/dev/shm" : nullptr);
    std::string path = file_[i]->path();
    if (GetParam() == Kind::kLoop) {
      loop_[i] = std::make_unique<LoopDevice>(path);
      path = loop_[i]->path();
    }
    auto device = OpenFileDevice(path, {});
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }

  BlockDevice& device() { return *device_[0]; }
  std::string ReadBack(uint64_t offset, uint64_t length, int i = 0) {
    std::string out(length, '?');
    EXPECT_EQ(device_[i]->Read(offset, absl::MakeSpan(out)), absl::OkStatus());
    return out;
  }
  int Run(DeviceIo io) {
    IoGroup group(1);
    device().Submit(io, group);
    group.Wait();
    return io.error;
  }
  // The same request to both devices in one group.
  std::pair<int, int> RunBoth(const DeviceIo& io) {
    DeviceIo a = io;
    DeviceIo b = io;
    IoGroup group(2);
    device_[0]->Submit(a, group);
    device_[1]->Submit(b, group);
    group.Wait();
    return {a.error, b.error};
  }

  std::unique_ptr<TestFile> file_[2];
  std::unique_ptr<LoopDevice> loop_[2];
  std::unique_ptr<BlockDevice> device_[2];
};

const std::pair<int, int> kBothWell{0, 0};

TEST_P(DeviceContract, NewDeviceReadsZerosAndKnowsItsSize) {
  EXPECT_EQ(device().traits().size_bytes, kDeviceBytes);
  EXPECT_EQ(ReadBack(0, kDeviceBytes), std::string(kDeviceBytes, '\0'));
}

TEST_P(DeviceContract, ReadsWhatWasWrittenAtAnyAlignment) {
  std::string model(kDeviceBytes, '\0');
  const uint64_t places[][2] = {{0, 1},          {511, 2},         {4095, 4098},
                                {65535, 131074}, {1 * kMiB, kMiB}, {kDeviceBytes - 1, 1}};
  char fill = 'a';
  for (const auto& [offset, length] : places) {
    const std::string data(length, fill++);
    ASSERT_EQ(device().Write(offset, data), absl::OkStatus());
    model.replace(offset, length, data);
  }
  EXPECT_EQ(ReadBack(0, kDeviceBytes), model);
}

TEST_P(DeviceContract, GathersAndScattersManyParts) {
  // More than IOV_MAX parts of uneven lengths, some empty.
  std::string data(21000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>('a' + i % 23);
  std::string out(data.size(), '?');
  std::vector<iovec> from;
  std::vector<iovec> to;
  for (size_t at = 0, i = 0; at < data.size(); ++i) {
    const size_t length = std::min(data.size() - at, i % 15);
    from.push_back({.iov_base = data.data() + at, .iov_len = length});
    to.push_back({.iov_base = out.data() + at, .iov_len = length});
    at += length;
  }
  ASSERT_GT(from.size(), 2048u);
  for (bool fua : {false, true}) {
    std::fill(out.begin(), out.end(), '?');
    DeviceIo write{
        .kind = IoKind::kWrite, .fua = fua, .offset = 777, .length = data.size(), .data = from};
    EXPECT_EQ(RunBoth(write), kBothWell);
    DeviceIo read{.kind = IoKind::kRead, .offset = 777, .length = out.size(), .data = to};
    EXPECT_EQ(Run(read), 0);
    EXPECT_EQ(out, data);
    EXPECT_EQ(ReadBack(777, data.size(), 1), data);
  }
}

TEST_P(DeviceContract, LegsOfEverySizeReachBothDevices) {
  uint64_t offset = 0;
  char fill = 'A';
  for (bool fua : {false, true}) {
    for (uint64_t length : {uint64_t{512}, 4 * kKiB, 64 * kKiB, kMiB, 4 * kMiB}) {
      std::string data(length, fill++);
      const iovec part{.iov_base = data.data(), .iov_len = data.size()};
      EXPECT_EQ(RunBoth({.kind = IoKind::kWrite,
                         .fua = fua,
                         .offset = offset,
                         .length = length,
                         .data = absl::MakeConstSpan(&part, 1)}),
                kBothWell);
      EXPECT_EQ(ReadBack(offset, length, 0), data);
      EXPECT_EQ(ReadBack(offset, length, 1), data);
      offset += 512 + 1;
    }
  }
  EXPECT_EQ(RunBoth({.kind = IoKind::kFlush}), kBothWell);
}

TEST_P(DeviceContract, ZeroReadsAsZerosAndTouchesNothingElse) {
  const std::string ones(kMiB, '1');
  for (bool legs : {false, true}) {
    for (bool fua : {false, true}) {
      for (bool may_unmap : {false, true}) {
        for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
                 {0, kMiB}, {4096, 8192}, {1, 3}, {511, 1026}, {4095, 65538}, {5, 0}}) {
          for (int i : {0, 1}) ASSERT_EQ(device_[i]->Write(0, ones), absl::OkStatus());
          DeviceIo io{.kind = IoKind::kZero,
                      .fua = fua,
                      .may_unmap = may_unmap,
                      .offset = offset,
                      .length = length};
          if (legs) {
            EXPECT_EQ(RunBoth(io), kBothWell);
          } else {
            EXPECT_EQ(Run(io), 0);
          }
          std::string model = ones;
          model.replace(offset, length, length, '\0');
          EXPECT_EQ(ReadBack(0, kMiB), model) << offset << "+" << length;
          if (legs) {
            EXPECT_EQ(ReadBack(0, kMiB, 1), model);
          }
        }
      }
    }
  }
}

TEST_P(DeviceContract, TrimReadsAsZerosOrAsBeforeAndTouchesNothingElse) {
  const std::string ones(kMiB, '1');
  for (bool fua : {false, true}) {
    for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
             {0, kMiB}, {8192, 65536}, {1, 3}, {4095, 65538}, {5, 0}}) {
      for (int i : {0, 1}) ASSERT_EQ(device_[i]->Write(0, ones), absl::OkStatus());
      EXPECT_EQ(RunBoth({.kind = IoKind::kTrim, .fua = fua, .offset = offset, .length = length}),
                kBothWell);
      const std::string after = ReadBack(0, kMiB);
      EXPECT_EQ(after.find_first_not_of(std::string("1\0", 2)), std::string::npos);
      const size_t first = after.find('\0');
      if (first != std::string::npos) {
        EXPECT_GE(first, offset);
        EXPECT_LT(after.rfind('\0'), offset + length);
      }
    }
  }
}

TEST_P(DeviceContract, FastZeroIsDoneOrRefusedUntouched) {
  const std::string ones(kMiB, '1');
  for (bool may_unmap : {false, true}) {
    ASSERT_EQ(device().Write(0, ones), absl::OkStatus());
    const int error = Run({.kind = IoKind::kZero,
                           .may_unmap = may_unmap,
                           .only_fast = true,
                           .offset = 4096,
                           .length = 65536});
    std::string model = ones;
    if (error == 0) {
      EXPECT_TRUE(device().traits().can_zero_fast);
      model.replace(4096, 65536, 65536, '\0');
    } else {
      EXPECT_EQ(error, EOPNOTSUPP);
    }
    EXPECT_EQ(ReadBack(0, kMiB), model);
  }
}

TEST_P(DeviceContract, RefusesWhatIsNotWellFormed) {
  std::string data(1024, 'x');
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  const auto parts = absl::MakeConstSpan(&part, 1);
  for (IoKind kind :
       {IoKind::kRead, IoKind::kWrite, IoKind::kZero, IoKind::kTrim, IoKind::kCache}) {
    for (uint64_t offset : {kDeviceBytes - 1023, kDeviceBytes, uint64_t{INT64_MAX}, UINT64_MAX}) {
      EXPECT_EQ(Run({.kind = kind, .offset = offset, .length = 1024, .data = parts}), EINVAL);
    }
    EXPECT_EQ(Run({.kind = kind, .offset = 1, .length = UINT64_MAX, .data = parts}), EINVAL);
  }
  EXPECT_EQ(Run({.kind = IoKind::kRead, .length = 1023, .data = parts}), EINVAL);
  EXPECT_EQ(Run({.kind = IoKind::kWrite, .length = 1025, .data = parts}), EINVAL);
  EXPECT_EQ(ReadBack(kDeviceBytes - 1023, 1023), std::string(1023, '\0'));
}

TEST_P(DeviceContract, EmptyRequestsAndHintsSucceed) {
  for (IoKind kind :
       {IoKind::kRead, IoKind::kWrite, IoKind::kZero, IoKind::kTrim, IoKind::kCache}) {
    EXPECT_EQ(Run({.kind = kind, .fua = kind == IoKind::kWrite, .offset = kDeviceBytes}), 0);
    EXPECT_EQ(RunBoth({.kind = kind, .fua = kind == IoKind::kWrite, .offset = 5}), kBothWell);
  }
  EXPECT_EQ(Run({.kind = IoKind::kCache, .offset = 0, .length = kDeviceBytes}), 0);
}

TEST_P(DeviceContract, ExtentsCoverTheRangeAndHolesReadAsZeros) {
  ASSERT_EQ(device().Write(kMiB, std::string(kMiB, 'd')), absl::OkStatus());
  ASSERT_EQ(device().Write(5 * kMiB, std::string(kMiB, 'd')), absl::OkStatus());
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, kDeviceBytes}, {kMiB + 5, 7}, {512, 6 * kMiB}, {kDeviceBytes, 0}}) {
    uint64_t at = offset;
    ASSERT_EQ(device().Extents(offset, length,
                               [&](uint64_t from, uint64_t bytes, bool hole) {
                                 EXPECT_EQ(from, at);
                                 EXPECT_GT(bytes, 0u);
                                 if (hole) {
                                   EXPECT_EQ(ReadBack(from, bytes), std::string(bytes, '\0'));
                                 }
                                 at = from + bytes;
                                 return true;
                               }),
              absl::OkStatus());
    EXPECT_EQ(at, offset + length);
  }
  int calls = 0;
  EXPECT_EQ(device().Extents(0, kDeviceBytes,
                             [&](uint64_t, uint64_t, bool) {
                               ++calls;
                               return false;
                             }),
            absl::OkStatus());
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(
      device().Extents(kDeviceBytes, 1, [](uint64_t, uint64_t, bool) { return true; }).ok());
}

TEST_P(DeviceContract, MoreRequestsThanTheRingHoldsAllComplete) {
  constexpr uint32_t kCount = 3 * ThreadRing::kDepth;
  std::string data(512, 'm');
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  std::vector<DeviceIo> ios(kCount);
  IoGroup group(kCount);
  for (uint32_t i = 0; i < kCount; ++i) {
    ios[i] = {.kind = IoKind::kWrite,
              .fua = true,
              .offset = uint64_t{i} * 512,
              .length = 512,
              .data = absl::MakeConstSpan(&part, 1)};
    device_[i % 2]->Submit(ios[i], group);
  }
  group.Wait();
  for (uint32_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(ios[i].error, 0);
    EXPECT_EQ(ReadBack(uint64_t{i} * 512, 512, static_cast<int>(i % 2)), data);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DeviceContract,
                         testing::Values(Kind::kMemory, Kind::kFile, Kind::kFileWithoutRing,
                                         Kind::kTmpfs, Kind::kLoop),
                         KindName);

}  // namespace
}  // namespace braid
