// What the store on RocksDB does with directories, locks, crashes and damage.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/metadata/metadata_store.h"
#include "lib/metadata/sample_records.h"
#include "lib/metadata/test_directory.h"
#include "rocksdb/db.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

// Opens, reads all, closes.
absl::StatusOr<StoreContents> Read(const std::string& directory) {
  auto store = OpenRocksStore(directory);
  if (!store.ok()) return store.status();
  return ReadContents(**store);
}

void Fill(const std::string& directory, uint64_t revisions) {
  auto store = OpenRocksStore(directory);
  ASSERT_TRUE(store.ok()) << store.status();
  for (uint64_t r = 1; r <= revisions; ++r) ASSERT_TRUE((*store)->Commit(SampleBatch(r)).ok());
}

std::string NewestLog(const std::string& directory) {
  std::vector<std::string> logs = FilesEndingWith(directory, ".log");
  return *std::max_element(logs.begin(), logs.end());
}

TEST(RocksStore, MakesItsDirectoryForItsOwnerOnly) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  Fill(directory, 1);
  struct stat st = {};
  ASSERT_EQ(stat(directory.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST(RocksStore, SaysWhenItsDirectoryCannotBeMade) {
  TestDirectory temporary;
  EXPECT_TRUE(absl::IsNotFound(OpenRocksStore(temporary.Path("no/store")).status()));
  WriteBytes(temporary.Path("file"), "x");
  const absl::Status status = OpenRocksStore(temporary.Path("file")).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(temporary.Path("file")));
}

TEST(RocksStore, OpenTwiceIsRefusedAndNamesTheDirectory) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  auto first = OpenRocksStore(directory);
  ASSERT_TRUE(first.ok());
  const absl::Status status = OpenRocksStore(directory).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(directory));
  EXPECT_THAT(std::string(status.message()), HasSubstr("; stop the other braidd"));
  EXPECT_TRUE((*first)->Commit(SampleBatch(1)).ok());
  first->reset();
  EXPECT_EQ(Read(directory).value(), SampleContents(1));
}

TEST(RocksStore, OfANewerFormatIsRefusedAndLeftAsItWas) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  Fill(directory, 3);
  {
    rocksdb::DB* db = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open({}, directory, &db).ok());
    EXPECT_TRUE(db->Put({}, "f", EncodeStoreVersion(kStoreVersion + 1)).ok());
    delete db;
  }
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = Read(directory).status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("; use the newer Braid"));
  }
}

TEST(RocksStore, OfSomeoneElseIsRefused) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  {
    rocksdb::DB* db = nullptr;
    rocksdb::Options options;
    options.create_if_missing = true;
    ASSERT_TRUE(rocksdb::DB::Open(options, directory, &db).ok());
    EXPECT_TRUE(db->Put({}, "hello", "world").ok());
    delete db;
  }
  EXPECT_TRUE(absl::IsDataLoss(Read(directory).status()));
}

TEST(RocksStore, WithoutFilesItMustHaveIsDamagedNotNew) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store"), copy = temporary.Path("copy");
  Fill(directory, 3);
  for (int tables = 0; tables < 2; ++tables) {
    for (const char* end : {"CURRENT", ".log", ".sst"}) {
      CopyDirectory(directory, copy);
      for (const std::string& file : FilesEndingWith(copy, end)) unlink(file.c_str());
      if (tables == 0 && std::string(end) != "CURRENT") continue;
      const absl::Status status = Read(copy).status();
      EXPECT_FALSE(status.ok()) << end << " gone";
      EXPECT_THAT(std::string(status.message()), HasSubstr(copy));
    }
    Fill(directory, 3);  // opening moves the log's contents to a table
  }
}

