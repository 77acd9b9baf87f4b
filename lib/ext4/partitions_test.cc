// Partition tables as sfdisk makes them, and what becomes of damaged ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/test_seed.h"
#include "lib/ext4/image_fixture.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kVolumeBytes = 512 * kMiB;

class PartitionsTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeFile(image_, kVolumeBytes); }
  void Partition(const std::string& script, const std::string& options = "") {
    Must(absl::StrCat("sfdisk -q --no-reread ", options, " ", image_, " <<'END'\n", script, "END"));
  }
  void MakeExt4(uint64_t offset, uint64_t length) {
    Must(absl::StrCat("mkfs.ext4 -q -F -b 4096 -E offset=", offset, " ", image_, " ", length / 1024,
                      "k"));
  }
  absl::StatusOr<std::vector<Place>> Find(uint64_t volume_bytes = kVolumeBytes) {
    return FindFileSystems(ReadFile(image_), volume_bytes);
  }
  // "number@MiB+MiB", in order.
  std::string Found() {
    const auto places = Find();
    if (!places.ok()) return std::string(places.status().message());
    std::string text;
    for (const Place& place : *places) {
      absl::StrAppend(&text, text.empty() ? "" : " ", place.partition, "@", place.offset / kMiB,
                      "+", place.length / kMiB);
    }
    return text;
  }

  TempDirectory directory_;
  const std::string image_ = directory_ / "image";
};

constexpr char kGpt[] =
    "label: gpt\n"
    "start=1MiB, size=40MiB, type=21686148-6449-6E6F-744E-656564454649\n"
    "start=50MiB, size=200MiB, type=linux\n"
    "start=260MiB, size=200MiB, type=linux\n";

TEST_F(PartitionsTest, NothingIsFoundOnAnEmptyVolume) { EXPECT_EQ(Found(), ""); }

TEST_F(PartitionsTest, WholeVolume) {
  MakeExt4(0, kVolumeBytes);
  EXPECT_EQ(Found(), "0@0+512");
}

TEST_F(PartitionsTest, GptPartitionsThatHoldExt4AreFoundAndRead) {
  Partition(kGpt);
  MakeExt4(50 * kMiB, 200 * kMiB);
  MakeExt4(260 * kMiB, 200 * kMiB);
  ASSERT_EQ(Found(), "2@50+200 3@260+200");
  const auto view = LookOnce(ReadFile(image_), (*Find())[1]);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->free, FreeBySystem(image_, 260 * kMiB));
}

