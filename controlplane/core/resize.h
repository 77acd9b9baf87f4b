// What another size means for a volume's columns and runs. Pure.
//
// A stripe's arithmetic does not depend on the size, so every byte that a volume keeps stays
// at its place in its column, and a size is a length of each column. With a shorter column
// goes the space of the units that lie wholly behind its end (of a thick volume: of the extents
// that lie behind the end of all columns, for it has as many in each). What is kept of the
// unit or extent in which a column ends is zeroed from there on, since the volume shows it
// again when it grows.
#ifndef BRAID_CONTROLPLANE_CORE_RESIZE_H_
#define BRAID_CONTROLPLANE_CORE_RESIZE_H_

#include <cstdint>
#include <vector>

#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"

namespace braid {

// How long a column is: one past the last of its bytes that are the volume's.
uint64_t ColumnBytes(const Geometry& geometry, uint32_t column);

// What a volume has in a column.
struct ColumnRange {
  uint32_t column = 0;
  uint64_t begin = 0;  // bytes from the column's first byte
  uint64_t end = 0;
};
// Of each column that becomes shorter, the bytes that the volume loses.
std::vector<ColumnRange> LostRanges(const Geometry& before, const Geometry& after);

// The part of a run that lies in `range`, in units, as a run; count 0 when there is none. A unit
// that lies in it partly counts.
MapRun PartOf(const MapRun& run, const ColumnRange& range);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_RESIZE_H_
