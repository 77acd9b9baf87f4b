// From a range of the volume to units of its columns: what of it can be bound and unbound.
// Pure.
#ifndef BRAID_LIB_VOLUME_COLUMN_UNITS_H_
#define BRAID_LIB_VOLUME_COLUMN_UNITS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "lib/base/checked.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/split.h"

namespace braid {

// Units [first, first + count) of a column.
struct UnitRange {
  uint32_t column = 0;
  ColumnUnit first;
  uint64_t count = 0;

  ColumnUnit end() const { return first + count; }
  bool Contains(uint32_t of_column, ColumnUnit unit) const {
    return column == of_column && first <= unit && unit < end();
  }
  friend bool operator==(const UnitRange&, const UnitRange&) = default;
};
using UnitRanges = std::vector<UnitRange>;

inline ColumnUnit UnitOf(ColumnPlace place) { return ColumnUnit(place.offset / kSmallExtentBytes); }
inline ColumnPlace PlaceOf(uint32_t column, ColumnUnit unit) {
  return {column, unit.value() * kSmallExtentBytes};
}

// Bytes of `column` that lie before volume byte `offset` (at most the volume's size).
inline uint64_t ColumnBytesBefore(const Geometry& geometry, uint32_t column, uint64_t offset) {
  if (geometry.columns() == 1) return offset;
  const uint64_t stripe_bytes = geometry.stripe_bytes();
  const uint64_t stripe = offset / stripe_bytes;
  const uint64_t round = stripe / geometry.columns();
  const uint64_t in_round = stripe % geometry.columns();
  if (column < in_round) return (round + 1) * stripe_bytes;
  return round * stripe_bytes + (column == in_round ? offset % stripe_bytes : 0);
}

// Units of the column that the volume reaches into.
inline uint64_t UnitsInUse(const Geometry& geometry, uint32_t column) {
  return DivideUp(ColumnBytesBefore(geometry, column, geometry.size_bytes()), kSmallExtentBytes);
}

// The units that lie wholly in [offset, offset + length), as far as the volume has them: one
// range for each column that has any.
inline UnitRanges WholeUnits(const Geometry& geometry, uint64_t offset, uint64_t length) {
  UnitRanges ranges;
  const uint64_t end = offset + length;
  for (uint32_t column = 0; column < geometry.columns(); ++column) {
    const uint64_t from = DivideUp(ColumnBytesBefore(geometry, column, offset), kSmallExtentBytes);
    const uint64_t to = end == geometry.size_bytes()
                            ? UnitsInUse(geometry, column)
                            : ColumnBytesBefore(geometry, column, end) / kSmallExtentBytes;
    if (from < to) ranges.push_back({column, ColumnUnit(from), to - from});
  }
  return ranges;
}

// Multiples of this many volume bytes lie between units in every column.
inline uint64_t UnitRoundBytes(const Geometry& geometry) {
  if (geometry.columns() == 1 || geometry.stripe_bytes() >= kSmallExtentBytes) {
    return kSmallExtentBytes;
  }
  return geometry.columns() * kSmallExtentBytes;
}

// The volume range that units [first, first + count) of a column lie in; other columns'
// stripes may lie between.
struct VolumeRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};
inline VolumeRange RangeOf(const Geometry& geometry, const UnitRange& units) {
  const uint64_t begin = geometry.VolumeOffset(PlaceOf(units.column, units.first));
  const ColumnPlace last = {units.column, units.end().value() * kSmallExtentBytes - 1};
  const uint64_t end = std::min(geometry.VolumeOffset(last) + 1, geometry.size_bytes());
  return {begin, end - begin};
}

// Calls fn(Piece) for each piece of the range, cut at units as well: one look-up serves a
// piece of a volume with small extents.
template <class Fn>
bool ForEachUnitPiece(const Geometry& geometry, uint64_t offset, uint64_t length, Fn&& fn) {
  return ForEachPiece(geometry, offset, length, [&](const Piece& piece) {
    for (uint64_t done = 0; done < piece.length;) {
      const uint64_t at = piece.place.offset + done;
      const uint64_t step =
          std::min(piece.length - done, kSmallExtentBytes - at % kSmallExtentBytes);
      if (!fn(Piece{piece.volume_offset + done, step, {piece.place.column, at}})) return false;
      done += step;
    }
    return true;
  });
}

// The parts of [offset, offset + length) in which all lies that is not in WholeUnits: at most
// two, the first and the last UnitRoundBytes.
inline absl::InlinedVector<VolumeRange, 2> EdgeRanges(const Geometry& geometry, uint64_t offset,
                                                      uint64_t length) {
  const uint64_t round = UnitRoundBytes(geometry);
  const uint64_t end = offset + length;
  const uint64_t head_end = std::min(end, DivideUp(offset, round) * round);
  const uint64_t tail = end == geometry.size_bytes() ? end : std::max(head_end, end - end % round);
  absl::InlinedVector<VolumeRange, 2> edges;
  if (offset < head_end) edges.push_back({offset, head_end - offset});
  if (tail < end) edges.push_back({tail, end - tail});
  return edges;
}

inline bool AllZero(absl::Span<const char> data) {
  return data.empty() ||
         (data[0] == 0 && memcmp(data.data(), data.data() + 1, data.size() - 1) == 0);
}

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_COLUMN_UNITS_H_
