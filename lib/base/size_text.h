// Sizes as people write them: 512, 64K, 4M, 10G, 1T; powers of 1024.
#ifndef BRAID_LIB_BASE_SIZE_TEXT_H_
#define BRAID_LIB_BASE_SIZE_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace braid {

// Digits, then optionally a decimal fraction, then one of K M G T P E (either case,
// "iB" or "B" may follow). "1.5G" is 1536 MiB. InvalidArgument, with a sentence that
// says what a size looks like, for anything else, for negative numbers, and for
// results that are not whole bytes or not below 2^63.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);

// For tables: exact where one unit says it ("64K", "10G"), else one decimal ("1.5G").
std::string FormatSize(uint64_t bytes);

}  // namespace braid

#endif  // BRAID_LIB_BASE_SIZE_TEXT_H_
