#include "lib/mapping/geometry.h"

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid {

absl::StatusOr<Geometry> Geometry::Make(uint64_t size_bytes, uint32_t columns,
                                        uint64_t stripe_bytes, uint32_t legs) {
  if (size_bytes == 0 || size_bytes > kMaxVolumeBytes || size_bytes % kSectorBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a volume of ", size_bytes, " bytes cannot be; take a multiple of ",
                     kSectorBytes, " from ", kSectorBytes, " to ", kMaxVolumeBytes));
  }
  if (columns == 0 || columns > kMaxColumns) {
    return absl::InvalidArgumentError(
        absl::StrCat("a volume cannot have ", columns, " stripes; take from 1 to ", kMaxColumns));
  }
  if (columns > 1 && (stripe_bytes < kMinStripeBytes || stripe_bytes > kMaxStripeBytes ||
                      (stripe_bytes & (stripe_bytes - 1)) != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("a stripe size of ", stripe_bytes,
                                                   " bytes cannot be; take a power of two from ",
                                                   kMinStripeBytes, " to ", kMaxStripeBytes));
  }
  if (legs == 0 || legs > kMaxLegs) {
    return absl::InvalidArgumentError(
        absl::StrCat("a volume cannot have ", legs, " copies; take from 1 to ", kMaxLegs));
  }

  Geometry geometry;
  geometry.size_bytes_ = size_bytes;
  geometry.columns_ = columns;
  geometry.legs_ = legs;
  geometry.stripe_bytes_ = columns == 1 ? kExtentBytes : stripe_bytes;
  if (columns > 1) {
    geometry.stripe_shift_ = static_cast<uint32_t>(__builtin_ctzll(stripe_bytes));
  } else {
    geometry.stripe_shift_ = legs > 1 ? 63 : 0;
  }
  // Unused with one column, where it would not fit.
  geometry.column_reciprocal_ = columns == 1 ? 0 : UINT64_MAX / columns + 1;
  // As long as the longest column, which is the first.
  const uint64_t stripes = DivideUp(size_bytes, geometry.stripe_bytes_);
  const uint64_t rounds = DivideUp(stripes, columns);
  geometry.extents_per_column_ = DivideUp(rounds * geometry.stripe_bytes_, kExtentBytes);
  return geometry;
}

}  // namespace braid
