// File systems in use: mounted through a loop device, written by another process, and read
// from the file behind it meanwhile. Needs root and loop devices; is skipped without.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/test_seed.h"
#include "lib/ext4/image_fixture.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {
namespace {

using std::chrono::milliseconds;

// The loop device goes with the mount.
class Mounted {
 public:
  Mounted(const std::string& image, const std::string& directory, const std::string& options)
      : directory_(directory) {
    std::filesystem::create_directory(directory);
    device_ = Must(absl::StrCat("losetup --find --show ", image));
    device_ = std::string(absl::StripAsciiWhitespace(device_));
    Must(absl::StrCat("mount -t ext4 -o ", options, " ", device_, " ", directory));
  }
  ~Mounted() {
    for (int i = 0; i < 50 && RunCommand("umount " + directory_).status != 0; ++i) {
      std::this_thread::sleep_for(milliseconds(100));
    }
    RunCommand("losetup -d " + device_);
  }
  // Until nothing is on its way to the image.
  void WaitUntilIdle() const {
    const std::string inflight =
        absl::StrCat("/sys/block/", std::filesystem::path(device_).filename().string());
    int quiet = 0;
    for (int i = 0; i < 2000 && quiet < 5; ++i) {
      const bool idle =
          RunCommand(absl::StrCat("awk '{exit $1+$2 != 0}' ", inflight, "/inflight")).status == 0;
      quiet = idle ? quiet + 1 : 0;
      std::this_thread::sleep_for(milliseconds(10));
    }
  }

 private:
  const std::string directory_;
  std::string device_;
};

// A process that runs `work` until it ends or is stopped for good.
class Writer {
 public:
  explicit Writer(const std::function<void()>& work) : pid_(fork()) {
    if (pid_ != 0) return;
    work();
    _exit(0);
  }
  ~Writer() { End(); }
  void Pause() const { kill(pid_, SIGSTOP); }
  void Resume() const { kill(pid_, SIGCONT); }
  void End() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  bool Running() {
    if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
    return pid_ > 0;
  }

 private:
  pid_t pid_;
};

void WriteOne(const std::string& path, size_t bytes, bool sync) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return;
  // Begins as the journal's own blocks do, so that logged data (data=journal) is escaped.
  std::string data(bytes, '\x5a');
  for (size_t at = 0; at + 4 <= bytes; at += 1024) data.replace(at, 4, "\xc0\x3b\x39\x98", 4);
  [[maybe_unused]] const ssize_t n = write(fd, data.data(), data.size());
  if (sync) fsync(fd);
  close(fd);
}

// Makes and deletes files and directories for ever.
void Churn(const std::string& root, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::error_code ignored;
  while (true) {
    const std::string directory = absl::StrCat(root, "/d", random() % 12);
    std::filesystem::create_directory(directory, ignored);
    const std::string file = absl::StrCat(directory, "/f", random() % 60);
    switch (random() % 10) {
      case 0:
        std::filesystem::remove_all(directory, ignored);  // directory blocks: revoked
        break;
      case 1:
      case 2:
        std::filesystem::remove(file, ignored);
        break;
      case 3:
        std::filesystem::resize_file(file, random() % 200000, ignored);
        break;
      default:
        WriteOne(file, random() % (random() % 8 == 0 ? 600000 : 20000), random() % 6 == 0);
    }
  }
}

struct Case {
  const char* name;
  const char* mkfs;
  const char* mount;
  uint64_t megabytes = 256;
};
void PrintTo(const Case& c, std::ostream* os) { *os << c.name; }

class MountedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0 || !std::filesystem::exists("/dev/loop-control")) {
      GTEST_SKIP() << "mounts an image: needs root and /dev/loop-control";
    }
  }
  void Make(const std::string& options, uint64_t megabytes) {
    MakeFile(image_, megabytes << 20);
    Must(absl::StrCat("mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 ", options, " ",
                      image_));
    place_ = {.offset = 0, .length = megabytes << 20};
  }
  // The image at one moment: what is copied is the same before and after.
  void CopyAtRest(const Mounted& mounted, const std::string& to) {
    for (int i = 0; i < 20; ++i) {
      mounted.WaitUntilIdle();
      CopyFile(image_, to);
      if (RunCommand(absl::StrCat("cmp ", image_, " ", to)).status == 0) return;
    }
    FAIL() << "the image does not come to rest";
  }

  TempDirectory directory_;
  const std::string image_ = directory_ / "image";
  const std::string root_ = directory_ / "root";
  Place place_;
};

