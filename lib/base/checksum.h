// CRC-32C (Castagnoli), the checksum of every record Braid writes to a device.
#ifndef BRAID_LIB_BASE_CHECKSUM_H_
#define BRAID_LIB_BASE_CHECKSUM_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace braid {

// RFC 3720 appendix B.4: initial value and final xor are all ones.
// Crc32c("123456789") == 0xe3069283. Thread-safe.
uint32_t Crc32c(absl::string_view bytes);

}  // namespace braid

#endif  // BRAID_LIB_BASE_CHECKSUM_H_
