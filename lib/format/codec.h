// Bounded writing and reading of little-endian fields; every label and record goes
// through here.
//
// A record of the store is framed the same way in every version, so that any Braid can
// tell a newer record from a damaged one:
//
//   kind 1 | version 1 | body | CRC-32C of all before it 4
#ifndef BRAID_LIB_FORMAT_CODEC_H_
#define BRAID_LIB_FORMAT_CODEC_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/base/uuid.h"

namespace braid {

class ByteWriter {
 public:
  void U8(uint8_t value) { bytes_.push_back(static_cast<char>(value)); }
  void U16(uint16_t value) { Little(value, 2); }
  void U32(uint32_t value) { Little(value, 4); }
  void U64(uint64_t value) { Little(value, 8); }
  void I64(int64_t value) { Little(static_cast<uint64_t>(value), 8); }
  void Bool(bool value) { U8(value ? 1 : 0); }
  void Id(const Uuid& id);
  void Raw(absl::string_view bytes) { bytes_.append(bytes.data(), bytes.size()); }
  // Length in 2 bytes, then the bytes; at most 65535 (asserted).
  void Text(absl::string_view text);
  void ZerosUpTo(size_t size) { bytes_.resize(size, '\0'); }  // size() <= size (asserted by use)

  size_t size() const { return bytes_.size(); }
  const std::string& bytes() const { return bytes_; }
  std::string Take() { return std::move(bytes_); }

 private:
  void Little(uint64_t value, int count);
  std::string bytes_;
};

// Never reads outside the bytes it was given, which outlive it. The first read that does
// not fit, or finds an impossible value, fails the reader for good; reads after that give
// zeros, so that a decoder reads all its fields and asks once.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : rest_(bytes) {}

  uint8_t U8() { return static_cast<uint8_t>(Little(1)); }
  uint16_t U16() { return static_cast<uint16_t>(Little(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Little(4)); }
  uint64_t U64() { return Little(8); }
  int64_t I64() { return static_cast<int64_t>(Little(8)); }
  bool Bool();  // 0 or 1, else fails
  Uuid Id();
  std::string Raw(size_t size);
  std::string Text();
  // A count of items that take at least item_bytes each: fails when they cannot all be
  // there, so that nobody reserves memory on a damaged count's word.
  uint32_t Count(size_t item_bytes);

  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }  // all read, nothing over

 private:
  absl::string_view Next(size_t size);
  uint64_t Little(int count);
  absl::string_view rest_;
  bool ok_ = true;
};

inline constexpr size_t kFrameHeadBytes = 2;
inline constexpr size_t kFrameTailBytes = 4;

// kind and version, for the body to follow; FinishFrame adds the checksum.
ByteWriter BeginFrame(char kind, uint8_t version);
std::string FinishFrame(ByteWriter writer);

// The body of a whole frame of this kind and version. DataLoss: too short, checksum,
// another kind, an older version (the store's format decides which it is). Unimplemented: a
// newer one. `what` names the record in the message ("volume record").
absl::StatusOr<absl::string_view> OpenFrame(absl::string_view what, char kind, uint8_t version,
                                            absl::string_view bytes);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_CODEC_H_