class ReplayTest : public MountedTest, public ::testing::WithParamInterface<Case> {};

bool LogIsEmpty(const std::string& image) {
  return RunCommand(absl::StrCat("dumpe2fs -h ", image, " | grep -q '^Journal start: *0'"))
             .status == 0;
}

TEST_P(ReplayTest, EqualsRecoveryWhereverTheWriterWasStopped) {
  Make(GetParam().mkfs, GetParam().megabytes);
  int with_log = 0;
  {
    Mounted mounted(image_, root_, GetParam().mount);
    auto fs = FileSystem::Open(ReadFile(image_), place_);
    ASSERT_TRUE(fs.ok()) << fs.status();
    Writer writer([seed = TestSeed(), this] { Churn(root_, seed); });
    uint32_t last = *(*fs)->ReadCommittedSequence();
    for (int round = 0; round < 6; ++round) {
      writer.Resume();
      std::this_thread::sleep_for(milliseconds(round % 2 == 0 ? 400 : 60));
      writer.Pause();
      const std::string copy = directory_ / "copy", recovered = directory_ / "recovered";
      CopyAtRest(mounted, copy);
      const auto online = (*fs)->Look(/*offline=*/false, [](uint32_t) {});
      ASSERT_TRUE(online.ok()) << online.status();
      const auto offline = LookOnce(copy);
      ASSERT_TRUE(offline.ok()) << offline.status();
      with_log += !LogIsEmpty(copy);

      CopyFile(copy, recovered);
      Must(absl::StrCat("e2fsck -y -E journal_only ", recovered));
      const Extents expected = FreeBySystem(recovered);
      ASSERT_EQ(offline->free, expected) << "round " << round;
      EXPECT_EQ(online->free, expected) << "round " << round;  // nothing was written since

      EXPECT_EQ(online->sequence, *(*fs)->ReadCommittedSequence());
      EXPECT_TRUE(SequenceAtLeast(online->sequence, last));
      last = online->sequence;

      // What a full check changes (files that were deleted while open) only frees more.
      EXPECT_LE(RunCommand(absl::StrCat("e2fsck -fy ", recovered)).status, 1);
      EXPECT_TRUE(IsSubset(offline->free, FreeBySystem(recovered)));
    }
  }
  EXPECT_GT(with_log, 0) << "no copy had a log to replay";
  const auto unmounted = LookOnce(image_);
  ASSERT_TRUE(unmounted.ok()) << unmounted.status();
  EXPECT_EQ(unmounted->free, FreeBySystem(image_));
  Must(absl::StrCat("e2fsck -fn ", image_));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ReplayTest,
    ::testing::Values(Case{"checksum_v3", "-b 4096 -J size=4", "commit=1", 1024},
                      Case{"small_blocks", "-b 1024 -J size=1", "commit=1"},
                      Case{"data_in_log", "-b 4096 -J size=16", "commit=1,data=journal"},
                      Case{"writeback", "-b 4096 -J size=4", "commit=1,data=writeback", 1024},
                      Case{"no_checksums", "-b 4096 -J size=4 -O ^metadata_csum", "commit=1", 1024},
                      Case{"checksum_v1", "-b 4096 -J size=4 -O ^metadata_csum",
                           "commit=1,journal_checksum"},
                      Case{"data_in_log_v1", "-b 1024 -J size=4 -O ^metadata_csum,^64bit",
                           "commit=1,journal_checksum,data=journal"},
                      Case{"narrow", "-b 4096 -J size=4 -O ^64bit", "commit=1"},
                      Case{"ext3", "-t ext3 -b 1024 -J size=2", "commit=1"},
                      Case{"orphan_file", "-b 4096 -J size=4 -O orphan_file", "commit=1"}),
    [](const auto& instance) { return instance.param.name; });

// While one process only takes space, what a pass finds lies between what was free before and
// what is free after; while it only gives back, the other way round. Bits from a block half
// written, from a log written over, or from memory that is out of date would stand out.
class RaceTest : public MountedTest, public ::testing::WithParamInterface<Case> {
 protected:
  Extents FreeAtRest(const Mounted& mounted) {
    Must(absl::StrCat("sync -f ", root_));
    CopyAtRest(mounted, directory_ / "copy");
    const auto view = LookOnce(directory_ / "copy");
    EXPECT_TRUE(view.ok()) << view.status();
    return view.ok() ? view->free : Extents();
  }
};