TEST_F(PartitionsTest, EitherHeaderOfAGptWillDo) {
  Partition(kGpt);
  MakeExt4(50 * kMiB, 200 * kMiB);
  const std::string primary = ReadAt(image_, 512, 512);
  WriteAt(image_, 512 + 40, "x");
  EXPECT_EQ(Found(), "2@50+200");
  WriteAt(image_, 512, primary);
  WriteAt(image_, 1024 + 128 + 32, "x");  // an entry: the checksum over entries fails
  EXPECT_EQ(Found(), "2@50+200");
  WriteAt(image_, kVolumeBytes - 512 + 16, "xxxx");
  EXPECT_THAT(Found(), HasSubstr("both headers of the GPT"));
  EXPECT_EQ(Find().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(PartitionsTest, GptIsNotReadWithoutItsProtectiveMbr) {
  Partition(kGpt);
  MakeExt4(50 * kMiB, 200 * kMiB);
  WriteAt(image_, 0, std::string(512, '\0'));
  EXPECT_EQ(Found(), "");
}

TEST_F(PartitionsTest, GptOfLargeSectors) {
  // sfdisk cannot make one without such a device: one of 512 is taken apart. Only where the
  // header and its entries lie, and in what they count, changes.
  Partition("label: gpt\nstart=2048, size=51200, type=linux\n");
  std::string header = ReadAt(image_, 512, 512);
  const std::string entries = ReadAt(image_, 1024, 16384);
  WriteAt(image_, 512, std::string(17408, '\0'));
  WriteAt(image_, kVolumeBytes - 512, std::string(512, '\0'));
  WriteAt(image_, 4096, header);
  WriteAt(image_, 8192, entries);
  EXPECT_EQ(Found(), "");  // partition 1 lies at 8 MiB, where nothing is yet
  MakeExt4(2048 * 4096, 51200 * 4096);
  EXPECT_EQ(Found(), "1@8+200");
}

constexpr char kMbr[] =
    "label: dos\n"
    "start=1MiB, size=100MiB, type=83\n"
    "start=101MiB, size=300MiB, type=5\n"
    "start=401MiB, size=100MiB, type=83\n"
    "5: start=102MiB, size=50MiB, type=83\n"
    "6: start=160MiB, size=50MiB, type=82\n"
    "7: start=220MiB, size=100MiB, type=83\n";

TEST_F(PartitionsTest, MbrWithLogicalPartitions) {
  Partition(kMbr);
  for (const uint64_t at : {1, 401, 220}) MakeExt4(at * kMiB, 100 * kMiB);
  MakeExt4(102 * kMiB, 50 * kMiB);
  ASSERT_EQ(Found(), "1@1+100 5@102+50 7@220+100 3@401+100");
  const auto view = LookOnce(ReadFile(image_), (*Find())[2]);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->free, FreeBySystem(image_, 220 * kMiB));
}

TEST_F(PartitionsTest, MbrThatContradictsItselfIsRefused) {
  Partition(kMbr);
  const std::string table = ReadAt(image_, 446, 64);
  const auto with = [&](size_t at, const std::string& bytes) {
    std::string changed = table;
    changed.replace(at, bytes.size(), bytes);
    WriteAt(image_, 446, changed);
    return Found();
  };
  EXPECT_THAT(with(12, std::string("\0\0\0\x7f", 4)), HasSubstr("partition 1 lies outside"));
  EXPECT_THAT(with(12, std::string("\0\0\x08\0", 4)), HasSubstr("partitions 1 and 2 overlap"));
  WriteAt(image_, 446, table);
  // The first link's pointer to the next.
  const uint64_t link = 101 * kMiB + 446 + 16;
  const std::string next = ReadAt(image_, link + 8, 4);
  WriteAt(image_, link + 8, std::string("\0\0\0\x10", 4));
  EXPECT_THAT(Found(), HasSubstr("leave the extended one"));
  WriteAt(image_, link + 8, std::string("\x08\0\0\0", 4));
  EXPECT_THAT(Found(), HasSubstr("no table of a logical partition"));
  // A second link that leads to itself.
  WriteAt(image_, link + 8, next);
  uint32_t second = 0;
  next.copy(reinterpret_cast<char*>(&second), 4);
  WriteAt(image_, 101 * kMiB + uint64_t{second} * 512 + 446 + 16,
          std::string("\0\0\0\0\x05\0\0\0", 8) + next + std::string("\0\x08\0\0", 4));
  EXPECT_THAT(Found(), testing::AnyOf(HasSubstr("do not end"), HasSubstr("overlap")));
}

TEST_F(PartitionsTest, TableOfALargerDiskIsRefused) {
  Partition(kMbr);
  EXPECT_EQ(Find(300 * kMiB).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Find(100).value().size(), 0U);
  WriteAt(image_, 0, std::string(512, '\0'));
  Partition(kGpt);
  EXPECT_EQ(Find(300 * kMiB).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(PartitionsTest, TableAndFileSystemAtOnceAreRefused) {
  MakeExt4(0, kVolumeBytes);
  Partition(kMbr, "--wipe never");
  EXPECT_THAT(Found(), HasSubstr("both a partition table and an ext4"));
}

TEST_F(PartitionsTest, Ext4LeftBehindWhereSomethingElseIsNowIsRefused) {
  MakeExt4(0, kVolumeBytes);
  WriteAt(image_, 65536 + 64, "_BHRfS_M");
  EXPECT_THAT(Found(), HasSubstr("both ext4 and btrfs"));
}

// Any volume is searched to an end, whatever its tables say.
TEST_F(PartitionsTest, DamagedTablesNeverLeadAstray) {
  std::mt19937_64 random(TestSeed());
  for (const char* const script : {kGpt, kMbr}) {
    MakeFile(image_, kVolumeBytes);
    Partition(script);
    MakeExt4(220 * kMiB, 100 * kMiB);
    const std::string head = ReadAt(image_, 0, 4096);
    for (int i = 0; i < 500; ++i) {
      std::string changed = head;
      for (uint64_t flips = 1 + random() % 4; flips > 0; --flips) {
        const uint64_t at = random() % 2 == 0 ? 446 + random() % 66 : random() % changed.size();
        changed[at] = static_cast<char>(changed[at] ^ (1 << random() % 8));
      }
      WriteAt(image_, 0, changed);
      const auto places = Find();
      if (!places.ok()) continue;
      for (const Place& place : *places) {
        ASSERT_LE(place.offset, kVolumeBytes);
        ASSERT_LE(place.length, kVolumeBytes - place.offset);
      }
    }
  }
}

}  // namespace
}  // namespace braid::ext4
