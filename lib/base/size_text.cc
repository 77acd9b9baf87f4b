#include "lib/base/size_text.h"

#include <limits>

#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace braid {
namespace {

constexpr absl::string_view kUnits = "KMGTPE";

absl::Status BadSize(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("size '", absl::CHexEscape(text.substr(0, 64)),
                                                 "' ", why,
                                                 "; write a size like 512, 64K, 4M, 10G or 1T"));
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  absl::string_view rest = text;
  if (!rest.empty() && rest[0] == '-') return BadSize(text, "is negative");
  // value = whole + fraction / scale, all exact; 128 bits hold any 63-bit result.
  absl::uint128 whole = 0, fraction = 0, scale = 1;
  size_t digits = 0;
  constexpr absl::uint128 kLimit = absl::uint128(1) << 63;
  while (!rest.empty() && absl::ascii_isdigit(static_cast<unsigned char>(rest[0]))) {
    whole = whole * 10 + static_cast<unsigned>(rest[0] - '0');
    if (whole >= kLimit) return BadSize(text, "is not below 2^63 bytes");
    rest.remove_prefix(1);
    ++digits;
  }
  if (digits == 0) return BadSize(text, "is not a size");
  if (!rest.empty() && rest[0] == '.') {
    rest.remove_prefix(1);
    size_t decimals = 0;
    constexpr size_t kMaxDecimals = 9;
    while (!rest.empty() && absl::ascii_isdigit(static_cast<unsigned char>(rest[0]))) {
      if (++decimals > kMaxDecimals) return BadSize(text, "has too many decimals");
      fraction = fraction * 10 + static_cast<unsigned>(rest[0] - '0');
      scale *= 10;
      rest.remove_prefix(1);
    }
    if (decimals == 0) return BadSize(text, "is not a size");
  }
  uint64_t unit = 1;
  if (!rest.empty()) {
    const size_t power = kUnits.find(absl::ascii_toupper(static_cast<unsigned char>(rest[0])));
    if (power != absl::string_view::npos) {
      unit <<= 10 * (power + 1);
      rest.remove_prefix(1);
      absl::ConsumePrefix(&rest, "i");
    }
    absl::ConsumePrefix(&rest, "B");
    if (!rest.empty()) return BadSize(text, "is not a size");
  }
  const absl::uint128 scaled = fraction * unit;
  if (scaled % scale != 0) return BadSize(text, "is not a whole number of bytes");
  const absl::uint128 bytes = whole * unit + scaled / scale;
  if (bytes >= kLimit) return BadSize(text, "is not below 2^63 bytes");
  return static_cast<uint64_t>(bytes);
}

std::string FormatSize(uint64_t bytes) {
  size_t power = 0;
  uint64_t unit = 1;
  while (power < kUnits.size() && bytes / unit >= 1024) {
    unit <<= 10;
    ++power;
  }
  if (power == 0) return absl::StrCat(bytes);
  const char suffix = kUnits[power - 1];
  if (bytes % unit == 0) return absl::StrFormat("%d%c", bytes / unit, suffix);
  // Rounded down, so that a table never promises a byte that is not there.
  const auto tenths = static_cast<uint64_t>(absl::uint128(bytes) * 10 / unit);
  return absl::StrFormat("%d.%d%c", tenths / 10, tenths % 10, suffix);
}

}  // namespace braid
