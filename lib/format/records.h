// The records of a site's store, as bytes and back. Little-endian, each framed with its
// kind, a version and a checksum (codec.h); grammar and worked examples:
// docs/formats/store.md. RocksDB checks its blocks as well, but records are also read
// where no RocksDB stood in between (inspection, recovery), so decoders trust nothing:
// DataLoss for bytes that no encoder made, Unimplemented for a newer version.
#ifndef BRAID_LIB_FORMAT_RECORDS_H_
#define BRAID_LIB_FORMAT_RECORDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/format/names.h"
#include "lib/mapping/map_change.h"
#include "lib/mapping/map_run.h"

namespace braid {

inline constexpr uint32_t kStoreVersion = 2;
// A volume's fault in words is cut to this: a message must never stop a commit.
inline constexpr size_t kMaxFaultBytes = 1024;

// A first write that may wait longer for space may as well wait without limit: a year.
inline constexpr uint64_t kMaxFullTimeoutSeconds = uint64_t{365} * 24 * 3600;

// One per store.
struct SiteRecord {
  Uuid cluster;
  Uuid site;
  std::string name;
  Revision revision;  // of the last committed change
  friend bool operator==(const SiteRecord&, const SiteRecord&) = default;
};

struct DeviceRecord {
  Uuid id;
  std::string name;  // unique in the site
  std::string node;  // the failure domain: the server it sits in
  std::string path;  // absolute, as the node sees it
  std::string device_class;
  uint64_t device_bytes = 0;
  uint64_t data_offset = 0;
  uint64_t data_bytes = 0;  // capacity for extents
  int64_t created_unix_seconds = 0;
  Revision revision;
  friend bool operator==(const DeviceRecord&, const DeviceRecord&) = default;
};

enum class Layout : uint8_t { kLinear = 1, kStriped = 2, kMirrored = 3, kStripedMirrors = 4 };

// What a thin volume's first writes do when there is no space.
enum class OnFull : uint8_t { kFail = 1, kWait = 2 };

enum class VolumeState : uint8_t {
  kPreparing = 1,  // extents allocated, not all zeroed: not attachable
  kReady = 2,
  kDeleting = 3,
};

// The attachment as the store knows it. held is set durably before a holder may do its
// first I/O and cleared after its clean end, so a store that says held after a restart
// tells of an unclean end.
struct AttachmentRecord {
  Epoch epoch;
  bool held = false;
  bool read_only = false;
  Epoch journal;  // whose notes of writes and map changes the holder took over; 0 nobody's
  std::string node;
  Uuid boot_id;  // of the holder's machine
  uint64_t pid = 0;
  int64_t since_unix_seconds = 0;
  friend bool operator==(const AttachmentRecord&, const AttachmentRecord&) = default;
};

struct VolumeRecord {
  Uuid id;
  std::string name;  // unique in its site
  uint64_t size_bytes = 0;
  Layout layout = Layout::kLinear;
  uint32_t columns = 1;
  uint64_t stripe_bytes = 0;
  uint32_t legs = 1;
  std::string device_class;   // the condition it was built under; "" any
  std::vector<Uuid> devices;  // DeviceIndex is the place in here
  VolumeState state = VolumeState::kPreparing;
  std::string fault;  // what was lost, in words; "" nothing
  // Thin volumes; devices may be empty then, and grows with the grants.
  bool thin = false;
  uint64_t reserve_bytes = 0;  // of the volume, whole units: space set aside for it
  OnFull on_full = OnFull::kFail;
  uint64_t full_timeout_seconds = 0;  // of kWait; 0: no limit; at most kMaxFullTimeoutSeconds
  uint64_t map_sequence = 0;          // number of the last map change applied
  AttachmentRecord attachment;
  int64_t created_unix_seconds = 0;
  Revision revision;
  friend bool operator==(const VolumeRecord&, const VolumeRecord&) = default;
};

// Space that belongs to a thin volume and is not bound: neither free nor in its map.
struct GrantRecord {
  Grant grant;
  // Zeroed and handed to the volume's holder. Else only set aside (VolumeRecord's
  // reserve_bytes), and it may hold anything.
  bool handed_out = false;
  friend bool operator==(const GrantRecord&, const GrantRecord&) = default;
};

// InvalidArgument unless every field is in its range: ids not nil, names and paths by
// names.h, the device's range by device_range.h, the volume's shape by Geometry::Make and
// as its layout says, its devices distinct and at most kMaxDevices, the fields of thin
// volumes as they were made where it is not thin. The encoders assert these; whoever builds a
// record from outside asks first.
absl::Status CheckSite(const SiteRecord& record);
absl::Status CheckDevice(const DeviceRecord& record);
absl::Status CheckVolume(const VolumeRecord& record);
// Bounds that need no geometry: column, leg, count, units (CheckRun has the rest).
absl::Status CheckRunBounds(const MapRun& run);
// Likewise of a grant; its legs lie on different devices.
absl::Status CheckGrantBounds(const Grant& grant);

std::string EncodeSite(const SiteRecord& record);
absl::StatusOr<SiteRecord> DecodeSite(absl::string_view bytes);
std::string EncodeDevice(const DeviceRecord& record);
absl::StatusOr<DeviceRecord> DecodeDevice(absl::string_view bytes);
// The fault is cut to kMaxFaultBytes.
std::string EncodeVolume(const VolumeRecord& record);
absl::StatusOr<VolumeRecord> DecodeVolume(absl::string_view bytes);
// The run's column, leg and first unit are its key and not in the value.
std::string EncodeRun(const MapRun& run);
absl::StatusOr<MapRun> DecodeRun(absl::string_view bytes);
// Its key repeats the first leg's device and unit.
std::string EncodeGrant(const GrantRecord& record);
absl::StatusOr<GrantRecord> DecodeGrant(absl::string_view bytes);
// The store's own version, the first record read. Unimplemented unless kStoreVersion.
std::string EncodeStoreVersion(uint32_t version = kStoreVersion);
absl::StatusOr<uint32_t> DecodeStoreVersion(absl::string_view bytes);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_RECORDS_H_
