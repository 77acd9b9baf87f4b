// What only files and block devices of the kernel do.
#include "lib/blockdev/file_device.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/errno_status.h"
#include "lib/base/units.h"
#include "lib/blockdev/device_probe.h"
#include "lib/blockdev/test_files.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

bool CanLoop() { return access("/dev/loop-control", F_OK) == 0; }

uint64_t AllocatedBytes(const std::string& path) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) TestSetupFailed("stat");
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

int RunOne(BlockDevice& device, DeviceIo io) {
  IoGroup group(1);
  device.Submit(io, group);
  group.Wait();
  return io.error;
}

// Alone in place, or beside a flush of another device, which brings it to the ring.
int RunOn(BlockDevice& device, BlockDevice* company, DeviceIo io) {
  if (company == nullptr) return RunOne(device, io);
  DeviceIo flush{.kind = IoKind::kFlush};
  IoGroup group(2);
  device.Submit(io, group);
  company->Submit(flush, group);
  group.Wait();
  EXPECT_EQ(flush.error, 0);
  return io.error;
}

TEST(OpenFileDevice, SaysWhatIsWrongAndWhatToDo) {
  const struct {
    const char* path;
    absl::StatusCode code;
  } cases[] = {
      {"/nonexistent/device", absl::StatusCode::kNotFound},
      {"", absl::StatusCode::kNotFound},
      {"/etc/passwd/x", absl::StatusCode::kNotFound},
      {"/", absl::StatusCode::kInvalidArgument},
      {"/dev/null", absl::StatusCode::kInvalidArgument},
  };
  for (const auto& c : cases) {
    const absl::Status status = OpenFileDevice(c.path, {}).status();
    EXPECT_EQ(status.code(), c.code) << c.path << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.path));
    EXPECT_THAT(std::string(status.message()), HasSubstr("; "));
  }
  EXPECT_EQ(OpenFileDevice(std::string("/dev/null\0x", 11), {}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(OpenFileDevice, DoesNotWaitForTheOtherEndOfAFifo) {
  TestFile file(0);
  unlink(file.path().c_str());
  ASSERT_EQ(mkfifo(file.path().c_str(), 0600), 0);
  EXPECT_EQ(OpenFileDevice(file.path(), {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(OpenFileDevice, LeavesNoDescriptorToChildren) {
  TestFile file(kMiB);
  auto device = OpenFileDevice(file.path(), {});
  ASSERT_TRUE(device.ok());
  int found = 0;
  for (int fd = 3; fd < 64; ++fd) {
    struct stat st {};
    struct stat want {};
    if (fstat(fd, &st) != 0 || stat(file.path().c_str(), &want) != 0) continue;
    if (st.st_ino != want.st_ino || st.st_dev != want.st_dev) continue;
    ++found;
    EXPECT_TRUE((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
  }
  EXPECT_EQ(found, 2);
}

TEST(OpenFileDevice, ProbingLeavesSizeSpaceAndBytesAlone) {
  TestFile file(kMiB + 100);
  std::ofstream(file.path(), std::ios::in | std::ios::out) << std::string(10000, 'p');
  const uint64_t before = AllocatedBytes(file.path());
  auto device = OpenFileDevice(file.path(), {});
  ASSERT_TRUE(device.ok());
  EXPECT_EQ((*device)->traits().size_bytes, kMiB + 100);
  EXPECT_EQ(AllocatedBytes(file.path()), before);
  std::string out(10000, '?');
  ASSERT_EQ((*device)->Read(0, absl::MakeSpan(out)), absl::OkStatus());
  EXPECT_EQ(out, std::string(10000, 'p'));
}

TEST(OpenFileDevice, ReadOnlyRefusesEveryChange) {
  TestFile file(kMiB);
  auto device = OpenFileDevice(file.path(), {.read_only = true});
  ASSERT_TRUE(device.ok());
  EXPECT_FALSE((*device)->traits().can_trim);
  EXPECT_EQ(ErrnoOf((*device)->Write(0, "x")), EROFS);
  EXPECT_EQ(ErrnoOf((*device)->Zero(0, 512, true)), EROFS);
  EXPECT_EQ(RunOne(**device, {.kind = IoKind::kTrim, .length = 512}), EROFS);
  EXPECT_EQ((*device)->Flush(), absl::OkStatus());
  char byte = 'x';
  EXPECT_EQ((*device)->Read(0, absl::MakeSpan(&byte, 1)), absl::OkStatus());
}

TEST(OpenFileDevice, ExclusiveRefusesAFileBehindALoopDevice) {
  if (!CanLoop()) GTEST_SKIP() << "there is no /dev/loop-control";
  TestFile file(kMiB);
  ASSERT_TRUE(OpenFileDevice(file.path(), {.exclusive = true}).ok());
  {
    LoopDevice loop(file.path());
    const absl::Status status = OpenFileDevice(file.path(), {.exclusive = true}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/" + loop.name()));
    EXPECT_TRUE(OpenFileDevice(file.path(), {}).ok());
  }
}

TEST(OpenFileDevice, ExclusiveRefusesABlockDeviceThatAnotherHolds) {
  if (!CanLoop()) GTEST_SKIP() << "there is no /dev/loop-control";
  TestFile file(kMiB);
  LoopDevice loop(file.path());
  auto holder = OpenFileDevice(loop.path(), {.exclusive = true});
  ASSERT_TRUE(holder.ok()) << holder.status();
  const absl::Status status = OpenFileDevice(loop.path(), {.exclusive = true}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(loop.path()));
  holder->reset();
  EXPECT_TRUE(OpenFileDevice(loop.path(), {.exclusive = true}).ok());
}

TEST(CheckFileUnused, RefusesSwapAlsoUnderANameWithBlanks) {
  TestFile file(kMiB);
  TestFile swaps(0);
  struct stat st {};
  ASSERT_EQ(stat(file.path().c_str(), &st), 0);
  EXPECT_TRUE(CheckFileUnused(st, file.path(), swaps.path().c_str()).ok());
  const std::string blank = file.path() + " x";
  ASSERT_EQ(link(file.path().c_str(), blank.c_str()), 0);
  std::ofstream(swaps.path()) << "Filename\tType\tSize\tUsed\tPriority\n"
                              << file.path() << "\\040x file 1020 0 -2\n";
  EXPECT_EQ(CheckFileUnused(st, file.path(), swaps.path().c_str()).code(),
            absl::StatusCode::kFailedPrecondition);
  unlink(blank.c_str());
}

TEST(FileDevice, TrimAndUnmappingZeroGiveSpaceBackAndPlainZeroKeepsIt) {
  TestFile file(4 * kMiB);
  auto device = OpenFileDevice(file.path(), {}).value();
  if (!device->traits().can_trim) GTEST_SKIP() << "this file system punches no holes";
  auto fill = [&] {
    ASSERT_EQ(device->Write(0, std::string(4 * kMiB, 'f')), absl::OkStatus());
    ASSERT_EQ(device->Flush(), absl::OkStatus());
    ASSERT_GE(AllocatedBytes(file.path()), 4 * kMiB);
  };
  fill();
  ASSERT_EQ(device->Zero(0, 4 * kMiB, /*may_unmap=*/false), absl::OkStatus());
  EXPECT_GE(AllocatedBytes(file.path()), 4 * kMiB);
  ASSERT_EQ(device->Zero(kMiB, kMiB, /*may_unmap=*/true), absl::OkStatus());
  EXPECT_LE(AllocatedBytes(file.path()), 3 * kMiB + 64 * kKiB);
  fill();
  ASSERT_EQ(RunOne(*device, {.kind = IoKind::kTrim, .offset = kMiB, .length = 2 * kMiB}), 0);
  EXPECT_LE(AllocatedBytes(file.path()), 2 * kMiB + 64 * kKiB);
}

class FileDeviceWays : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) company_ = OpenFileDevice(company_file_.path(), {}).value();
  }
  TestFile company_file_{kMiB};
  std::unique_ptr<BlockDevice> company_;
};

TEST_P(FileDeviceWays, FileThatGotShorterIsAnErrorAndNotAShortRead) {
  TestFile file(4 * kMiB);
  auto device = OpenFileDevice(file.path(), {.ring_from_bytes = 0}).value();
  ASSERT_EQ(truncate(file.path().c_str(), kMiB + 512), 0);
  std::string out(kMiB, '?');
  const iovec part{.iov_base = out.data(), .iov_len = out.size()};
  for (uint64_t offset : {kMiB, 2 * kMiB}) {
    EXPECT_EQ(RunOn(*device, company_.get(),
                    {.kind = IoKind::kRead,
                     .offset = offset,
                     .length = out.size(),
                     .data = absl::MakeConstSpan(&part, 1)}),
              EIO);
  }
}

TEST_P(FileDeviceWays, WriteCutShortGoesOnUntilItsError) {
  TestFile file(4 * kMiB);
  auto device = OpenFileDevice(file.path(), {.ring_from_bytes = 0}).value();
  std::string data(kMiB, 'w');
  // Two parts, the cut within the second.
  const iovec parts[] = {{.iov_base = data.data(), .iov_len = kMiB / 4},
                         {.iov_base = data.data() + kMiB / 4, .iov_len = kMiB * 3 / 4}};
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit low{.rlim_cur = kMiB + kMiB / 2, .rlim_max = old.rlim_max};
  auto* handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
  const int error = RunOn(*device, company_.get(),
                          {.kind = IoKind::kWrite, .offset = kMiB, .length = kMiB, .data = parts});
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(error, EFBIG);
  std::string out(kMiB, '?');
  ASSERT_EQ(device->Read(kMiB, absl::MakeSpan(out)), absl::OkStatus());
  EXPECT_EQ(out, std::string(kMiB / 2, 'w') + std::string(kMiB / 2, '\0'));
}

TEST_P(FileDeviceWays, ReadsWhatIsNotInThePageCache) {
  TestFile file(4 * kMiB);
  auto device = OpenFileDevice(file.path(), {}).value();
  std::string data(4 * kMiB, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 2654435761U >> 24);
  ASSERT_EQ(device->Write(0, data), absl::OkStatus());
  ASSERT_EQ(device->Flush(), absl::OkStatus());
  for (uint64_t length : {uint64_t{4096}, 100 * kKiB, 3 * kMiB}) {
    const UniqueFd fd(open(file.path().c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
    // Some of it cached, so that a read that does not wait comes back short.
    char byte = 0;
    ASSERT_EQ(pread(fd.get(), &byte, 1, 8192), 1);
    std::string out(length, '?');
    const iovec part{.iov_base = out.data(), .iov_len = out.size()};
    EXPECT_EQ(RunOn(*device, company_.get(),
                    {.kind = IoKind::kRead,
                     .offset = 8192,
                     .length = length,
                     .data = absl::MakeConstSpan(&part, 1)}),
              0);
    EXPECT_TRUE(out == data.substr(8192, length));
  }
}

// A loop device over memory that a seal makes fail every write-back.
class FailingSync {
 public:
  FailingSync() : memory_(memfd_create("braid-test", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    if (!memory_.valid() || ftruncate(memory_.get(), 4 * kMiB) != 0) TestSetupFailed("memfd");
    loop_ = std::make_unique<LoopDevice>("/proc/self/fd/" + std::to_string(memory_.get()));
  }
  std::unique_ptr<BlockDevice> Open() { return OpenFileDevice(loop_->path(), {}).value(); }
  void Seal() {
    if (fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0) TestSetupFailed("seal");
  }

 private:
  UniqueFd memory_;
  std::unique_ptr<LoopDevice> loop_;
};

TEST_P(FileDeviceWays, FailedFlushIsNeverFollowedByAGoodOne) {
  if (!CanLoop()) GTEST_SKIP() << "there is no /dev/loop-control";
  FailingSync failing;
  auto device = failing.Open();
  ASSERT_EQ(RunOn(*device, company_.get(), {.kind = IoKind::kFlush}), 0);
  ASSERT_EQ(device->Write(0, std::string(4096, 'x')), absl::OkStatus());
  failing.Seal();
  EXPECT_EQ(RunOn(*device, company_.get(), {.kind = IoKind::kFlush}), EIO);
  // The kernel by itself calls the page clean now.
  EXPECT_EQ(RunOn(*device, company_.get(), {.kind = IoKind::kFlush}), EIO);
  EXPECT_EQ(RunOn(*device, company_.get(), {.kind = IoKind::kZero, .fua = true, .length = 512}),
            EIO);
  std::string data(512, 'y');
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  DeviceIo write{.kind = IoKind::kWrite,
                 .fua = true,
                 .length = data.size(),
                 .data = absl::MakeConstSpan(&part, 1)};
  EXPECT_EQ(RunOn(*device, company_.get(), write), EIO);
  write.fua = false;
  EXPECT_EQ(RunOn(*device, company_.get(), write), 0);
}

TEST_P(FileDeviceWays, FailedFuaWriteFailsTheNextFlushToo) {
  if (!CanLoop()) GTEST_SKIP() << "there is no /dev/loop-control";
  FailingSync failing;
  auto device = failing.Open();
  failing.Seal();
  std::string data(512, 'y');
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  EXPECT_EQ(RunOn(*device, company_.get(),
                  {.kind = IoKind::kWrite,
                   .fua = true,
                   .length = data.size(),
                   .data = absl::MakeConstSpan(&part, 1)}),
            EIO);
  EXPECT_EQ(RunOn(*device, company_.get(), {.kind = IoKind::kFlush}), EIO);
}

// The kernel tells one sync on an open file of a lost page, and those that overlap it, or
// come before it is noted, that all is well.
TEST_P(FileDeviceWays, EverySyncThatOverlapsAFailedOneFails) {
  if (!CanLoop()) GTEST_SKIP() << "there is no /dev/loop-control";
  constexpr int kRounds = 20, kThreads = 8;
  for (int round = 0; round < kRounds; ++round) {
    FailingSync failing;
    auto device = failing.Open();
    ASSERT_EQ(device->Write(0, std::string(64 * kKiB, 'x')), absl::OkStatus());
    failing.Seal();
    std::latch start(kThreads);
    std::atomic<int> told_all_is_well{0};
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        start.arrive_and_wait();
        if (RunOn(*device, company_.get(), {.kind = IoKind::kFlush}) == 0) ++told_all_is_well;
      });
    }
    for (std::thread& t : threads) t.join();
    ASSERT_EQ(told_all_is_well, 0) << "in round " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(All, FileDeviceWays, testing::Bool(), [](const auto& way) {
  return way.param ? std::string("OnTheRing") : std::string("InPlace");
});

}  // namespace
}  // namespace braid
