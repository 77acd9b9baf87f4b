// The label on every device: who it is and whom it belongs to.
// Bytes and worked example: docs/formats/label.md.
#ifndef BRAID_LIB_FORMAT_LABEL_H_
#define BRAID_LIB_FORMAT_LABEL_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/format/names.h"

namespace braid {

inline constexpr uint32_t kLabelVersion = 1;
// Two copies, so that one torn or damaged sector does not lose the device. Write and
// flush one before the other: then one is whole at any moment.
inline constexpr uint64_t kLabelBytes = 4096;
inline constexpr uint64_t kLabelOffsets[2] = {0, 64 * kKiB};
// Where extents begin: the first large-extent boundary behind the labels. The space
// between is reserved for records of later versions.
inline constexpr uint64_t kLabelDataOffset = kExtentBytes;

struct Label {
  Uuid device;                              // not nil
  Uuid cluster;                             // not nil
  std::string site;                         // that added it; informative; a name
  std::string device_name;                  // at that time; informative; a name
  std::string device_class;                 // likewise
  uint64_t device_bytes = 0;                // of the whole device when labelled
  uint64_t data_offset = kLabelDataOffset;  // see device_range.h
  uint64_t data_bytes = 0;
  int64_t created_unix_seconds = 0;  // not negative
  // Of the two copies the one with the higher sequence is the newer. Whoever writes a
  // label over another makes it higher than that one's.
  uint64_t sequence = 0;

  friend bool operator==(const Label&, const Label&) = default;
};

// InvalidArgument unless every field is as above.
absl::Status CheckLabel(const Label& label);

// Exactly kLabelBytes. CheckLabel(label) holds (asserted).
std::string EncodeLabel(const Label& label);

// `bytes` are the first kLabelBytes of a copy, or fewer when the device ends there.
// NotFound: no label there. DataLoss: damaged (truncated, checksum, impossible field), and
// how. Unimplemented: written by a newer version.
absl::StatusOr<Label> DecodeLabel(absl::string_view bytes);

// The newer of the copies that decode. `first` and `second` are the bytes read at
// kLabelOffsets. When neither decodes: the more telling of the two errors (DataLoss, then
// NotFound). Unimplemented when either was written by a newer version, for then an older
// one no longer speaks for the device. DataLoss when both decode with one sequence and
// differ.
absl::StatusOr<Label> ChooseLabel(absl::string_view first, absl::string_view second);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_LABEL_H_
