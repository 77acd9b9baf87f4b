// The arithmetic of placement: how many extents each device gets, and which. Knows
// numbers only; placement.h says what they mean.
//
// A volume is `extents` layers; a layer is a grid of columns x legs cells, each of which
// takes one extent of one device. In every layer
//   - a device stands at most once in each column (copies on different devices) and at
//     most once in each leg (a stripe's columns on different devices),
//   - each column's cells stand on at least `nodes` nodes.
//
// Which amounts can be laid out so? Let m = min(columns, legs), and X(d) the extents that
// device d gives in all, Y(n) those of node n. Necessary for R layers is
//   X(d) <= R m,   sum over n of max(0, Y(n) - R columns) <= R columns (legs - nodes),
//   sum of X = R columns legs,
// since one layer takes at most m of a device, and of a node one per column but for the
// legs - nodes cells by which a column may come short of a node for each of its cells.
// It is also sufficient. Put the devices in a row, those of one node together, nodes with
// more than R columns first, and give a layer of each device the difference of the
// rounded-up partial sums of X/R (McNaughton's wrap-around rule): every stretch of the
// row gets its share rounded up or down, so all three conditions hold for the layer and
// for what is left for R - 1. Within the layer, deal the cells to the columns in turn:
// neighbours in the row, hence cells of one device or of one light node, come to different
// columns, and the heavy nodes' surplus is spread evenly. Now columns and devices are a
// bipartite graph of degree at most `legs`, which König's theorem colours with the legs.
//
// The conditions bound a polymatroid, where taking greedily in any order ends with the
// most there is. So Share may prefer what it likes (whole columns on one device, the
// roomiest first) and still finds amounts whenever there are any.
#ifndef BRAID_LIB_ALLOCATOR_SPREAD_H_
#define BRAID_LIB_ALLOCATOR_SPREAD_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace braid {

struct SpreadShape {
  uint64_t extents = 0;  // layers; extents * columns * legs is below 2^62
  uint32_t columns = 1;
  uint32_t legs = 1;
  uint32_t nodes = 1;  // that each column's cells stand on, at least; 1 to legs
};

struct SpreadDevice {
  uint64_t free = 0;  // large extents
  uint32_t node = 0;  // small numbers, as in an index
};

// Layers [first, first + count) of one cell, on one device (its place in the vector).
struct SpreadSegment {
  uint32_t column = 0;
  uint32_t leg = 0;
  uint64_t first = 0;
  uint64_t count = 0;
  size_t device = 0;
};

// Extents to take of each device, or nullopt where no arrangement exists. Prefers devices
// that can take a cell's layers whole, the roomiest first, each once before any twice;
// what that leaves open goes to the roomiest in pieces.
std::optional<std::vector<uint64_t>> ShareExtents(const SpreadShape& shape,
                                                  const std::vector<SpreadDevice>& devices);

// Lays the shares out. Segments by (column, leg, first), neighbours on one device joined.
std::vector<SpreadSegment> WeaveSegments(const SpreadShape& shape,
                                         const std::vector<SpreadDevice>& devices,
                                         std::vector<uint64_t> shares);

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_SPREAD_H_
