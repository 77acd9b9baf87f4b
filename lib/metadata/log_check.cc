// The format (of LevelDB's logs, which RocksDB's are while log files are not recycled):
// blocks of 32 KiB hold fragments
//
//   masked CRC-32C of type and payload 4 | payload length 2 | type 1 | payload
//
// little-endian, none across the end of a block; what is left of a block, if less than a
// fragment's head, is zeros. A record is one fragment (full) or several (first, middle...,
// last).
#include "lib/metadata/log_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/base/checksum.h"
#include "lib/base/units.h"
#include "lib/format/codec.h"

namespace braid {
namespace {

constexpr size_t kBlockBytes = 32 * kKiB;
constexpr size_t kHeadBytes = 7;
enum FragmentType : uint8_t { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };

uint32_t Mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8U; }

struct Fragment {
  uint32_t checksum = 0;
  size_t length = 0;  // of the payload
  uint8_t type = 0;
};

// `at` is at least kHeadBytes before the end of `bytes`.
Fragment HeadAt(absl::string_view bytes, size_t at) {
  ByteReader reader(bytes.substr(at, kHeadBytes));
  Fragment f;
  f.checksum = reader.U32();
  f.length = reader.U16();
  f.type = reader.U8();
  return f;
}

size_t BlockEnd(size_t at) { return (at / kBlockBytes + 1) * kBlockBytes; }

bool ChecksumFits(absl::string_view bytes, size_t at, const Fragment& f, size_t length) {
  return f.checksum == Mask(Crc32c(bytes.substr(at + kHeadBytes - 1, 1 + length)));
}

bool IsGood(absl::string_view bytes, size_t at) {
  const size_t end = std::min(bytes.size(), BlockEnd(at));
  if (end - at < kHeadBytes) return false;
  const Fragment f = HeadAt(bytes, at);
  return f.type != 0 && f.length <= end - at - kHeadBytes && ChecksumFits(bytes, at, f, f.length);
}

bool RecordBeginsBehind(absl::string_view bytes, size_t at) {
  for (size_t i = at + 1; i + kHeadBytes <= bytes.size(); ++i) {
    const auto type = static_cast<uint8_t>(bytes[i + kHeadBytes - 1]);
    if ((type == kFull || type == kFirst) && IsGood(bytes, i)) return true;
  }
  return false;
}

// Whether the file ends before the fragment at `at` does. Not so when what there is has
// the right checksum: then only its length is wrong.
bool EndsWithin(absl::string_view bytes, size_t at) {
  const size_t there = bytes.size() - at;
  if (there < kHeadBytes) return true;
  const Fragment f = HeadAt(bytes, at);
  const size_t most = BlockEnd(at) - at - kHeadBytes;
  return f.type >= kFull && f.type <= kLast && f.length <= most && f.length > there - kHeadBytes &&
         !ChecksumFits(bytes, at, f, there - kHeadBytes);
}

bool HasSectorOfZeros(absl::string_view bytes, size_t from) {
  for (size_t sector = from / kSectorBytes * kSectorBytes; sector < bytes.size();
       sector += kSectorBytes) {
    // Of the first sector only the part behind `from`, which holds nothing older.
    const size_t begin = std::max(sector, from);
    const absl::string_view part = bytes.substr(begin, sector + kSectorBytes - begin);
    if (part.find_first_not_of('\0') == absl::string_view::npos) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<LogEnd> CheckLog(absl::string_view bytes) {
  size_t at = 0, record = 0;  // record: where the one that is being read begins
  bool within = false;        // behind its first fragment
  while (at < bytes.size()) {
    if (BlockEnd(at) - at < kHeadBytes) {
      at = BlockEnd(at);
      continue;
    }
    if (!IsGood(bytes, at)) break;
    const Fragment f = HeadAt(bytes, at);
    const bool begins = f.type == kFull || f.type == kFirst;
    const bool continues = f.type == kMiddle || f.type == kLast;
    if ((begins && within) || (continues && !within)) {
      return absl::DataLossError(absl::StrCat("fragments out of order at byte ", at));
    }
    if (begins) record = at;
    if (begins || continues) within = f.type == kFirst || f.type == kMiddle;
    at += kHeadBytes + f.length;
  }
  if (at >= bytes.size()) return within ? LogEnd::kTorn : LogEnd::kWhole;
  if (!within) record = at;
  if (!RecordBeginsBehind(bytes, at) &&
      (EndsWithin(bytes, at) || HasSectorOfZeros(bytes, record))) {
    return LogEnd::kTorn;
  }
  return absl::DataLossError(absl::StrCat("checksum does not match at byte ", at));
}

}  // namespace braid
