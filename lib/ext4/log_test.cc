// Logs that debugfs writes into images, replayed here and by e2fsck.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/test_seed.h"
#include "lib/ext4/image_fixture.h"
#include "lib/ext4/jbd2_format.h"
#include "lib/ext4/journal_log.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {
namespace {

struct Kind {
  const char* name;
  const char* mkfs;
  const char* journal_open;
  uint32_t block_bytes;
};
void PrintTo(const Kind& kind, std::ostream* os) { *os << kind.name; }

class LogTest : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    MakeFile(image_, 256 << 20);
    Must(absl::StrCat("mkfs.ext4 -q -F -b ", GetParam().block_bytes, " ", GetParam().mkfs, " ",
                      image_));
    free_ = FreeBySystem(image_);
  }
  // Adds to the commands a transaction that logs `data`, a block for each of `blocks`.
  void Transaction(const std::vector<uint64_t>& blocks, const std::string& data,
                   const std::vector<uint64_t>& revoked, bool commit = true) {
    const std::string file = directory_ / absl::StrCat("data", transactions_++);
    MakeFile(file, 0);
    WriteAt(file, 0, data);
    absl::StrAppend(&commands_, "jw", commit ? "" : " -c",
                    blocks.empty() ? "" : " -b " + absl::StrJoin(blocks, ","),
                    revoked.empty() ? "" : " -r " + absl::StrJoin(revoked, ","), " ",
                    blocks.empty() ? "/dev/null" : file, "\n");
  }
  void Write() {
    Must(absl::StrCat("debugfs -w -f - ", image_, " <<'END'\njo ", GetParam().journal_open, "\n",
                      commands_, "jc\nEND"));
  }
  uint64_t FreeBlock(size_t i) const { return free_.front().offset / GetParam().block_bytes + i; }
  std::string Data(char fill) const { return std::string(GetParam().block_bytes, fill); }

  JournalReader Reader() const {
    auto fs = FileSystem::Open(ReadFile(image_), {.offset = 0, .length = 256 << 20});
    EXPECT_TRUE(fs.ok()) << fs.status();
    std::vector<JournalReader::Run> runs;
    uint32_t next = 0;
    for (const auto& extent : (*fs)->journal()) {
      const auto count = static_cast<uint32_t>(extent.length / GetParam().block_bytes);
      runs.push_back({.volume_offset = extent.offset, .first = next, .count = count});
      next += count;
    }
    return {ReadFile(image_), runs, GetParam().block_bytes};
  }

  TempDirectory directory_;
  const std::string image_ = directory_ / "image";
  Extents free_;
  std::string commands_;
  int transactions_ = 0;
};

