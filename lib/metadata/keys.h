// The keys of a site's store: one letter for the kind, then what identifies the record,
// numbers big-endian so that keys sort as their numbers do. docs/formats/store.md.
#ifndef BRAID_LIB_METADATA_KEYS_H_
#define BRAID_LIB_METADATA_KEYS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/uuid.h"
#include "lib/mapping/map_change.h"
#include "lib/mapping/map_run.h"

namespace braid {

inline constexpr absl::string_view kStoreVersionKey = "f";
inline constexpr absl::string_view kSiteKey = "s";
inline constexpr absl::string_view kDevicePrefix = "d";
inline constexpr absl::string_view kVolumePrefix = "v";

std::string DeviceKey(const Uuid& device);
std::string VolumeKey(const Uuid& volume);
// All runs of a volume.
std::string RunPrefix(const Uuid& volume);
std::string RunKey(const Uuid& volume, const MapRun& run);
// All grants of a volume.
std::string GrantPrefix(const Uuid& volume);
std::string GrantKey(const Uuid& volume, const UnitPlace& first_leg);

// The id behind a one-letter prefix; DataLoss when the key has another length.
absl::StatusOr<Uuid> IdOfKey(absl::string_view key);
// Sets the run's column, leg and first unit from its key; DataLoss when it is no run's.
absl::Status ReadRunKey(absl::string_view key, MapRun& run);

// The first key behind all that begin with `prefix`, which is not all 0xff bytes
// (asserted).
std::string PrefixEnd(absl::string_view prefix);
// For messages: the letter, then hex.
std::string ShowKey(absl::string_view key);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_KEYS_H_
