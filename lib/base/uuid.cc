#include "lib/base/uuid.h"

#include <sys/random.h>

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace braid {
namespace {

// Where the dashes stand in the 36-character form.
constexpr bool IsDash(size_t i) { return i == 8 || i == 13 || i == 18 || i == 23; }

}  // namespace

Uuid Uuid::Random() {
  std::array<uint8_t, kBytes> b{};
  // Reads of up to 256 bytes are never cut short once the pool is ready (random(7)).
  if (getrandom(b.data(), b.size(), 0) != static_cast<ssize_t>(b.size())) abort();
  b[6] = static_cast<uint8_t>((b[6] & 0x0f) | 0x40);
  b[8] = static_cast<uint8_t>((b[8] & 0x3f) | 0x80);
  return Uuid(b);
}

absl::StatusOr<Uuid> Uuid::Parse(absl::string_view text) {
  auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(text.substr(0, 64)), "' is not a UUID"));
  };
  if (text.size() != 36) return bad();
  std::string hex;
  for (size_t i = 0; i < text.size(); ++i) {
    if (IsDash(i)) {
      if (text[i] != '-') return bad();
    } else if (absl::ascii_isxdigit(static_cast<unsigned char>(text[i]))) {
      hex.push_back(text[i]);
    } else {
      return bad();
    }
  }
  const std::string raw = absl::HexStringToBytes(hex);
  std::array<uint8_t, kBytes> b{};
  for (size_t i = 0; i < kBytes; ++i) b[i] = static_cast<uint8_t>(raw[i]);
  return Uuid(b);
}

std::string Uuid::ToString() const {
  const std::string hex = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes_.data()), bytes_.size()));
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

}  // namespace braid
