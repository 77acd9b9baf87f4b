// The seam below the store's records: ordered keys and values that survive. RocksDB
// behind it in production, memory in tests; everything above is the same code for both.
#ifndef BRAID_LIB_METADATA_KEY_VALUE_H_
#define BRAID_LIB_METADATA_KEY_VALUE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

// Both are thread-safe.
class KeyValueReader {
 public:
  virtual ~KeyValueReader() = default;
  virtual absl::StatusOr<std::optional<std::string>> Get(absl::string_view key) = 0;
  // Every key that begins with `prefix`, in order, as of one moment. fn's error ends it.
  virtual absl::Status Scan(
      absl::string_view prefix,
      absl::FunctionRef<absl::Status(absl::string_view key, absl::string_view value)> fn) = 0;
};

class KeyValue : public KeyValueReader {
 public:
  // The entries in their order, durable and visible as one when it returns OK. Otherwise
  // none is visible, and whether they will be after the next open (all or none) is not
  // known.
  virtual absl::Status Write(const std::vector<MetadataBatch::Entry>& entries) = 0;
  // All as it is now. Ends before this.
  virtual std::unique_ptr<KeyValueReader> Snapshot() = 0;
};

// Reads the store's version before anything else, and writes it into an empty store.
// Unimplemented: a newer format. DataLoss: records but no version, or a damaged one.
// `where` names the store in messages.
absl::StatusOr<std::unique_ptr<MetadataStore>> OpenStoreOver(std::unique_ptr<KeyValue> key_value,
                                                             absl::string_view where);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_KEY_VALUE_H_
