#include "lib/blockdev/io_group.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/units.h"
#include "lib/blockdev/file_device.h"
#include "lib/blockdev/memory_device.h"
#include "lib/blockdev/test_files.h"
#include "lib/blockdev/thread_ring.h"

namespace braid {
namespace {

// Completes every request on a thread of its own, as a network device does.
class OtherThreadDevice final : public BlockDevice {
 public:
  explicit OtherThreadDevice(BlockDevice* inner) : inner_(*inner) {}
  ~OtherThreadDevice() override {
    for (std::thread& thread : threads_) thread.join();
  }
  const DeviceTraits& traits() const override { return inner_.traits(); }
  const std::string& name() const override { return inner_.name(); }
  void Submit(DeviceIo& io, IoGroup& group) override {
    threads_.emplace_back([this, &io, &group] {
      DeviceIo copy = io;
      IoGroup own(1);
      inner_.Submit(copy, own);
      own.Wait();
      io.error = copy.error;
      group.Complete();
    });
  }
  absl::Status Extents(uint64_t, uint64_t,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)>) override {
    return absl::OkStatus();
  }

 private:
  BlockDevice& inner_;
  std::vector<std::thread> threads_;
};

// Mirrors each request to two devices by a group of its own, inside Submit: what nests.
class NestingDevice final : public BlockDevice {
 public:
  NestingDevice(BlockDevice* a, BlockDevice* b) : a_(*a), b_(*b) {}
  const DeviceTraits& traits() const override { return a_.traits(); }
  const std::string& name() const override { return a_.name(); }
  void Submit(DeviceIo& io, IoGroup& group) override {
    DeviceIo a = io;
    DeviceIo b = io;
    IoGroup own(2);
    a_.Submit(a, own);
    b_.Submit(b, own);
    own.Wait();
    io.error = a.error != 0 ? a.error : b.error;
    group.Complete();
  }
  absl::Status Extents(uint64_t, uint64_t,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)>) override {
    return absl::OkStatus();
  }

 private:
  BlockDevice& a_;
  BlockDevice& b_;
};

TEST(IoGroup, WaitReturnsAtOnceWhenNothingIsExpected) {
  IoGroup group(0);
  group.Wait();
}

TEST(IoGroup, WaitSeesWhatLateThreadsWroteBeforeCompleting) {
  for (int round = 0; round < 200; ++round) {
    constexpr int kThreads = 4;
    int results[kThreads] = {};
    std::vector<std::thread> threads;
    {
      IoGroup group(kThreads);
      for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&results, &group, i, round] {
          if ((round + i) % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
          results[i] = round + 1;
          group.Complete();
        });
      }
      group.Wait();
      for (int result : results) EXPECT_EQ(result, round + 1);
    }  // and is gone while its completers may still be returning
    for (std::thread& thread : threads) thread.join();
  }
}

class IoGroupOnFiles : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 3; ++i) {
      file_[i] = OpenFileDevice(path_[i].path(), {.ring_from_bytes = 0}).value();
    }
  }
  DeviceIo WriteIo(uint64_t offset, bool fua) const {
    return {.kind = IoKind::kWrite,
            .fua = fua,
            .offset = offset,
            .length = data_.size(),
            .data = absl::MakeConstSpan(&part_, 1)};
  }
  void ExpectData(BlockDevice& device, uint64_t offset) {
    std::string out(data_.size(), '?');
    ASSERT_EQ(device.Read(offset, absl::MakeSpan(out)), absl::OkStatus());
    EXPECT_EQ(out, data_);
  }

  static constexpr uint64_t kBytes = 4 * kMiB;
  TestFile path_[3] = {TestFile(kBytes), TestFile(kBytes), TestFile(kBytes)};
  std::unique_ptr<BlockDevice> file_[3];
  std::string data_ = std::string(64 * kKiB, 'g');
  iovec part_{.iov_base = data_.data(), .iov_len = data_.size()};
};

TEST_F(IoGroupOnFiles, RingAndOtherThreadsCompleteInOneGroup) {
  std::unique_ptr<BlockDevice> memory = MakeMemoryDevice("memory", kBytes);
  std::unique_ptr<BlockDevice> missing = MakeMissingDevice("missing", kBytes);
  for (uint64_t offset = 0; offset < 16; ++offset) {
    OtherThreadDevice remote(file_[2].get());
    BlockDevice* devices[] = {file_[0].get(), &remote, memory.get(), missing.get(), file_[1].get()};
    DeviceIo ios[5];
    IoGroup group(5);
    for (int i = 0; i < 5; ++i) {
      ios[i] = WriteIo(offset, /*fua=*/true);
      devices[i]->Submit(ios[i], group);
    }
    group.Wait();
    for (int i = 0; i < 5; ++i) EXPECT_EQ(ios[i].error, i == 3 ? ENXIO : 0);
    for (auto& file : file_) ExpectData(*file, offset);
    ExpectData(*memory, offset);
  }
}

