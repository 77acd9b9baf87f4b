// RocksDB behind the KeyValue seam: how a site's state survives.
//
// A commit is one WriteBatch, written to the write-ahead log and fsynced before it becomes
// visible (sync, no two-phase commit, one column family). What can go wrong:
//
// - The process or machine dies in a commit. The log ends in a part of one record, the
//   batch that nobody was told of; records before it were fsynced. Recovery must drop the
//   torn record and nothing else.
// - A byte of the log rots. Recovery must not take that for a torn tail and drop the
//   synced batches from there on: that would be an older state with no word said, and
//   extents that a volume has would be handed out again.
//
//   RocksDB's modes each get one of the two wrong. kPointInTimeRecovery (its default)
//   silently drops everything from any damage on. kTolerateCorruptedTailRecords also
//   drops a last record whose length rotted, and on the other hand refuses one that a
//   power cut tore unless the file simply ends in it. So CheckLog looks at each log first:
//   damage is an error; only a log that ends in a torn record is opened with the first
//   mode, and whole ones with kAbsoluteConsistency, which tolerates nothing. The MANIFEST
//   is such a log too, and losing its last record would lose a table with it.
// - A write or fsync fails. RocksDB then holds the error and refuses writes; we keep it
//   from resuming by itself (max_bgerror_resume_count 0), and RecordStore refuses as well,
//   until the store is opened again. That open replays what the log has into a table file
//   that is fsynced (avoid_flush_during_recovery false, the default), so that what it
//   shows is durable even where the log's own pages are not.
// - A file vanishes. Without CURRENT RocksDB would make a new, empty store beside the
//   remains; CheckFiles looks first.
//
// The lock is our own, on BRAID_LOCK, taken before RocksDB touches anything: RocksDB's
// lock error has no code of its own to tell it by.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdarg>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"
#include "lib/metadata/key_value.h"
#include "lib/metadata/keys.h"
#include "lib/metadata/log_check.h"
#include "lib/metadata/metadata_store.h"
#include "rocksdb/cache.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"

namespace braid {
namespace {

constexpr absl::string_view kRestore =
    "; put a backup of the store in its place, or move it away to begin an empty site";

rocksdb::Slice ToSlice(absl::string_view s) { return {s.data(), s.size()}; }
absl::string_view ToView(const rocksdb::Slice& s) { return {s.data(), s.size()}; }

// RocksDB's messages may hold line ends and bytes of files.
std::string OneLine(const rocksdb::Status& status) {
  std::string text = status.ToString();
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  }
  return text;
}

absl::Status FromRocks(const rocksdb::Status& status, absl::string_view directory) {
  if (status.ok()) return absl::OkStatus();
  const std::string what = absl::StrCat("store ", directory, ": ", OneLine(status));
  if (status.IsCorruption()) return absl::DataLossError(absl::StrCat(what, kRestore));
  if (status.IsNoSpace()) {
    return absl::ResourceExhaustedError(absl::StrCat(what, "; make room on its file system"));
  }
  if (status.IsNotSupported()) {
    return absl::UnimplementedError(absl::StrCat(what, "; use the newer Braid that wrote it"));
  }
  return absl::UnavailableError(absl::StrCat(what, "; see to the disk it is on"));
}

// RocksDB's own log file tells nothing that its statuses do not, and Debian's build has
// assertions on: once writing that file has failed, as on a full disk, the next message
// aborts the process (7.8.3, WritableFileWriter::AssertFalseAndGetStatusForPrevError).
class NoInfoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char* /*format*/, va_list /*arguments*/) override {}
};

