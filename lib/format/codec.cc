#include "lib/format/codec.h"

#include <cassert>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checksum.h"

namespace braid {

void ByteWriter::Little(uint64_t value, int count) {
  for (int i = 0; i < count; ++i) {
    bytes_.push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

void ByteWriter::Id(const Uuid& id) {
  bytes_.append(reinterpret_cast<const char*>(id.bytes().data()), Uuid::kBytes);
}

void ByteWriter::Text(absl::string_view text) {
  assert(text.size() <= std::numeric_limits<uint16_t>::max());
  U16(static_cast<uint16_t>(text.size()));
  Raw(text);
}

absl::string_view ByteReader::Next(size_t size) {
  if (!ok_ || size > rest_.size()) {
    ok_ = false;
    return {};
  }
  const absl::string_view taken = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return taken;
}

uint64_t ByteReader::Little(int count) {
  const absl::string_view bytes = Next(static_cast<size_t>(count));
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<uint8_t>(bytes[i]);
  }
  return value;
}

bool ByteReader::Bool() {
  const uint8_t value = U8();
  if (value > 1) ok_ = false;
  return ok_ && value == 1;
}

Uuid ByteReader::Id() {
  std::array<uint8_t, Uuid::kBytes> id{};
  const absl::string_view bytes = Next(Uuid::kBytes);
  for (size_t i = 0; i < bytes.size(); ++i) id[i] = static_cast<uint8_t>(bytes[i]);
  return Uuid(id);
}

std::string ByteReader::Raw(size_t size) { return std::string(Next(size)); }

std::string ByteReader::Text() { return Raw(U16()); }

uint32_t ByteReader::Count(size_t item_bytes) {
  const uint32_t count = U32();
  if (count > rest_.size() / item_bytes) ok_ = false;
  return ok_ ? count : 0;
}

ByteWriter BeginFrame(char kind, uint8_t version) {
  ByteWriter writer;
  writer.U8(static_cast<uint8_t>(kind));
  writer.U8(version);
  return writer;
}

std::string FinishFrame(ByteWriter writer) {
  writer.U32(Crc32c(writer.bytes()));
  return writer.Take();
}

absl::StatusOr<absl::string_view> OpenFrame(absl::string_view what, char kind, uint8_t version,
                                            absl::string_view bytes) {
  if (bytes.size() < kFrameHeadBytes + kFrameTailBytes) {
    return absl::DataLossError(absl::StrCat(what, " is damaged: ", bytes.size(), " bytes"));
  }
  const absl::string_view covered = bytes.substr(0, bytes.size() - kFrameTailBytes);
  ByteReader tail(bytes.substr(covered.size()));
  if (tail.U32() != Crc32c(covered)) {
    return absl::DataLossError(absl::StrCat(what, " is damaged: checksum does not match"));
  }
  if (covered[0] != kind) {
    return absl::DataLossError(absl::StrCat(what, " is damaged: it is of kind '",
                                            absl::CHexEscape(covered.substr(0, 1)), "' and not '",
                                            absl::string_view(&kind, 1), "'"));
  }
  const auto found = static_cast<uint8_t>(covered[1]);
  if (found > version) {
    return absl::UnimplementedError(absl::StrCat(what, " has format ", found, ", this Braid reads ",
                                                 version, "; use the newer Braid that wrote it"));
  }
  if (found < version) {
    return absl::DataLossError(
        absl::StrCat(what, " is damaged: it has format ", found, " where ", version, " belongs"));
  }
  return covered.substr(kFrameHeadBytes);
}

}  // namespace braid
