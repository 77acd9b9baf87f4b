// The shape of a volume, and the arithmetic from a volume offset to a place in a
// column. Pure: no I/O, no locks, no allocation.
//
//   volume offset --stripes--> (column, column offset) --page table--> (device, unit) per leg
//
// Stripe unit i of the volume (stripe_bytes long) lies in column i % columns, at
// column offset (i / columns) * stripe_bytes. A volume with one column is its column.
// Each column is divided into large extents; each extent has one copy per leg.
#ifndef BRAID_LIB_MAPPING_GEOMETRY_H_
#define BRAID_LIB_MAPPING_GEOMETRY_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "lib/base/checked.h"
#include "lib/base/units.h"

namespace braid {

// Bounds of a volume, each with its reason.
// NBD and off_t speak of offsets below 2^63.
inline constexpr uint64_t kMaxVolumeBytes = (uint64_t{1} << 63) - kSectorBytes;
// Legs of one extent lie side by side: four fill half a cache line.
inline constexpr uint32_t kMaxLegs = 4;
// More columns than this make every large request touch hundreds of devices.
inline constexpr uint32_t kMaxColumns = 64;
// A smaller stripe would cut pages in two; a larger one would cut across extents.
inline constexpr uint64_t kMinStripeBytes = 4 * kKiB;
inline constexpr uint64_t kMaxStripeBytes = kExtentBytes;
inline constexpr uint64_t kDefaultStripeBytes = 64 * kKiB;

// Where a byte of the volume lies, before the map is asked.
struct ColumnPlace {
  uint32_t column = 0;
  uint64_t offset = 0;  // bytes from the column's first byte
};

class Geometry {
 public:
  Geometry() = default;  // an empty linear volume

  // size_bytes: 1 sector to kMaxVolumeBytes, whole sectors. columns: 1 to
  // kMaxColumns. stripe_bytes: a power of two from kMinStripeBytes to
  // kMaxStripeBytes; taken as kExtentBytes when columns is 1. legs: 1 to kMaxLegs.
  // InvalidArgument says which is wrong and what would be right.
  static absl::StatusOr<Geometry> Make(uint64_t size_bytes, uint32_t columns, uint64_t stripe_bytes,
                                       uint32_t legs);

  uint64_t size_bytes() const { return size_bytes_; }
  uint32_t columns() const { return static_cast<uint32_t>(columns_); }
  uint64_t stripe_bytes() const { return stripe_bytes_; }
  uint32_t legs() const { return static_cast<uint32_t>(legs_); }
  // One column of one leg: a row is an extent and has one word.
  bool plain() const { return stripe_shift_ == 0; }
  // Large extents in each column; the last may reach past the volume's end.
  uint64_t extents_per_column() const { return extents_per_column_; }
  // The same in units of kSmallExtentBytes.
  uint64_t units_per_column() const { return extents_per_column_ * kSmallPerExtent; }
  // Rows of the page table: columns * extents_per_column.
  uint64_t rows() const { return extents_per_column_ * columns_; }
  // Device bytes a thick volume takes, all legs together; UINT64_MAX, which no pool has,
  // where that is more (copies of a volume of nearly 2^63 bytes).
  uint64_t allocated_bytes() const {
    return CheckedMul(rows() * legs_, kExtentBytes).value_or(UINT64_MAX);
  }

  // Where volume byte `offset` lies. offset < size_bytes(). Inline: it is part of
  // every look-up.
  ColumnPlace Locate(uint64_t offset) const {
    if (plain()) return {0, offset};
    const uint64_t stripe = offset >> stripe_shift_;
    const uint64_t round = DivideByColumns(stripe);
    // What the stripe units of the other columns take is taken out.
    return {static_cast<uint32_t>(stripe - round * columns_),
            offset - ((stripe - round) << stripe_shift_)};
  }
  // The inverse of Locate; the result may lie past size_bytes() for places in the
  // unused tail of a column.
  uint64_t VolumeOffset(ColumnPlace place) const {
    if (columns_ == 1) return place.offset;
    const uint64_t round = place.offset >> stripe_shift_;
    return ((round * columns_ + place.column) << stripe_shift_) |
           (place.offset & (stripe_bytes_ - 1));
  }
  // Bytes from volume offset `offset` to the end of its stripe unit or extent,
  // whichever comes first: as far as one look-up serves. Not cut at size_bytes().
  uint64_t ContiguousBytes(uint64_t offset) const {
    const uint64_t unit = columns_ == 1 ? kExtentBytes : stripe_bytes_;
    return unit - (offset & (unit - 1));
  }
  // The row of the page table for a place: rows of one extent index of all columns lie
  // together, so that a volume grows at the end of the table.
  uint64_t Row(ColumnPlace place) const {
    return (place.offset / kExtentBytes) * columns_ + place.column;
  }
  uint64_t Row(uint32_t column, ExtentIndex extent) const {
    return extent.value() * columns_ + column;
  }

 private:
  // stripe / columns_ by a multiplication, as compilers divide by constants: a division
  // takes longer, and a shift for powers of two would be a second path for nothing
  // (docs/PERFORMANCE.md). Exact: with m = ceil(2^64 / c), m * c = 2^64 + e for an e in
  // [0, c), and the product is too large by stripe * e / (c * 2^64), which is less than
  // 1 / c, the least that could reach the next whole number, while stripe * e < 2^64. Here
  // stripe < 2^51 (2^63 bytes in stripes of 4 KiB) and e < 2^6.
  uint64_t DivideByColumns(uint64_t stripe) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((Wide{stripe} * column_reciprocal_) >> 64);
  }

  uint64_t size_bytes_ = 0;
  uint64_t stripe_bytes_ = kExtentBytes;
  uint64_t extents_per_column_ = 0;
  // Wider than they need, as look-ups reckon with them.
  uint64_t columns_ = 1;
  uint64_t legs_ = 1;
  // Of stripe_bytes_ where there are several columns. With one column 63, so that Locate
  // finds every offset in stripe 0 and leaves it as it is; 0 in a plain volume, which does
  // not get so far: one field answers both questions of a look-up.
  uint32_t stripe_shift_ = 0;
  uint64_t column_reciprocal_ = 0;  // ceil(2^64 / columns)
};

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_GEOMETRY_H_
