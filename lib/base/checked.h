// Arithmetic on numbers that came from outside: disk, network, user.
#ifndef BRAID_LIB_BASE_CHECKED_H_
#define BRAID_LIB_BASE_CHECKED_H_

#include <cstdint>
#include <optional>

namespace braid {

// Each returns nullopt where the exact result does not fit 64 bits.
constexpr std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}
constexpr std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

// True when [offset, offset + length) lies within [0, size), without wrapping.
constexpr bool RangeFits(uint64_t offset, uint64_t length, uint64_t size) {
  return length <= size && offset <= size - length;
}

// Rounded up; `divisor` is not 0. No intermediate value overflows.
constexpr uint64_t DivideUp(uint64_t a, uint64_t divisor) {
  return a / divisor + (a % divisor != 0 ? 1 : 0);
}

}  // namespace braid

#endif  // BRAID_LIB_BASE_CHECKED_H_
