// A store in memory, for tests of what stands on MetadataStore. It shares all code above
// the key-value seam with the real one.
#ifndef BRAID_LIB_METADATA_MEMORY_STORE_H_
#define BRAID_LIB_METADATA_MEMORY_STORE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "lib/base/mutex.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

// Stands for the disk: what was committed stays in here when the store above is gone, and
// a later store over the same medium finds it. Thread-safe.
class MemoryMedium {
 public:
  // The commit after `after` more successful ones fails, as Unavailable; the store is
  // broken then, as MetadataStore::Commit says. `survives`: whether the next open finds
  // the failed batch.
  void FailCommit(uint64_t after, bool survives = false);
  // Successful commits since it was made.
  uint64_t commits() const;
  // Raw bytes, to be looked at and damaged.
  std::map<std::string, std::string> Contents() const;
  void SetContents(std::map<std::string, std::string> contents);

 private:
  friend class MemoryKeyValue;
  mutable Mutex mu_;
  std::map<std::string, std::string> contents_ ABSL_GUARDED_BY(mu_);
  uint64_t commits_ ABSL_GUARDED_BY(mu_) = 0;
  bool will_fail_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t fail_at_ ABSL_GUARDED_BY(mu_) = 0;
  bool survives_ ABSL_GUARDED_BY(mu_) = false;
};

// Errors as OpenRocksStore, but that any number of stores may be open over one medium: as
// after a crash of a process that has not yet noticed.
absl::StatusOr<std::unique_ptr<MetadataStore>> OpenMemoryStore(
    std::shared_ptr<MemoryMedium> medium);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_MEMORY_STORE_H_
