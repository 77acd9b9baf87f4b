// A process that commits is killed at any moment: what it reported is there, and what it
// was doing is there whole or not at all.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <random>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/unique_fd.h"
#include "lib/metadata/metadata_store.h"
#include "lib/metadata/sample_records.h"
#include "lib/metadata/test_directory.h"

namespace braid {
namespace {

// commit_loop, ended with this object if not before.
class CommitLoop {
 public:
  explicit CommitLoop(const std::string& directory) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    reports_.Reset(ends[0]);
    const UniqueFd write_end(ends[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
    std::string program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "commit_loop";
    std::string argument = directory;
    char* argv[] = {program.data(), argument.data(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv, environ), 0) << program;
    posix_spawn_file_actions_destroy(&actions);
  }
  ~CommitLoop() { Kill(); }
  CommitLoop(const CommitLoop&) = delete;
  CommitLoop& operator=(const CommitLoop&) = delete;

  // The next commit it reports; 0 when it has ended.
  uint64_t Next() {
    uint64_t revision = 0;
    const ssize_t got = read(reports_.get(), &revision, sizeof(revision));
    return got == sizeof(revision) ? revision : 0;
  }

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  UniqueFd reports_;
  pid_t pid_ = -1;
};

TEST(StoreCrash, LosesNothingReportedAndLeavesNothingHalfDone) {
  std::mt19937_64 random(TestSeed());
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  uint64_t revision = 0;
  for (int round = 0; round < 8; ++round) {
    uint64_t reported = revision;
    {
      CommitLoop loop(directory);
      // After some commits, at a random moment of the next.
      for (uint64_t commits = 1 + random() % 30; commits > 0; --commits) {
        const uint64_t next = loop.Next();
        ASSERT_EQ(next, reported + 1) << "the loop ended by itself";
        reported = next;
      }
      usleep(static_cast<useconds_t>(random() % 3000));
      loop.Kill();
      while (const uint64_t next = loop.Next()) reported = next;
    }
    auto store = OpenRocksStore(directory);
    ASSERT_TRUE(store.ok()) << store.status();
    const auto contents = ReadContents(**store);
    ASSERT_TRUE(contents.ok()) << contents.status();
    revision = contents->site.revision.value();
    ASSERT_TRUE(revision == reported || revision == reported + 1)
        << "reported " << reported << ", found " << revision;
    ASSERT_EQ(*contents, SampleContents(revision));
  }
  std::printf("%llu commits\n", static_cast<unsigned long long>(revision));
}

TEST(StoreCrash, AnotherProcessThatHasItOpenKeepsUsOut) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  CommitLoop loop(directory);
  ASSERT_EQ(loop.Next(), 1u);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenRocksStore(directory).status()));
  loop.Kill();
  EXPECT_TRUE(OpenRocksStore(directory).ok());
}

}  // namespace
}  // namespace braid
