// 128-bit random identifiers (RFC 4122 version 4) for devices, volumes, clusters.
#ifndef BRAID_LIB_BASE_UUID_H_
#define BRAID_LIB_BASE_UUID_H_

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace braid {

class Uuid {
 public:
  static constexpr size_t kBytes = 16;

  constexpr Uuid() = default;  // nil
  explicit constexpr Uuid(const std::array<uint8_t, kBytes>& bytes) : bytes_(bytes) {}

  // From the kernel's random source. Thread-safe.
  static Uuid Random();
  // The 36-character form, either case. InvalidArgument for anything else.
  static absl::StatusOr<Uuid> Parse(absl::string_view text);

  std::string ToString() const;  // 36 characters, lower case
  bool IsNil() const { return *this == Uuid(); }
  const std::array<uint8_t, kBytes>& bytes() const { return bytes_; }

  // clang-tidy 14 takes the 0 that a defaulted <=> is compared with for a pointer.
  friend auto operator<=>(const Uuid&, const Uuid&) = default;  // NOLINT(modernize-use-nullptr)
  template <typename H>
  friend H AbslHashValue(H h, const Uuid& u) {
    return H::combine(std::move(h), u.bytes_);
  }

 private:
  std::array<uint8_t, kBytes> bytes_{};
};

}  // namespace braid

#endif  // BRAID_LIB_BASE_UUID_H_
