// One layer of a placement (spread.h): which cell of the grid stands on which device.
#ifndef BRAID_LIB_ALLOCATOR_LAYER_H_
#define BRAID_LIB_ALLOCATOR_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/allocator/spread.h"

namespace braid {

// How many cells of the layer a device takes; not 0.
struct LayerShare {
  size_t device = 0;
  uint32_t cells = 0;
};

// cells[column * legs + leg] is a device; empty before the first layer.
using LayerCells = std::vector<size_t>;

// Arranges `shares`, which are in the row's order of spread.h and keep its conditions for
// one layer. Changes as few cells of `previous` as it can see how to.
LayerCells ArrangeLayer(const SpreadShape& shape, const std::vector<SpreadDevice>& devices,
                        const std::vector<LayerShare>& shares, const LayerCells& previous);

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_LAYER_H_
