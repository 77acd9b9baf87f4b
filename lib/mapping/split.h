// From a request to the pieces that one look-up each serves.
#ifndef BRAID_LIB_MAPPING_SPLIT_H_
#define BRAID_LIB_MAPPING_SPLIT_H_

#include <algorithm>
#include <cstdint>
#include <utility>

#include "lib/mapping/geometry.h"

namespace braid {

// A part of a request that lies in one extent (and one stripe unit) of one column.
struct Piece {
  uint64_t volume_offset = 0;
  uint64_t length = 0;  // bytes, at least 1
  ColumnPlace place;
};

// Calls fn(Piece) for each piece of [offset, offset + length), in volume order, until
// done or fn returns false. The range lies within the volume. Returns whether all
// pieces were visited.
template <class Fn>
bool ForEachPiece(const Geometry& geometry, uint64_t offset, uint64_t length, Fn&& fn) {
  while (length > 0) {
    const uint64_t step = std::min(length, geometry.ContiguousBytes(offset));
    if (!fn(Piece{offset, step, geometry.Locate(offset)})) return false;
    offset += step;
    length -= step;
  }
  return true;
}

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_SPLIT_H_
