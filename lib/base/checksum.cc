#include "lib/base/checksum.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <limits>

namespace braid {

uint32_t Crc32c(absl::string_view bytes) {
  uint32_t crc = 0xffffffffU;
  // ISA-L takes an int length and leaves both inversions to us.
  constexpr size_t kMaxStep = std::numeric_limits<int>::max();
  while (!bytes.empty()) {
    const size_t step = std::min(bytes.size(), kMaxStep);
    auto* data = reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data()));
    crc = crc32_iscsi(data, static_cast<int>(step), crc);
    bytes.remove_prefix(step);
  }
  return ~crc;
}

}  // namespace braid