TEST_P(LogTest, EveryBlockIsReplayedAsRecoveryDoes) {
  std::mt19937_64 random(TestSeed());
  std::set<uint64_t> used;
  for (int i = 0; i < 40; ++i) {
    std::vector<uint64_t> blocks, revoked;
    std::string data;
    for (uint64_t n = random() % 30; n > 0; --n) {
      const uint64_t block = FreeBlock(random() % 60);
      if (std::find(blocks.begin(), blocks.end(), block) != blocks.end()) continue;
      blocks.push_back(block);
      used.insert(block);
      std::string content = Data(static_cast<char>('a' + i % 26));
      if (random() % 3 == 0) content.replace(0, 4, "\xc0\x3b\x39\x98", 4);
      data += content;
    }
    for (uint64_t n = random() % 4; n > 0; --n) {
      const uint64_t block = FreeBlock(random() % 60);
      if (std::find(blocks.begin(), blocks.end(), block) == blocks.end()) revoked.push_back(block);
    }
    // debugfs 1.47 forgets the commit block of a transaction that has both.
    if (!blocks.empty()) Transaction(blocks, data, {});
    if (!revoked.empty()) Transaction({}, "", revoked);
  }
  // Never committed, so never replayed.
  Transaction({FreeBlock(0), FreeBlock(1)}, Data('!') + Data('!'), {}, /*commit=*/false);
  Write();

  const JournalReader reader = Reader();
  const auto superblock = reader.ReadSuperblock();
  ASSERT_TRUE(superblock.ok()) << superblock.status();
  ASSERT_NE(superblock->start, 0U);
  const LogPosition tail{.sequence = superblock->sequence, .block = superblock->start};
  const auto log = ReadLog(reader, *superblock, tail, tail);
  ASSERT_TRUE(log.ok()) << log.status();
  const ReadVolume before = ReadFile(image_);
  const std::string copy = directory_ / "copy";
  CopyFile(image_, copy);
  Must(absl::StrCat("e2fsck -y -E journal_only ", copy));
  int replayed = 0, revoked = 0;
  for (const uint64_t block : used) {
    const std::string expected =
        ReadAt(copy, block * GetParam().block_bytes, GetParam().block_bytes);
    const LoggedBlock& logged = log->blocks.at(block);
    const auto revoke = log->revoked.find(block);
    std::string seen = ReadAt(image_, block * GetParam().block_bytes, GetParam().block_bytes);
    if (revoke == log->revoked.end() || !SequenceAtLeast(revoke->second, logged.sequence)) {
      const auto data = ReadLogged(reader, *superblock, logged);
      ASSERT_TRUE(data.ok()) << data.status();
      seen = *data;
      ++replayed;
    } else {
      ++revoked;
    }
    ASSERT_TRUE(seen == expected) << "block " << block;
  }
  EXPECT_GT(replayed, 0);
  EXPECT_GT(revoked, 0);
}

