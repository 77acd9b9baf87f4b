// The label on every device: who it is and whom it belongs to.
// Bytes and worked example: docs/formats/label.md.
#ifndef BRAID_LIB_FORMAT_LABEL_H_
#define BRAID_LIB_FORMAT_LABEL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/uuid.h"

namespace braid {

inline constexpr uint32_t kLabelVersion = 1;
// Two copies, so that one torn or damaged sector does not lose the device.
inline constexpr uint64_t kLabelBytes = 4096;
inline constexpr uint64_t kLabelOffsets[2] = {0, 64 * 1024};
// Where extents begin: the first large-extent boundary behind the labels. The space
// between is reserved for records of later versions.
inline constexpr uint64_t kLabelDataOffset = 4 * 1024 * 1024;
inline constexpr size_t kMaxDeviceNameBytes = 64;

struct Label {
  Uuid device;
  Uuid cluster;
  std::string site;                         // that added it; informative
  std::string device_name;                  // at that time; informative
  std::string device_class;                 // likewise
  uint64_t device_bytes = 0;                // of the whole device when labelled
  uint64_t data_offset = kLabelDataOffset;  // multiple of 4 MiB
  uint64_t data_bytes = 0;                  // multiple of 4 MiB: whole large extents
  int64_t created_unix_seconds = 0;
  // Of the two copies the one with the higher sequence is the newer.
  uint64_t sequence = 0;

  friend bool operator==(const Label&, const Label&) = default;
};

// Exactly kLabelBytes. The names are within their limits (asserted).
std::string EncodeLabel(const Label& label);

// NotFound: no label's magic there. DataLoss: damaged (truncated, checksum, impossible
// field), and how. Unimplemented: written by a newer version.
absl::StatusOr<Label> DecodeLabel(absl::string_view bytes);

// The newer of the copies that decode. `copies` are the bytes read at kLabelOffsets.
// When neither decodes: the more telling of the two errors (Unimplemented, then
// DataLoss, then NotFound).
absl::StatusOr<Label> ChooseLabel(absl::string_view first, absl::string_view second);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_LABEL_H_