TEST_P(RaceTest, FindsNothingThatWasNotFreeBeforeOrAfter) {
  Make(GetParam().mkfs, GetParam().megabytes);
  Mounted mounted(image_, root_, GetParam().mount);
  auto fs = FileSystem::Open(ReadFile(image_), place_);
  ASSERT_TRUE(fs.ok()) << fs.status();
  std::mt19937_64 random(TestSeed());
  int views = 0, aborted = 0;
  const auto watch = [&](Writer& writer, const std::function<void(const Extents&)>& check) {
    while (writer.Running()) {
      const auto committed = (*fs)->ReadCommittedSequence();
      const auto view = (*fs)->Look(/*offline=*/false, [](uint32_t) {});
      if (absl::IsAborted(committed.status()) || absl::IsAborted(view.status())) {
        ++aborted;
        continue;
      }
      ASSERT_TRUE(committed.ok()) << committed.status();
      ASSERT_TRUE(view.ok()) << view.status();
      ASSERT_TRUE(SequenceAtLeast(view->sequence, *committed));
      check(view->free);
      ++views;
    }
  };
  for (int round = 0; round < 2; ++round) {
    const Extents empty = FreeAtRest(mounted);
    std::vector<Extents> taking;
    {
      Writer writer([&] {
        std::error_code ignored;
        for (int i = 0; i < 1500; ++i) {
          const std::string directory = absl::StrCat(root_, "/d", i % 40);
          std::filesystem::create_directory(directory, ignored);
          WriteOne(absl::StrCat(directory, "/f", i), random() % 150000, random() % 4 == 0);
        }
      });
      watch(writer, [&](const Extents& free) {
        ASSERT_TRUE(IsSubset(free, empty));
        taking.push_back(free);
      });
    }
    const Extents full = FreeAtRest(mounted);
    for (const Extents& free : taking) ASSERT_TRUE(IsSubset(full, free));
    std::vector<Extents> giving;
    {
      Writer writer([&] {
        std::error_code ignored;
        for (int i = 0; i < 1500; ++i) {
          std::filesystem::remove(absl::StrCat(root_, "/d", i % 40, "/f", i), ignored);
          if (i % 8 == 0) {
            const int fd = open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            fsync(fd);
            close(fd);
          }
        }
      });
      watch(writer, [&](const Extents& free) {
        ASSERT_TRUE(IsSubset(full, free));
        giving.push_back(free);
      });
    }
    const Extents after = FreeAtRest(mounted);
    for (const Extents& free : giving) ASSERT_TRUE(IsSubset(free, after));
  }
  EXPECT_GT(views, 20);
  std::printf("%d views, %d aborted\n", views, aborted);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RaceTest,
    ::testing::Values(Case{"checksum_v3", "-b 4096 -J size=4", "commit=1", 1024},
                      Case{"small_blocks", "-b 1024 -J size=1", "commit=1", 512},
                      Case{"no_checksums", "-b 4096 -J size=4 -O ^metadata_csum,^uninit_bg",
                           "commit=1", 1024},
                      Case{"fast_commit", "-b 4096 -J size=8 -O fast_commit", "commit=1", 1024},
                      Case{"data_in_log", "-b 4096 -J size=8", "commit=1,data=journal", 1024}),
    [](const auto& instance) { return instance.param.name; });

// fsync makes a fast commit, which recovery replays in its own way.
TEST_F(MountedTest, PendingFastCommitsAreRefusedOfflineOnly) {
  Make("-b 4096 -J size=8 -O fast_commit", 256);
  const std::string copy = directory_ / "copy";
  {
    Mounted mounted(image_, root_, "commit=300");
    Must(absl::StrCat("touch ", root_, "/full && sync -f ", root_));
    WriteOne(root_ + "/fast", 50000, /*sync=*/true);
    CopyAtRest(mounted, copy);
    auto fs = FileSystem::Open(ReadFile(image_), place_);
    ASSERT_TRUE(fs.ok()) << fs.status();
    const auto online = (*fs)->Look(/*offline=*/false, [](uint32_t) {});
    EXPECT_TRUE(online.ok()) << online.status();
  }
  const auto view = LookOnce(copy);
  EXPECT_EQ(view.status().code(), absl::StatusCode::kFailedPrecondition) << view.status();
  EXPECT_THAT(std::string(view.status().message()), ::testing::HasSubstr("fast commits"));
  const auto clean = LookOnce(image_);
  EXPECT_TRUE(clean.ok()) << clean.status();
}