TEST_P(LogTest, DamagedBlockInACommittedTransactionIsARefusalWhereChecksumsTell) {
  Transaction({FreeBlock(0), FreeBlock(1)}, Data('a') + Data('b'), {});
  Transaction({FreeBlock(2)}, Data('c'), {});
  Write();
  ASSERT_TRUE(LookOnce(image_).ok());
  const JournalReader reader = Reader();
  const uint32_t start = reader.ReadSuperblock()->start;
  const std::string pristine = directory_ / "pristine";
  CopyFile(image_, pristine);
  // Descriptor, two blocks, commit.
  for (const uint32_t block : {start, start + 1, start + 2, start + 3}) {
    CopyFile(pristine, image_);
    const uint64_t at = reader.runs()[0].volume_offset + uint64_t{block} * GetParam().block_bytes;
    // In a commit block this is within its checksum's own padding.
    WriteAt(image_, at + 40, "\x77");
    const auto view = LookOnce(image_);
    if (absl::string_view(GetParam().journal_open) == "") {
      EXPECT_TRUE(view.ok());  // nothing tells
    } else {
      EXPECT_EQ(view.status().code(), absl::StatusCode::kDataLoss) << block - start;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, LogTest,
    ::testing::Values(Kind{"v3", "", "-c -v 3", 4096}, Kind{"v2", "", "-c -v 2", 4096},
                      Kind{"v3_narrow", "-O ^64bit", "-c -v 3", 1024},
                      Kind{"v2_narrow", "-O ^64bit", "-c -v 2", 1024},
                      Kind{"none", "-O ^metadata_csum", "", 4096},
                      Kind{"none_narrow", "-O ^metadata_csum,^64bit", "", 1024}),
    [](const auto& instance) { return instance.param.name; });

// Images with flipped bits: no crash, no endless loop, and where everything has a checksum never
// a block that is in use.
struct Damage {
  const char* name;
  const char* mkfs;
  const char* journal_open;
  bool checksums;
};
void PrintTo(const Damage& damage, std::ostream* os) { *os << damage.name; }
class DamageTest : public ::testing::TestWithParam<Damage> {};

TEST_P(DamageTest, IsRefusedOrFreesNothingThatIsInUse) {
  TempDirectory directory;
  const std::string image = directory / "image";
  MakeFile(image, 64 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F -b 1024 -J size=4 ", GetParam().mkfs, " ", image));
  const std::string file = directory / "file";
  Must(absl::StrCat("head -c 3000k /dev/urandom > ", file));
  Must(absl::StrCat("debugfs -w -R 'write ", file, " a' ", image));
  const Extents free = FreeBySystem(image);
  // Blocks that a flip is likely to matter in: superblock, descriptors, bitmaps, journal inode.
  auto pristine = FileSystem::Open(ReadFile(image), {.offset = 0, .length = 64 << 20});
  ASSERT_TRUE(pristine.ok()) << pristine.status();
  const uint64_t journal = (*pristine)->journal()[0].offset;
  const std::string dump = Must(absl::StrCat(
      "dumpe2fs ", image, " 2>/dev/null | sed -n 's/.*Block bitmap at \\([0-9]*\\).*/\\1/p'"));
  std::vector<uint64_t> spots = {1024, 2048, journal};
  std::istringstream bitmaps(dump);
  for (uint64_t block = 0; bitmaps >> block;) spots.push_back(block * 1024);
  std::string tables = Must(
      absl::StrCat("dumpe2fs ", image,
                   " 2>/dev/null | sed -n 's/.*Inode table at \\([0-9]*\\)-.*/\\1/p' | head -1"));
  spots.push_back(std::stoull(tables) * 1024 + 7 * 128);
  spots.push_back(std::stoull(tables) * 1024 + 7 * 256);
  // Descriptors and the first bitmap, as they are (a superblock would have to say that there is a
  // log).
  std::string commands = absl::StrCat("jo ", GetParam().journal_open, "\n");
  std::vector<uint64_t> logged = {2, spots[3] / 1024};
  std::string data;
  for (const uint64_t block : logged) data += ReadAt(image, block * 1024, 1024);
  const std::string log_file = directory / "log";
  MakeFile(log_file, 0);
  WriteAt(log_file, 0, data);
  absl::StrAppend(&commands, "jw -b ", absl::StrJoin(logged, ","), " ", log_file, "\njc\n");
  Must(absl::StrCat("debugfs -w -f - ", image, " <<'END'\n", commands, "END"));
  for (int i = 0; i < 6; ++i) spots.push_back(journal + (1 + i) * 1024);
  ASSERT_TRUE(LookOnce(image).ok()) << LookOnce(image).status();

  std::mt19937_64 random(TestSeed());
  const ReadVolume read = ReadFile(image);
  int refused = 0, taken = 0;
  for (int i = 0; i < 4000; ++i) {
    std::vector<std::pair<uint64_t, uint8_t>> flips;
    for (uint64_t n = 1 + random() % 3; n > 0; --n) {
      // Mostly in the first bytes, where the fields are.
      const uint64_t within = random() % 2 == 0 ? random() % 128 : random() % 1024;
      flips.emplace_back(spots[random() % spots.size()] + within,
                         static_cast<uint8_t>(random() % 4 == 0 ? random() : 1 << random() % 8));
    }
    uint64_t reads = 0;
    const ReadVolume flipped = [&](uint64_t offset, absl::Span<char> bytes) {
      EXPECT_LE(offset + bytes.size(), 64U << 20);
      EXPECT_LT(++reads, 2000000U);
      absl::Status s = read(offset, bytes);
      for (const auto& [at, mask] : flips) {
        if (at >= offset && at - offset < bytes.size()) {
          bytes[at - offset] = static_cast<char>(bytes[at - offset] ^ mask);
        }
      }
      return s;
    };
    const auto view = LookOnce(flipped, {.offset = 0, .length = 64 << 20});
    if (!view.ok()) {
      ++refused;
      continue;
    }
    ++taken;
    for (const auto& extent : view->free) {
      ASSERT_LE(extent.offset + extent.length, 64U << 20);
    }
    if (GetParam().checksums) {
      ASSERT_TRUE(IsSubset(view->free, free));
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(taken, 100);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, DamageTest,
    ::testing::Values(Damage{"checksums", "", "-c -v 3", true},
                      Damage{"no_checksums", "-O ^metadata_csum,^64bit,^extent", "", false},
                      Damage{"descriptor_checksums", "-O ^metadata_csum,uninit_bg", "", false}),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace braid::ext4