// A store of some megabytes, read through once at the start and written to since.
rocksdb::Options StoreOptions() {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.paranoid_checks = true;
  options.max_bgerror_resume_count = 0;  // opening anew decides, not a timer
  // One thread for flushes and one for compactions is all that ever runs, and none of the
  // periodic ones (statistics).
  options.max_background_jobs = 2;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  // 4 MiB hold some 50,000 runs; two of them (the default) while one is flushed. A start
  // after a crash replays at most that.
  options.write_buffer_size = 4 * kMiB;
  options.max_open_files = -1;  // a few; all are opened, and their heads checked, at once
  options.verify_sst_unique_id_in_manifest = true;  // a table that is another's is found
  // No reused log files: an old record behind the end would look like a damaged one.
  options.recycle_log_file_num = 0;
  options.compression = rocksdb::kNoCompression;  // small, and readable by any tool
  options.bottommost_compression = rocksdb::kDisableCompressionOption;
  options.info_log = std::make_shared<NoInfoLog>();
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(4 * kMiB);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// Reads stop at the first damaged block; none is remembered as good without a look.
rocksdb::ReadOptions Reading(const rocksdb::Snapshot* snapshot = nullptr) {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.snapshot = snapshot;
  return options;
}

absl::StatusOr<std::optional<std::string>> GetFrom(rocksdb::DB& db,
                                                   const rocksdb::ReadOptions& options,
                                                   absl::string_view directory,
                                                   absl::string_view key) {
  std::string value;
  const rocksdb::Status status = db.Get(options, ToSlice(key), &value);
  if (status.IsNotFound()) return std::optional<std::string>();
  if (!status.ok()) return FromRocks(status, directory);
  return std::optional<std::string>(std::move(value));
}

absl::Status ScanIn(rocksdb::DB& db, const rocksdb::ReadOptions& options,
                    absl::string_view directory, absl::string_view prefix,
                    absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) {
  const std::unique_ptr<rocksdb::Iterator> it(db.NewIterator(options));
  for (it->Seek(ToSlice(prefix)); it->Valid() && it->key().starts_with(ToSlice(prefix));
       it->Next()) {
    if (absl::Status s = fn(ToView(it->key()), ToView(it->value())); !s.ok()) return s;
  }
  return FromRocks(it->status(), directory);
}

class RocksSnapshot final : public KeyValueReader {
 public:
  RocksSnapshot(rocksdb::DB* db, std::string directory)
      : db_(*db), snapshot_(db->GetSnapshot()), directory_(std::move(directory)) {}
  ~RocksSnapshot() override { db_.ReleaseSnapshot(snapshot_); }
  RocksSnapshot(const RocksSnapshot&) = delete;
  RocksSnapshot& operator=(const RocksSnapshot&) = delete;

  absl::StatusOr<std::optional<std::string>> Get(absl::string_view key) override {
    return GetFrom(db_, Reading(snapshot_), directory_, key);
  }
  absl::Status Scan(
      absl::string_view prefix,
      absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) override {
    return ScanIn(db_, Reading(snapshot_), directory_, prefix, fn);
  }

 private:
  rocksdb::DB& db_;
  const rocksdb::Snapshot* const snapshot_;
  const std::string directory_;
};

class RocksKeyValue final : public KeyValue {
 public:
  RocksKeyValue(UniqueFd lock, std::unique_ptr<rocksdb::DB> db, std::string directory)
      : lock_(std::move(lock)), db_(std::move(db)), directory_(std::move(directory)) {}

  absl::Status Write(const std::vector<MetadataBatch::Entry>& entries) override {
    rocksdb::WriteBatch batch;
    for (const MetadataBatch::Entry& entry : entries) {
      rocksdb::Status added;
      switch (entry.kind) {
        case MetadataBatch::Entry::kPut:
          added = batch.Put(entry.key, entry.value);
          break;
        case MetadataBatch::Entry::kDelete:
          added = batch.Delete(entry.key);
          break;
        case MetadataBatch::Entry::kDeletePrefix:
          added = batch.DeleteRange(entry.key, PrefixEnd(entry.key));
          break;
      }
      if (!added.ok()) return FromRocks(added, directory_);
    }
    rocksdb::WriteOptions options;
    options.sync = true;
    return FromRocks(db_->Write(options, &batch), directory_);
  }

  absl::StatusOr<std::optional<std::string>> Get(absl::string_view key) override {
    return GetFrom(*db_, Reading(), directory_, key);
  }
  absl::Status Scan(
      absl::string_view prefix,
      absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) override {
    return ScanIn(*db_, Reading(), directory_, prefix, fn);
  }
  std::unique_ptr<KeyValueReader> Snapshot() override {
    return std::make_unique<RocksSnapshot>(db_.get(), directory_);
  }

 private:
  const UniqueFd lock_;  // given up after the database is closed
  const std::unique_ptr<rocksdb::DB> db_;
  const std::string directory_;
};

absl::Status SyncDirectory(const std::string& directory) {
  const UniqueFd fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || fsync(fd.get()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot sync directory ", directory));
  }
  return absl::OkStatus();
}

std::string ParentOf(absl::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  return std::string(path.substr(0, slash == 0 ? 1 : slash));
}

absl::Status MakeDirectory(const std::string& directory) {
  if (mkdir(directory.c_str(), 0700) == 0) return SyncDirectory(ParentOf(directory));
  if (errno == EEXIST) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("cannot make directory ", directory));
}

