// A site's durable state. The control plane keeps its working state in memory and
// writes every change here, whole, before it answers.
#ifndef BRAID_LIB_METADATA_METADATA_STORE_H_
#define BRAID_LIB_METADATA_METADATA_STORE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/uuid.h"
#include "lib/format/records.h"

namespace braid {

// A set of changes that takes effect whole or not at all.
class MetadataBatch {
 public:
  // One change of a key; they take effect in their order, a later one over an earlier.
  struct Entry {
    enum Kind { kPut, kDelete, kDeletePrefix };
    Kind kind;
    std::string key;    // kDeletePrefix: every key that begins with it
    std::string value;  // of kPut
  };

  // Records and runs are as records.h checks them (asserted).
  void PutSite(const SiteRecord& record);
  void PutDevice(const DeviceRecord& record);
  void DeleteDevice(const Uuid& device);
  void PutVolume(const VolumeRecord& record);
  // The record, all its runs and all its grants.
  void DeleteVolume(const Uuid& volume);
  // Deletes all runs of the volume, then puts these.
  void ReplaceRuns(const Uuid& volume, const std::vector<MapRun>& runs);
  // One run: its key is (column, leg, first).
  void PutRun(const Uuid& volume, const MapRun& run);
  void DeleteRun(const Uuid& volume, uint32_t column, uint32_t leg, ColumnUnit first);
  // One grant: its key is the place of its first leg.
  void PutGrant(const Uuid& volume, const GrantRecord& grant);
  void DeleteGrant(const Uuid& volume, const UnitPlace& first_leg);

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  void Put(std::string key, std::string value);
  std::vector<Entry> entries_;
};

// Thread-safe.
class MetadataReader {
 public:
  virtual ~MetadataReader() = default;

  // NotFound in a store that was never initialised.
  virtual absl::StatusOr<SiteRecord> ReadSite() = 0;
  // Each calls fn for every record, in key order. A record that does not decode ends the
  // walk with DataLoss that names its key; fn's error ends it with that error.
  virtual absl::Status ForEachDevice(absl::FunctionRef<absl::Status(const DeviceRecord&)> fn) = 0;
  virtual absl::Status ForEachVolume(absl::FunctionRef<absl::Status(const VolumeRecord&)> fn) = 0;
  // By (column, leg, first).
  virtual absl::Status ForEachRun(const Uuid& volume,
                                  absl::FunctionRef<absl::Status(const MapRun&)> fn) = 0;
  // By (device, unit) of the first leg.
  virtual absl::Status ForEachGrant(const Uuid& volume,
                                    absl::FunctionRef<absl::Status(const GrantRecord&)> fn) = 0;
};

class MetadataStore : public MetadataReader {
 public:
  // Durable (fsynced) and visible when it returns OK; after any other return nothing of
  // the batch is visible. Thread-safe; batches take effect in some order, one after the
  // other.
  //
  // After an error the store is broken until it is opened again: reads still give the
  // state without the failed batch, every further Commit is FailedPrecondition. What the
  // disk holds is not known then; the next open finds the failed batch whole or not at
  // all, and what it finds is durable. So a caller whose Commit failed tells its client
  // that the outcome is not known, and opens anew (braidd: ends, and is started again).
  // ResourceExhausted: the disk is full. Unavailable: another I/O error.
  virtual absl::Status Commit(const MetadataBatch& batch) = 0;

  // The records as they are now, whatever is committed meanwhile. The store outlives it; it is
  // for minutes at most, since what is deleted meanwhile keeps its place on the disk.
  virtual std::unique_ptr<MetadataReader> Snapshot() = 0;
};

// RocksDB in `directory`, made if missing (mode 0700; its parent exists). The message of
// each error names the directory and says what to do. FailedPrecondition: another process
// has it open. Unimplemented: a newer format wrote it. DataLoss: it is damaged. Else the
// error of the system call that failed.
absl::StatusOr<std::unique_ptr<MetadataStore>> OpenRocksStore(const std::string& directory);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_METADATA_STORE_H_