TEST_F(IoGroupOnFiles, GroupsNestOnOneThread) {
  NestingDevice nesting(file_[0].get(), file_[1].get());
  for (uint64_t offset = 0; offset < 16; ++offset) {
    DeviceIo outer[3] = {WriteIo(offset, true), WriteIo(offset + kMiB, true),
                         WriteIo(offset + 2 * kMiB, true)};
    IoGroup group(3);
    file_[2]->Submit(outer[0], group);  // in flight while the inner group waits
    nesting.Submit(outer[1], group);
    file_[2]->Submit(outer[2], group);
    group.Wait();
    for (const DeviceIo& io : outer) EXPECT_EQ(io.error, 0);
    ExpectData(*file_[2], offset);
    ExpectData(*file_[0], offset + kMiB);
    ExpectData(*file_[1], offset + kMiB);
    ExpectData(*file_[2], offset + 2 * kMiB);
  }
}

TEST_F(IoGroupOnFiles, ThreadsEachHaveTheirRingAndTakeItWithThem) {
  for (int round = 0; round < 20; ++round) {
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([this, t] {
        DeviceIo a = WriteIo(t * data_.size(), true);
        DeviceIo b = a;
        IoGroup group(2);
        file_[0]->Submit(a, group);
        file_[1]->Submit(b, group);
        group.Wait();
        EXPECT_EQ(a.error, 0);
        EXPECT_EQ(b.error, 0);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (uint64_t t = 0; t < 4; ++t) ExpectData(*file_[0], t * data_.size());
}

TEST_F(IoGroupOnFiles, ForkedChildMakesItsOwnRing) {
  DeviceIo before[2] = {WriteIo(0, true), WriteIo(0, true)};
  IoGroup first(2);
  for (int i : {0, 1}) file_[i]->Submit(before[i], first);
  first.Wait();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    DeviceIo ios[2] = {WriteIo(kMiB, true), WriteIo(kMiB, true)};
    IoGroup group(2);
    for (int i : {0, 1}) file_[i]->Submit(ios[i], group);
    group.Wait();
    _exit(ios[0].error == 0 && ios[1].error == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (int i : {0, 1}) ExpectData(*file_[i], kMiB);
  // And the parent's still works.
  DeviceIo after[2] = {WriteIo(2 * kMiB, true), WriteIo(2 * kMiB, true)};
  IoGroup last(2);
  for (int i : {0, 1}) file_[i]->Submit(after[i], last);
  last.Wait();
  for (int i : {0, 1}) ExpectData(*file_[i], 2 * kMiB);
}

// Each thread owns a slice of both legs and keeps a model of it.
TEST_F(IoGroupOnFiles, ManyThreadsReadTheirOwnWritesOnBothLegs) {
  const uint64_t seed = TestSeed();
  constexpr int kThreads = 4;
  constexpr uint64_t kSlice = kBytes / kThreads;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, seed, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      const uint64_t base = static_cast<uint64_t>(t) * kSlice;
      std::string model(kSlice, '\0');
      for (int step = 0; step < 100; ++step) {
        const uint64_t at = random() % kSlice;
        const uint64_t length = random() % std::min<uint64_t>(kSlice - at, 128 * kKiB) + 1;
        std::string data(length, static_cast<char>('a' + random() % 26));
        const iovec part{.iov_base = data.data(), .iov_len = data.size()};
        DeviceIo io{.fua = random() % 8 == 0, .offset = base + at, .length = length};
        switch (random() % 4) {
          case 0:
            io.kind = IoKind::kZero;
            io.may_unmap = random() % 2 == 0;
            model.replace(at, length, length, '\0');
            break;
          case 1:
            io.kind = IoKind::kFlush;
            break;
          default:
            io.kind = IoKind::kWrite;
            io.data = absl::MakeConstSpan(&part, 1);
            model.replace(at, length, data);
        }
        DeviceIo legs[2] = {io, io};
        IoGroup group(2);
        for (int i : {0, 1}) file_[i]->Submit(legs[i], group);
        group.Wait();
        for (int i : {0, 1}) EXPECT_EQ(legs[i].error, 0);
      }
      for (int i : {0, 1}) {
        std::string out(kSlice, '?');
        EXPECT_EQ(file_[i]->Read(base, absl::MakeSpan(out)), absl::OkStatus());
        EXPECT_TRUE(out == model) << "leg " << i << " thread " << t;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace braid
