#include "lib/allocator/spread.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <tuple>

#include "lib/allocator/layer.h"
#include "lib/base/checked.h"

namespace braid {
namespace {

uint32_t NodeCount(const std::vector<SpreadDevice>& devices) {
  uint32_t count = 0;
  for (const SpreadDevice& device : devices) count = std::max(count, device.node + 1);
  return count;
}

// Hands out extents until one of the conditions of spread.h would break.
class Sharing {
 public:
  Sharing(const SpreadShape& shape, const std::vector<SpreadDevice>& devices)
      : shape_(shape),
        devices_(devices),
        shares_(devices.size()),
        node_room_(NodeCount(devices), shape.extents * shape.columns),
        surplus_room_(shape.extents * shape.columns * (shape.legs - shape.nodes)),
        left_(shape.extents * shape.columns * shape.legs) {}

  // The roomiest first; each gets at most `most` more, as many as that, or (unless
  // pieces) none, and no more than `turn` cells' worth in all.
  void Round(uint32_t turn, bool pieces) {
    std::vector<size_t> order(devices_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return devices_[a].free - shares_[a] > devices_[b].free - shares_[b];
    });
    for (size_t d : order) {
      if (left_ == 0) return;
      const uint64_t limit = std::min(devices_[d].free, turn * shape_.extents);
      if (limit <= shares_[d]) continue;
      const uint64_t amount =
          std::min({limit - shares_[d], node_room_[devices_[d].node] + surplus_room_, left_});
      if (pieces) {
        Take(d, amount);
      } else if (amount >= shape_.extents) {
        Take(d, shape_.extents);
      }
    }
  }

  uint64_t left() const { return left_; }
  std::vector<uint64_t> shares() && { return std::move(shares_); }

 private:
  void Take(size_t d, uint64_t amount) {
    uint64_t& room = node_room_[devices_[d].node];
    const uint64_t own = std::min(amount, room);
    room -= own;
    surplus_room_ -= amount - own;
    shares_[d] += amount;
    left_ -= amount;
  }

  const SpreadShape& shape_;
  const std::vector<SpreadDevice>& devices_;
  std::vector<uint64_t> shares_;
  std::vector<uint64_t> node_room_;  // until a node has one cell of each column
  uint64_t surplus_room_;            // beyond that, of all nodes together
  uint64_t left_;
};

// What is still to be laid out: shares for `layers` layers.
class Weaving {
 public:
  Weaving(const SpreadShape& shape, const std::vector<SpreadDevice>& devices,
          std::vector<uint64_t> shares)
      : shape_(shape),
        devices_(devices),
        shares_(std::move(shares)),
        node_count_(NodeCount(devices)),
        layers_(shape.extents) {}

  uint64_t layers() const { return layers_; }

  // What one layer gets, in the row's order.
  std::vector<LayerShare> NextLayer() const {
    const std::vector<uint64_t> of_node = NodeSums(0, {});
    std::vector<size_t> row;
    for (size_t d = 0; d < shares_.size(); ++d) {
      if (shares_[d] > 0) row.push_back(d);
    }
    const auto place = [&](size_t d) {
      const uint32_t node = devices_[d].node;
      return std::tuple(of_node[node] <= layers_ * shape_.columns, node, ~shares_[d], d);
    };
    std::sort(row.begin(), row.end(), [&](size_t a, size_t b) { return place(a) < place(b); });
    std::vector<LayerShare> layer;
    uint64_t sum = 0;
    for (size_t d : row) {
      const uint64_t before = DivideUp(sum, layers_);
      sum += shares_[d];
      const uint64_t cells = DivideUp(sum, layers_) - before;
      if (cells > 0) layer.push_back({d, static_cast<uint32_t>(cells)});
    }
    return layer;
  }