TEST(RocksStore, ATornLastRecordIsDroppedAndNothingElse) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store"), copy = temporary.Path("copy");
  auto store = OpenRocksStore(directory);
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE((*store)->Commit(SampleBatch(7)).ok());
  const std::string log = NewestLog(directory);
  const size_t before = ReadBytes(log).size();
  ASSERT_TRUE((*store)->Commit(SampleBatch(39)).ok());  // over several sectors
  const std::string whole = ReadBytes(log);
  ASSERT_GT(whole.size(), before + 2 * kSectorBytes);
  CopyDirectory(directory, copy);
  store->reset();

  const auto contents_with_log = [&](const std::string& bytes) {
    const std::string again = temporary.Path("again");
    CopyDirectory(copy, again);
    WriteBytes(NewestLog(again), bytes);
    return Read(again);
  };
  EXPECT_EQ(contents_with_log(whole).value(), SampleContents(39));
  for (size_t size = before; size < whole.size(); size += 1 + (whole.size() - before) / 13) {
    const auto contents = contents_with_log(whole.substr(0, size));
    ASSERT_TRUE(contents.ok()) << size << ": " << contents.status();
    EXPECT_EQ(*contents, SampleContents(7)) << size;
  }
  // The file has its length, but sectors of the record did not reach the disk.
  for (size_t sector = (before / kSectorBytes + 1) * kSectorBytes;
       sector + kSectorBytes <= whole.size(); sector += kSectorBytes) {
    std::string bytes = whole;
    bytes.replace(sector, kSectorBytes, kSectorBytes, '\0');
    const auto contents = contents_with_log(bytes);
    ASSERT_TRUE(contents.ok()) << sector << ": " << contents.status();
    EXPECT_EQ(*contents, SampleContents(7)) << sector;
  }
  // Of the record before, which was synced, none may be missing.
  std::string bytes = whole;
  bytes[before - 20] = static_cast<char>(bytes[before - 20] ^ 1);
  EXPECT_TRUE(absl::IsDataLoss(contents_with_log(bytes).status()));
}

// Tables, logs, MANIFEST, CURRENT: whatever byte changes, what is read is an error or
// right. One history has all in the log, the other most in tables.
TEST(RocksStore, WithAnyByteChangedIsAnErrorOrIntactNeverWrong) {
  std::mt19937_64 random(TestSeed());
  TestDirectory temporary;
  const std::string directory = temporary.Path("store"), copy = temporary.Path("copy");
  int errors = 0, intact = 0;
  for (const bool tables : {false, true}) {
    Fill(directory, 5);
    if (tables) Fill(directory, 9);
    const StoreContents expected = SampleContents(tables ? 9 : 5);
    std::vector<std::string> names;
    for (const char* end : {".log", ".sst", "CURRENT"}) {
      for (const auto& file : FilesEndingWith(directory, end)) names.push_back(file);
    }
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.path().filename().string().starts_with("MANIFEST")) names.push_back(entry.path());
    }
    for (const std::string& name : names) {
      const size_t size = ReadBytes(name).size();
      for (int i = 0; i < 12 && size > 0; ++i) {
        CopyDirectory(directory, copy);
        const std::string file = copy + name.substr(directory.size());
        std::string bytes = ReadBytes(file);
        const size_t at = random() % size;
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
        WriteBytes(file, bytes);
        const auto contents = Read(copy);
        if (contents.ok()) {
          ++intact;
          ASSERT_EQ(*contents, expected) << file << " byte " << at;
        } else {
          ++errors;
          EXPECT_EQ(contents.status().message().find('\n'), absl::string_view::npos);
        }
        if (name.ends_with(".log")) {
          ASSERT_TRUE(absl::IsDataLoss(contents.status())) << at;
        }
      }
    }
  }
  std::printf("%d errors, %d intact\n", errors, intact);
  EXPECT_GT(errors, 40);
}

// A disk that is full, by a limit on file sizes: the write fails in the middle.
TEST(RocksStore, AFailedCommitBreaksTheStoreUntilOpenedAgain) {
  TestDirectory temporary;
  const std::string directory = temporary.Path("store");
  auto store = OpenRocksStore(directory);
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE((*store)->Commit(SampleBatch(1)).ok());

  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = ReadBytes(NewestLog(directory)).size() + 100;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status failed = (*store)->Commit(SampleBatch(39));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);

  EXPECT_TRUE(absl::IsUnavailable(failed)) << failed;
  EXPECT_THAT(std::string(failed.message()), HasSubstr(directory));
  const absl::Status later = (*store)->Commit(SampleBatch(3));
  EXPECT_TRUE(absl::IsFailedPrecondition(later)) << later;
  EXPECT_THAT(std::string(later.message()), HasSubstr("restart braidd"));
  EXPECT_EQ(ReadContents(**store).value(), SampleContents(1));

  store->reset();
  store = OpenRocksStore(directory);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(ReadContents(**store).value(), SampleContents(1));
  EXPECT_TRUE((*store)->Commit(SampleBatch(4)).ok());
  EXPECT_EQ(ReadContents(**store).value(), SampleContents(4));
}

}  // namespace
}  // namespace braid