absl::StatusOr<UniqueFd> LockDirectory(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/BRAID_LOCK");
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("cannot lock ", path));
  return absl::FailedPreconditionError(
      absl::StrCat("store ", directory,
                   " is open in another process; stop the other braidd or use another "
                   "--data-dir"));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  std::string bytes;
  char buffer[64 * kKiB];
  for (;;) {
    const ssize_t got = read(fd.get(), buffer, sizeof(buffer));
    if (got == 0) return bytes;
    if (got > 0) {
      bytes.append(buffer, static_cast<size_t>(got));
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
    }
  }
}

absl::StatusOr<std::vector<std::string>> ListFiles(const std::string& directory) {
  std::vector<std::string> names;
  DIR* dir = opendir(directory.c_str());
  if (dir == nullptr) return ErrnoStatus(errno, absl::StrCat("cannot read ", directory));
  while (const dirent* entry = readdir(dir)) names.emplace_back(entry->d_name);
  closedir(dir);
  return names;
}

// Looks for what RocksDB would pass over in silence. A store always has CURRENT, and a log
// beside each table; both are made before the first table and before any commit returns.
// Whether some log ends in a torn record.
absl::StatusOr<LogEnd> CheckFiles(const std::string& directory) {
  absl::StatusOr<std::vector<std::string>> names = ListFiles(directory);
  if (!names.ok()) return names.status();
  const auto damaged = [&](absl::string_view how) {
    return absl::DataLossError(absl::StrCat("store ", directory, " is damaged: ", how, kRestore));
  };
  bool current = false, log = false, table = false;
  LogEnd end = LogEnd::kWhole;
  for (const std::string& name : *names) {
    current = current || name == "CURRENT";
    table = table || absl::EndsWith(name, ".sst");
    if (!absl::EndsWith(name, ".log") && !absl::StartsWith(name, "MANIFEST-")) continue;
    log = log || absl::EndsWith(name, ".log");
    absl::StatusOr<std::string> bytes = ReadFile(absl::StrCat(directory, "/", name));
    if (!bytes.ok()) return bytes.status();
    absl::StatusOr<LogEnd> found = CheckLog(*bytes);
    if (!found.ok()) return damaged(absl::StrCat(name, ": ", found.status().message()));
    if (*found == LogEnd::kTorn && absl::EndsWith(name, ".log")) end = LogEnd::kTorn;
  }
  if (!current && (log || table)) return damaged("its file CURRENT is missing");
  if (table && !log) return damaged("its log is missing");
  return end;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetadataStore>> OpenRocksStore(const std::string& directory) {
  if (absl::Status s = MakeDirectory(directory); !s.ok()) return s;
  absl::StatusOr<UniqueFd> lock = LockDirectory(directory);
  if (!lock.ok()) return lock.status();
  const absl::StatusOr<LogEnd> end = CheckFiles(directory);
  if (!end.ok()) return end.status();

  rocksdb::Options options = StoreOptions();
  options.wal_recovery_mode = *end == LogEnd::kTorn
                                  ? rocksdb::WALRecoveryMode::kPointInTimeRecovery
                                  : rocksdb::WALRecoveryMode::kAbsoluteConsistency;
  rocksdb::DB* db = nullptr;
  rocksdb::Status opened = rocksdb::DB::Open(options, directory, &db);
  if (!opened.ok()) return FromRocks(opened, directory);
  return OpenStoreOver(std::make_unique<RocksKeyValue>(*std::move(lock),
                                                       std::unique_ptr<rocksdb::DB>(db), directory),
                       absl::StrCat("store ", directory));
}

}  // namespace braid
