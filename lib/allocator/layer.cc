#include "lib/allocator/layer.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "lib/mapping/geometry.h"

namespace braid {
namespace {

constexpr size_t kNoDevice = ~size_t{0};
constexpr uint32_t kNoColumn = ~uint32_t{0};

bool MayStand(const SpreadShape& shape, const LayerCells& cells, uint32_t column, uint32_t leg,
              size_t device) {
  for (uint32_t l = 0; l < shape.legs; ++l) {
    if (cells[column * shape.legs + l] == device) return false;
  }
  for (uint32_t c = 0; c < shape.columns; ++c) {
    if (cells[c * shape.legs + leg] == device) return false;
  }
  return true;
}

// Whether all cells are taken and each column stands on enough nodes.
bool IsWhole(const SpreadShape& shape, const std::vector<SpreadDevice>& devices,
             const LayerCells& cells) {
  for (uint32_t column = 0; column < shape.columns; ++column) {
    absl::flat_hash_set<uint32_t> nodes;
    for (uint32_t leg = 0; leg < shape.legs; ++leg) {
      const size_t device = cells[column * shape.legs + leg];
      if (device == kNoDevice) return false;
      nodes.insert(devices[device].node);
    }
    if (nodes.size() < shape.nodes) return false;
  }
  return true;
}

// Keeps the cells whose devices still have a share and fills the gaps with what is left,
// first fit. May fail where Deal does not; then the result is not whole.
LayerCells Mend(const SpreadShape& shape, const std::vector<SpreadDevice>& devices,
                const std::vector<LayerShare>& shares, LayerCells cells) {
  absl::flat_hash_map<size_t, uint32_t> left;
  for (const LayerShare& share : shares) left[share.device] = share.cells;
  for (size_t& device : cells) {
    const auto it = left.find(device);
    if (it == left.end() || it->second == 0) {
      device = kNoDevice;
    } else {
      --it->second;
    }
  }
  for (uint32_t column = 0; column < shape.columns; ++column) {
    for (uint32_t leg = 0; leg < shape.legs; ++leg) {
      size_t& cell = cells[column * shape.legs + leg];
      if (cell != kNoDevice) continue;
      const auto on_node = [&](uint32_t node) {
        for (uint32_t l = 0; l < shape.legs; ++l) {
          const size_t other = cells[column * shape.legs + l];
          if (other != kNoDevice && devices[other].node == node) return true;
        }
        return false;
      };
      size_t chosen = kNoDevice;
      for (const LayerShare& share : shares) {
        if (left[share.device] == 0 || !MayStand(shape, cells, column, leg, share.device)) continue;
        const bool new_node = !on_node(devices[share.device].node);
        if (chosen == kNoDevice || new_node) chosen = share.device;
        if (new_node) break;
      }
      if (chosen == kNoDevice) return cells;
      --left[chosen];
      cell = chosen;
    }
  }
  return cells;
}

// Colours the edges (column, device) with legs, one edge after the other; where no leg is
// free at both ends, swaps two legs along the path that is in the way (König).
class LegColouring {
 public:
  explicit LegColouring(const SpreadShape& shape)
      : legs_(shape.legs), cells_(size_t{shape.columns} * shape.legs, kNoDevice) {}

  void Add(uint32_t column, size_t device) {
    auto& at_device = columns_.try_emplace(device, NoColumns()).first->second;
    uint32_t column_leg = 0, device_leg = 0;
    while (cells_[column * legs_ + column_leg] != kNoDevice) ++column_leg;
    while (at_device[device_leg] != kNoColumn) ++device_leg;
    assert(column_leg < legs_ && device_leg < legs_);
    if (at_device[column_leg] != kNoColumn) Swap(device, column_leg, device_leg);
    Set(column, device, column_leg);
  }

  const LayerCells& cells() const { return cells_; }

 private:
  using Columns = std::array<uint32_t, kMaxLegs>;
  struct Edge {
    uint32_t column;
    size_t device;
    uint32_t leg;
  };

  static Columns NoColumns() {
    Columns columns;
    columns.fill(kNoColumn);
    return columns;
  }

  void Set(uint32_t column, size_t device, uint32_t leg) {
    cells_[column * legs_ + leg] = device;
    columns_.at(device)[leg] = column;
  }

  // Exchanges legs a and b along the path from `device` that begins with a; afterwards a
  // is free there. The path never comes to a column where a is free: it enters columns
  // by a.
  void Swap(size_t device, uint32_t a, uint32_t b) {
    std::vector<Edge> path;
    for (;;) {
      const uint32_t column = columns_.at(device)[a];
      if (column == kNoColumn) break;
      path.push_back({column, device, a});
      device = cells_[column * legs_ + b];
      if (device == kNoDevice) break;
      path.push_back({column, device, b});
    }
    for (const Edge& e : path) {
      cells_[e.column * legs_ + e.leg] = kNoDevice;
      columns_.at(e.device)[e.leg] = kNoColumn;
    }
    for (const Edge& e : path) Set(e.column, e.device, e.leg == a ? b : a);
  }

  const uint32_t legs_;
  LayerCells cells_;
  absl::flat_hash_map<size_t, Columns> columns_;  // of each device, by leg
};

LayerCells Deal(const SpreadShape& shape, const std::vector<LayerShare>& shares) {
  LegColouring colouring(shape);
  uint32_t column = 0;
  for (const LayerShare& share : shares) {
    for (uint32_t i = 0; i < share.cells; ++i) {
      colouring.Add(column, share.device);
      column = (column + 1) % shape.columns;
    }
  }
  return colouring.cells();
}

}  // namespace

LayerCells ArrangeLayer(const SpreadShape& shape, const std::vector<SpreadDevice>& devices,
                        const std::vector<LayerShare>& shares, const LayerCells& previous) {
  if (!previous.empty()) {
    LayerCells mended = Mend(shape, devices, shares, previous);
    if (IsWhole(shape, devices, mended)) return mended;
  }
  LayerCells dealt = Deal(shape, shares);
  assert(IsWhole(shape, devices, dealt));
  return dealt;
}

}  // namespace braid
