// File systems at rest: what is free, what is refused.
#include "lib/ext4/reclaim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "lib/ext4/image_fixture.h"

namespace braid::ext4 {
namespace {

using ::testing::HasSubstr;

struct Variant {
  const char* name;
  const char* options;  // of mkfs.ext4
  uint64_t megabytes;
};
void PrintTo(const Variant& variant, std::ostream* os) { *os << variant.name; }

class FreeSpaceTest : public ::testing::TestWithParam<Variant> {
 protected:
  TempDirectory directory_;
  const std::string image_ = directory_ / "image";
};

// A tree of files of many sizes, some deleted again, put in without a mount.
void Populate(const TempDirectory& directory, const std::string& image) {
  std::string commands;
  for (const int kilobytes : {1, 3, 60, 700, 5000, 17, 129}) {
    const std::string file = directory / absl::StrCat("file", kilobytes);
    Must(absl::StrCat("head -c ", kilobytes, "k /dev/urandom > ", file));
    for (int i = 0; i < 6; ++i) {
      absl::StrAppend(&commands, "write ", file, " f", kilobytes, "_", i, "\n");
    }
    for (int i = 0; i < 6; i += 2) absl::StrAppend(&commands, "rm f", kilobytes, "_", i, "\n");
  }
  absl::StrAppend(&commands, "mkdir sub\n");
  Must(absl::StrCat("debugfs -w -f - ", image, " <<'END'\n", commands, "END"));
}

TEST_P(FreeSpaceTest, EqualsWhatTheSystemsToolsSay) {
  MakeFile(image_, GetParam().megabytes << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F ", GetParam().options, " ", image_));
  const auto fresh = LookOnce(image_);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  EXPECT_EQ(fresh->free, FreeBySystem(image_));
  EXPECT_GT(fresh->free.size(), 0U);

  Populate(directory_, image_);
  const auto used = LookOnce(image_);
  ASSERT_TRUE(used.ok()) << used.status();
  EXPECT_EQ(used->free, FreeBySystem(image_));
  EXPECT_LT(Bytes(used->free), Bytes(fresh->free));
}

INSTANTIATE_TEST_SUITE_P(
    Variants, FreeSpaceTest,
    ::testing::Values(
        Variant{"default", "-b 4096", 600}, Variant{"small_blocks", "-b 1024", 100},
        Variant{"odd_end", "-b 1024 -g 8000", 67}, Variant{"two_k", "-b 2048", 200},
        Variant{"no_flex_bg", "-O ^flex_bg", 300}, Variant{"narrow", "-O ^64bit", 300},
        Variant{"wide_descriptors", "-O 64bit,^metadata_csum", 300},
        Variant{"no_checksums", "-O ^metadata_csum,^uninit_bg", 300},
        Variant{"uninit_bg", "-O ^metadata_csum,uninit_bg", 600},
        Variant{"uninit_no_flex", "-O ^metadata_csum,uninit_bg,^flex_bg", 600},
        Variant{"meta_bg", "-b 1024 -O meta_bg,^resize_inode", 300},
        Variant{"sparse_super2", "-O sparse_super2", 600},
        Variant{"all_supers", "-b 1024 -O ^sparse_super,^resize_inode", 600},
        Variant{"no_resize_inode", "-O ^resize_inode", 300},
        Variant{"indirect_journal", "-O ^extent,^64bit", 300}, Variant{"ext3", "-t ext3", 300},
        Variant{"fast_commit", "-O fast_commit", 300},
        Variant{"orphan_file", "-O orphan_file", 300}, Variant{"quota", "-O quota,project", 300},
        Variant{"inline_data", "-O inline_data,encrypt,casefold,ea_inode,large_dir", 300},
        Variant{"packed_meta", "-E packed_meta_blocks=1", 600}),
    [](const auto& instance) { return instance.param.name; });

// debugfs would wait ten seconds to write to this one.
TEST(FreeSpace, OfAFileSystemProtectedFromTwoMounts) {
  TempDirectory directory;
  const std::string image = directory / "image";
  MakeFile(image, 300 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F -O mmp ", image));
  const auto view = LookOnce(image);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->free, FreeBySystem(image));
}

// Groups that were never written, and a bitmap per group of a volume far larger than its image.
TEST(FreeSpace, OfALargeFileSystemIsFoundInReasonableTime) {
  TempDirectory directory;
  const std::string image = directory / "image";
  MakeFile(image, uint64_t{4} << 40);
  Must(absl::StrCat("mkfs.ext4 -q -F -E lazy_itable_init=1 -N 1000000 ", image));
  const auto view = LookOnce(image);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->groups_total, 32768U);
  EXPECT_EQ(view->free, FreeBySystem(image));
}

class RefusalTest : public ::testing::Test {
 protected:
  std::string Refusal(const std::string& options) {
    MakeFile(image_, 300 << 20);
    Must(absl::StrCat("mkfs.ext4 -q -F ", options, " ", image_));
    return RefusalNow();
  }
  std::string RefusalNow() {
    const auto view = LookOnce(image_);
    EXPECT_EQ(view.status().code(), absl::StatusCode::kFailedPrecondition) << view.status();
    return std::string(view.status().message());
  }
  // Of the superblock, without its checksum.
  void Set(const std::string& field, const std::string& value) {
    Must(absl::StrCat("debugfs -w -R 'ssv ", field, " ", value, "' ", image_));
  }
  TempDirectory directory_;
  const std::string image_ = directory_ / "image";
};

TEST_F(RefusalTest, WithoutAJournal) {
  EXPECT_THAT(Refusal("-O ^has_journal"), HasSubstr("no journal"));
}
TEST_F(RefusalTest, Bigalloc) { EXPECT_THAT(Refusal("-O bigalloc"), HasSubstr("bigalloc")); }
TEST_F(RefusalTest, LargeBlocks) { EXPECT_THAT(Refusal("-b 65536"), HasSubstr("64 KiB")); }
TEST_F(RefusalTest, JournalElsewhere) {
  const std::string journal = directory_ / "journal";
  MakeFile(journal, 64 << 20);
  MakeFile(image_, 300 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F -b 4096 -O journal_dev ", journal));
  const auto found = LookOnce(journal);
  EXPECT_THAT(std::string(found.status().message()), HasSubstr("elsewhere"));
  Must(absl::StrCat("mkfs.ext4 -q -F ", image_));
  Must(absl::StrCat("debugfs -w -R 'ssv journal_inum 0' ", image_));
  Set("journal_dev", "0x0801");
  EXPECT_THAT(RefusalNow(), HasSubstr("another device"));
}
TEST_F(RefusalTest, FeaturesNotKnown) {
  for (const auto& [feature, reason] :
       {std::pair("FEATURE_I20", "(compat 0, incompat 100000, ro_compat 0)"),
        std::pair("FEATURE_R25", "(compat 0, incompat 0, ro_compat 2000000)"),
        std::pair("FEATURE_C25", "(compat 2000000, incompat 0, ro_compat 0)")}) {
    MakeFile(image_, 300 << 20);
    Must(absl::StrCat("mkfs.ext4 -q -F ", image_));
    Must(absl::StrCat("debugfs -w -R 'feature ", feature, "' ", image_));
    EXPECT_THAT(RefusalNow(), HasSubstr(reason));
  }
}
TEST_F(RefusalTest, ErrorsThatTheKernelFound) {
  MakeFile(image_, 300 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F ", image_));
  Set("state", "2");
  EXPECT_THAT(RefusalNow(), HasSubstr("errors"));
}

TEST(FileSystem, SaysWhereItsJournalLies) {
  TempDirectory directory;
  const std::string image = directory / "image";
  MakeFile(image, 300 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F -b 4096 -J size=8 ", image));
  auto fs = FileSystem::Open(ReadFile(image), {.offset = 0, .length = 300 << 20});
  ASSERT_TRUE(fs.ok()) << fs.status();
  EXPECT_EQ(Bytes((*fs)->journal()), 8U << 20);
  EXPECT_EQ(ReadAt(image, (*fs)->journal()[0].offset, 4), std::string("\xc0\x3b\x39\x98", 4));
  EXPECT_EQ((*fs)->block_bytes(), 4096U);
  EXPECT_THAT((*fs)->description(), ::testing::MatchesRegex("ext4 \\([0-9a-f-]{36}\\)"));
  ASSERT_TRUE((*fs)->ReadCommittedSequence().ok());
}

TEST(FileSystem, IsNotTakenForAnotherThatWasMadeInItsPlace) {
  TempDirectory directory;
  const std::string image = directory / "image";
  MakeFile(image, 300 << 20);
  Must(absl::StrCat("mkfs.ext4 -q -F ", image));
  auto fs = FileSystem::Open(ReadFile(image), {.offset = 0, .length = 300 << 20});
  ASSERT_TRUE((*fs)->Look(true, [](uint32_t) {}).ok());
  Must(absl::StrCat("mkfs.ext4 -q -F ", image));
  EXPECT_EQ((*fs)->Look(false, [](uint32_t) {}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CommitSequence, IsFoundInCommitBlocksOnly) {
  const std::string commit("\xc0\x3b\x39\x98\0\0\0\x02\0\0\x01\x02", 12);
  EXPECT_EQ(CommitSequence(commit + std::string(4084, 'x')), 0x102U);
  EXPECT_EQ(CommitSequence(absl::MakeConstSpan(commit).first(11)), std::nullopt);
  std::string descriptor = commit;
  descriptor[7] = 1;
  EXPECT_EQ(CommitSequence(descriptor), std::nullopt);
  EXPECT_EQ(CommitSequence(std::string(4096, '\0')), std::nullopt);
}

}  // namespace
}  // namespace braid::ext4
