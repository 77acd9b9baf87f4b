#include "lib/format/label.h"

#include <cassert>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checksum.h"
#include "lib/format/codec.h"
#include "lib/format/device_range.h"

namespace braid {
namespace {

constexpr absl::string_view kMagic = "BRAIDDEV";
constexpr size_t kChecksumOffset = kLabelBytes - 4;

absl::Status Damaged(absl::string_view how) {
  return absl::DataLossError(absl::StrCat("device label is damaged: ", how));
}

// A name in a field of 64 bytes: its length, its bytes, zeros.
void WriteName(ByteWriter& writer, absl::string_view name) {
  const size_t begin = writer.size();
  writer.U8(static_cast<uint8_t>(name.size()));
  writer.Raw(name);
  writer.ZerosUpTo(begin + 1 + kMaxNameBytes);
}

// Empty, which no name is, when the field is not as WriteName leaves it.
std::string ReadName(ByteReader& reader) {
  const size_t size = reader.U8();
  std::string name = reader.Raw(kMaxNameBytes);
  if (size > name.size() || name.find_first_not_of('\0', size) != std::string::npos) return "";
  name.resize(size);
  return name;
}

// Whether these are a label's bytes but for a damaged magic: a device that is ours must
// not look like one that is nobody's.
bool IsLabelWithoutMagic(absl::string_view bytes) {
  if (bytes.size() < kLabelBytes) return false;
  const std::string mended =
      absl::StrCat(kMagic, bytes.substr(kMagic.size(), kChecksumOffset - kMagic.size()));
  return ByteReader(bytes.substr(kChecksumOffset)).U32() == Crc32c(mended);
}

}  // namespace

absl::Status CheckLabel(const Label& label) {
  if (label.device.IsNil()) return absl::InvalidArgumentError("device UUID is nil");
  if (label.cluster.IsNil()) return absl::InvalidArgumentError("cluster UUID is nil");
  if (absl::Status s = CheckName("site name", label.site); !s.ok()) return s;
  if (absl::Status s = CheckName("device name", label.device_name); !s.ok()) return s;
  if (absl::Status s = CheckName("device class", label.device_class); !s.ok()) return s;
  if (label.created_unix_seconds < 0)
    return absl::InvalidArgumentError("creation time is negative");
  return CheckDeviceRange(label.device_bytes, label.data_offset, label.data_bytes);
}

std::string EncodeLabel(const Label& label) {
  assert(CheckLabel(label).ok());
  ByteWriter writer;
  writer.Raw(kMagic);
  writer.U32(kLabelVersion);
  writer.U32(0);
  writer.Id(label.device);
  writer.Id(label.cluster);
  writer.U64(label.sequence);
  writer.U64(label.device_bytes);
  writer.U64(label.data_offset);
  writer.U64(label.data_bytes);
  writer.I64(label.created_unix_seconds);
  WriteName(writer, label.site);
  WriteName(writer, label.device_name);
  WriteName(writer, label.device_class);
  writer.ZerosUpTo(kChecksumOffset);
  writer.U32(Crc32c(writer.bytes()));
  return writer.Take();
}

absl::StatusOr<Label> DecodeLabel(absl::string_view bytes) {
  bytes = bytes.substr(0, kLabelBytes);
  if (!absl::StartsWith(bytes, kMagic)) {
    if (IsLabelWithoutMagic(bytes)) return Damaged("its magic is wrong");
    return absl::NotFoundError("no device label here");
  }
  if (bytes.size() < kLabelBytes) return Damaged("it is cut short");
  if (ByteReader(bytes.substr(kChecksumOffset)).U32() != Crc32c(bytes.substr(0, kChecksumOffset))) {
    return Damaged("its checksum does not match");
  }
  ByteReader reader(bytes.substr(kMagic.size(), kChecksumOffset - kMagic.size()));
  const uint32_t version = reader.U32();
  if (version > kLabelVersion) {
    return absl::UnimplementedError(absl::StrCat("device label has format ", version,
                                                 ", this Braid reads ", kLabelVersion,
                                                 "; use the newer Braid that wrote it"));
  }
  if (version != kLabelVersion) return Damaged("version 0");
  if (reader.U32() != 0) return Damaged("its reserved field is not 0");
  Label label;
  label.device = reader.Id();
  label.cluster = reader.Id();
  label.sequence = reader.U64();
  label.device_bytes = reader.U64();
  label.data_offset = reader.U64();
  label.data_bytes = reader.U64();
  label.created_unix_seconds = reader.I64();
  label.site = ReadName(reader);
  label.device_name = ReadName(reader);
  label.device_class = ReadName(reader);
  if (absl::Status s = CheckLabel(label); !s.ok()) return Damaged(s.message());
  return label;
}

absl::StatusOr<Label> ChooseLabel(absl::string_view first, absl::string_view second) {
  absl::StatusOr<Label> a = DecodeLabel(first), b = DecodeLabel(second);
  if (absl::IsUnimplemented(a.status())) return a;
  if (absl::IsUnimplemented(b.status())) return b;
  if (a.ok() && b.ok()) {
    if (a->sequence == b->sequence && !(*a == *b)) {
      return Damaged("its two copies differ and neither is the newer");
    }
    return a->sequence >= b->sequence ? a : b;
  }
  if (a.ok() || b.ok()) return a.ok() ? a : b;
  return absl::IsDataLoss(a.status()) ? a : b;
}

}  // namespace braid