  // How many layers can be alike, this one and those after it, so that the rest can still
  // be laid out. The conditions are convex in that number, so they hold up to some number
  // and not beyond: bisection.
  uint64_t Repeats(const std::vector<LayerShare>& layer) const {
    uint64_t most = layers_;
    for (const LayerShare& share : layer) {
      most = std::min(most, shares_[share.device] / share.cells);
    }
    uint64_t good = 1;
    assert(most >= 1 && Fits(1, layer));
    while (good < most) {
      const uint64_t middle = good + (most - good + 1) / 2;
      if (Fits(middle, layer)) {
        good = middle;
      } else {
        most = middle - 1;
      }
    }
    return good;
  }

  void Take(uint64_t repeats, const std::vector<LayerShare>& layer) {
    for (const LayerShare& share : layer) shares_[share.device] -= repeats * share.cells;
    layers_ -= repeats;
  }

 private:
  std::vector<uint64_t> NodeSums(uint64_t repeats, const std::vector<LayerShare>& layer) const {
    std::vector<uint64_t> sums(node_count_);
    for (size_t d = 0; d < shares_.size(); ++d) sums[devices_[d].node] += shares_[d];
    for (const LayerShare& share : layer)
      sums[devices_[share.device].node] -= repeats * share.cells;
    return sums;
  }

  // The conditions of spread.h for what is left after `repeats` such layers.
  bool Fits(uint64_t repeats, const std::vector<LayerShare>& layer) const {
    const uint64_t rest = layers_ - repeats;
    std::vector<uint64_t> shares = shares_;
    for (const LayerShare& share : layer) shares[share.device] -= repeats * share.cells;
    const uint64_t most = rest * std::min(shape_.columns, shape_.legs);
    if (std::any_of(shares.begin(), shares.end(), [&](uint64_t s) { return s > most; })) {
      return false;
    }
    uint64_t surplus = 0;
    for (uint64_t sum : NodeSums(repeats, layer)) {
      surplus += sum - std::min(sum, rest * shape_.columns);
    }
    return surplus <= rest * shape_.columns * (shape_.legs - shape_.nodes);
  }

  const SpreadShape& shape_;
  const std::vector<SpreadDevice>& devices_;
  std::vector<uint64_t> shares_;
  const uint32_t node_count_;
  uint64_t layers_;
};

}  // namespace

std::optional<std::vector<uint64_t>> ShareExtents(const SpreadShape& shape,
                                                  const std::vector<SpreadDevice>& devices) {
  Sharing sharing(shape, devices);
  const uint32_t turns = std::min(shape.columns, shape.legs);
  for (bool pieces : {false, true}) {
    for (uint32_t turn = 1; turn <= turns; ++turn) sharing.Round(turn, pieces);
  }
  if (sharing.left() > 0) return std::nullopt;
  return std::move(sharing).shares();
}

std::vector<SpreadSegment> WeaveSegments(const SpreadShape& shape,
                                         const std::vector<SpreadDevice>& devices,
                                         std::vector<uint64_t> shares) {
  Weaving weaving(shape, devices, std::move(shares));
  std::vector<std::vector<SpreadSegment>> of_cell(size_t{shape.columns} * shape.legs);
  LayerCells cells;
  while (weaving.layers() > 0) {
    const std::vector<LayerShare> layer = weaving.NextLayer();
    const uint64_t repeats = weaving.Repeats(layer);
    cells = ArrangeLayer(shape, devices, layer, cells);
    const uint64_t first = shape.extents - weaving.layers();
    for (size_t i = 0; i < cells.size(); ++i) {
      std::vector<SpreadSegment>& segments = of_cell[i];
      if (!segments.empty() && segments.back().device == cells[i]) {
        segments.back().count += repeats;
      } else {
        segments.push_back({static_cast<uint32_t>(i / shape.legs),
                            static_cast<uint32_t>(i % shape.legs), first, repeats, cells[i]});
      }
    }
    weaving.Take(repeats, layer);
  }
  std::vector<SpreadSegment> all;
  for (const auto& segments : of_cell) all.insert(all.end(), segments.begin(), segments.end());
  return all;
}

}  // namespace braid
