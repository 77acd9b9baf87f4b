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
  struct Entry {
    std::string key;
    std::string value;
    bool is_delete = false;
    bool is_delete_prefix = false;  // every key that begins with `key`
  };

  void PutSite(const SiteRecord& record);
  void PutDevice(const DeviceRecord& record);
  void DeleteDevice(const Uuid& device);
  void PutVolume(const VolumeRecord& record);
  // The record and all its runs.
  void DeleteVolume(const Uuid& volume);
  // Deletes all runs of the volume, then puts these.
  void ReplaceRuns(const Uuid& volume, const std::vector<MapRun>& runs);

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

class MetadataStore {
 public:
  virtual ~MetadataStore() = default;

  // Durable (fsynced) and visible when it returns OK; after any other return nothing
  // of the batch is visible, unless the process ends before it knew (then whole or
  // nothing). Thread-safe; batches take effect in some order, one after the other.
  virtual absl::Status Commit(const MetadataBatch& batch) = 0;

  // NotFound in a store that was never initialised.
  virtual absl::StatusOr<SiteRecord> ReadSite() = 0;
  // Each calls fn for every record, in key order. A record that does not decode ends the
  // walk with DataLoss that names its key; fn's error ends it with that error.
  virtual absl::Status ForEachDevice(absl::FunctionRef<absl::Status(const DeviceRecord&)> fn) = 0;
  virtual absl::Status ForEachVolume(absl::FunctionRef<absl::Status(const VolumeRecord&)> fn) = 0;
  // By (column, leg, first).
  virtual absl::Status ForEachRun(const Uuid& volume,
                                  absl::FunctionRef<absl::Status(const MapRun&)> fn) = 0;
};

// RocksDB in `directory`, made if missing (mode 0700). FailedPrecondition when another
// process has it open, Unimplemented when a newer format wrote it, DataLoss when it is
// damaged; the message says what to do.
absl::StatusOr<std::unique_ptr<MetadataStore>> OpenRocksStore(const std::string& directory);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_METADATA_STORE_H_