TEST_F(MountedTest, AsynchronousCommitsAreRefused) {
  Make("-b 4096 -J size=4 -O ^metadata_csum", 256);
  Mounted mounted(image_, root_, "journal_async_commit,data=writeback");
  Must(absl::StrCat("touch ", root_, "/x && sync -f ", root_));
  const auto fs = FileSystem::Open(ReadFile(image_), place_);
  EXPECT_EQ(fs.status().code(), absl::StatusCode::kFailedPrecondition) << fs.status();
  EXPECT_THAT(std::string(fs.status().message()), ::testing::HasSubstr("asynchronous"));
}

// A kernel that lets one grow online changes the same fields.
TEST_F(MountedTest, GrownFileSystemIsLookedAtWhole) {
  Make("-b 4096 -J size=4", 256);
  Must(absl::StrCat("truncate -s 512M ", image_));
  place_.length = 512 << 20;
  auto fs = FileSystem::Open(ReadFile(image_), place_);
  const auto before = (*fs)->Look(false, [](uint32_t) {});
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ((*fs)->Look(false, [](uint32_t) {})->groups_unchanged, before->groups_total);
  Must(absl::StrCat("e2fsck -fy ", image_, " && resize2fs ", image_));
  Mounted mounted(image_, root_, "commit=1");
  const auto after = (*fs)->Look(false, [](uint32_t) {});
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->groups_unchanged, 0U);
  EXPECT_GT(after->groups_total, before->groups_total);
  EXPECT_GT(Bytes(after->free), Bytes(before->free) + (200U << 20));
}

class IncrementalTest : public MountedTest, public ::testing::WithParamInterface<Case> {
 protected:
  // Looks, and holds it against the first pass of another.
  FileSystem::View Look(FileSystem& fs, const Mounted& mounted) {
    mounted.WaitUntilIdle();
    auto view = fs.Look(/*offline=*/false, [](uint32_t) {});
    EXPECT_TRUE(view.ok()) << view.status();
    auto fresh = FileSystem::Open(ReadFile(image_), place_);
    EXPECT_TRUE(fresh.ok()) << fresh.status();
    const auto whole = (*fresh)->Look(/*offline=*/false, [](uint32_t) {});
    EXPECT_TRUE(whole.ok()) << whole.status();
    if (view.ok() && whole.ok()) {
      EXPECT_EQ(view->free, whole->free);
    }
    return view.value_or(FileSystem::View());
  }
};

TEST_P(IncrementalTest, LooksOnlyAtGroupsThatTheLogSaysChanged) {
  Make(GetParam().mkfs, 8192);  // 64 groups
  Mounted mounted(image_, root_, GetParam().mount);
  auto fs = FileSystem::Open(ReadFile(image_), place_);
  ASSERT_TRUE(fs.ok()) << fs.status();
  WriteOne(root_ + "/first", 100000, /*sync=*/true);
  EXPECT_EQ(Look(**fs, mounted).groups_unchanged, 0U);
  EXPECT_EQ(Look(**fs, mounted).groups_unchanged, 64U);
  // A few transactions a pass, around the log of 1024 blocks several times.
  uint32_t least = 64;
  int looks_at_some = 0;
  for (int i = 0; i < 30; ++i) {
    for (int j = 0; j < 10; ++j) {
      WriteOne(absl::StrCat(root_, "/f", i % 7, "_", j), 30000, /*sync=*/true);
    }
    // A freeze empties the log: the tail goes past what was seen last.
    if (i % 3 == 2) Must(absl::StrCat("fsfreeze -f ", root_, " && fsfreeze -u ", root_));
    const uint32_t unchanged = Look(**fs, mounted).groups_unchanged;
    least = std::min(least, unchanged);
    looks_at_some += unchanged > 0 && unchanged < 64;
  }
  // With checksums the log tells what changed also where the tail has moved past it; without,
  // the pass after that looks at all.
  if (absl::string_view(GetParam().name) == "checksum_v3") {
    EXPECT_GE(least, 50U);
  } else {
    EXPECT_EQ(least, 0U);
  }
  EXPECT_GE(looks_at_some, 20);
  // The log went round more than once since.
  for (int j = 0; j < 1000; ++j) {
    WriteOne(absl::StrCat(root_, "/g", j % 50), 30000, /*sync=*/true);
  }
  EXPECT_EQ(Look(**fs, mounted).groups_unchanged, 0U);
}

INSTANTIATE_TEST_SUITE_P(Cases, IncrementalTest,
                         ::testing::Values(Case{"checksum_v3", "-b 4096 -J size=4", "commit=1"},
                                           Case{"no_checksums",
                                                "-b 4096 -J size=4 -O ^metadata_csum", "commit=1"}),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace braid::ext4
