#include "lib/allocator/grants.h"

#include <algorithm>
#include <cassert>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "lib/allocator/spread.h"

namespace braid {
namespace {

// What pieces are made of: a row's 64 units, or one.
enum class Size { kRow, kUnit };

constexpr uint64_t UnitsOf(Size size) { return size == Size::kRow ? kSmallPerExtent : 1; }

class Choosing {
 public:
  explicit Choosing(uint32_t legs, const std::vector<PlacementDevice>& devices)
      : legs_(legs), devices_(devices) {
    absl::flat_hash_map<std::string, uint32_t> nodes;
    for (const PlacementDevice& device : devices) {
      nodes_.push_back(
          nodes.try_emplace(device.node, static_cast<uint32_t>(nodes.size())).first->second);
    }
    most_nodes_ = std::min(legs, static_cast<uint32_t>(nodes.size()));
  }

  // Up to `pieces`, dealt to `columns` sets of devices while the pool has room for that, and
  // on as many nodes as the first of them finds. How many were taken.
  uint64_t Take(Size size, uint64_t pieces, uint32_t columns) {
    const uint32_t nodes = NodesFor(size, 1);
    return nodes == 0 ? 0 : TakeOn(nodes, size, pieces, columns);
  }

  // Likewise, on as many nodes as all of them find; where they do not fit, as many as do.
  uint64_t TakeAll(Size size, uint64_t pieces, uint32_t columns) {
    const uint32_t nodes = std::max(NodesFor(size, pieces), uint32_t{1});
    return TakeOn(nodes, size, pieces, columns);
  }

  std::vector<ChosenGrant> grants() && { return std::move(grants_); }

 private:
  std::vector<SpreadDevice> Free(Size size) const {
    std::vector<SpreadDevice> free;
    for (size_t d = 0; d < devices_.size(); ++d) {
      const FreeSpace& space = *devices_[d].space;
      free.push_back(
          {size == Size::kRow ? space.free_large_extents() : space.free_units(), nodes_[d]});
    }
    return free;
  }

  // The most nodes on which so many pieces fit; 0 for none.
  uint32_t NodesFor(Size size, uint64_t pieces) const {
    const std::vector<SpreadDevice> free = Free(size);
    for (uint32_t nodes = most_nodes_; nodes >= 1; --nodes) {
      if (ShareExtents({pieces, 1, legs_, nodes}, free)) return nodes;
    }
    return 0;
  }

  uint64_t TakeOn(uint32_t nodes, Size size, uint64_t pieces, uint32_t columns) {
    uint64_t taken = 0;
    for (uint32_t sets = columns; sets >= 1 && taken < pieces;) {
      sets = static_cast<uint32_t>(std::min<uint64_t>(sets, pieces - taken));
      const uint64_t layers = TakeLayers({(pieces - taken) / sets, sets, legs_, nodes}, size);
      taken += layers * sets;
      if (layers == 0) --sets;
    }
    return taken;
  }

  // As many layers of `shape` as there is room for, up to its number.
  uint64_t TakeLayers(SpreadShape shape, Size size) {
    const std::vector<SpreadDevice> free = Free(size);
    std::optional<std::vector<uint64_t>> shares = ShareExtents(shape, free);
    if (!shares) {
      uint64_t fits = 0, too_many = shape.extents;
      while (too_many - fits > 1) {
        shape.extents = fits + (too_many - fits) / 2;
        (ShareExtents(shape, free) ? fits : too_many) = shape.extents;
      }
      if (fits == 0) return 0;
      shape.extents = fits;
      shares = ShareExtents(shape, free);
    }
    const std::vector<SpreadSegment> segments = WeaveSegments(shape, free, *std::move(shares));
    for (uint32_t column = 0; column < shape.columns; ++column) {
      std::vector<std::vector<SpreadSegment>> legs(legs_);
      for (const SpreadSegment& segment : segments) {
        if (segment.column == column) legs[segment.leg].push_back(segment);
      }
      TakeColumn(size, legs);
    }
    return shape.extents;
  }

  // The space of one set of legs. Cannot fail: the segments are within what is free, and any
  // piece is as good as another.
  void TakeColumn(Size size, const std::vector<std::vector<SpreadSegment>>& legs) {
    struct Leg {
      size_t segment = 0;
      uint64_t segment_left = 0;  // pieces not taken yet
      UnitRun run;                // taken, and in no grant yet
    };
    std::vector<Leg> at(legs.size());
    for (;;) {
      ChosenGrant grant{UINT64_MAX, {}};
      for (size_t l = 0; l < legs.size(); ++l) {
        Leg& leg = at[l];
        if (leg.run.count == 0) {
          if (leg.segment_left == 0) {
            if (leg.segment == legs[l].size()) return;  // all legs end together
            leg.segment_left = legs[l][leg.segment++].count;
          }
          FreeSpace& space = *devices_[legs[l][leg.segment - 1].device].space;
          const std::optional<UnitRun> run = size == Size::kRow ? space.TakeLarge(leg.segment_left)
                                                                : space.TakeSmall(leg.segment_left);
          assert(run.has_value());
          leg.run = *run;
          leg.segment_left -= run->count / UnitsOf(size);
        }
        grant.count = std::min(grant.count, leg.run.count);
        grant.legs.push_back({legs[l][leg.segment - 1].device, leg.run.first});
      }
      for (Leg& leg : at) {
        leg.run = {leg.run.first + grant.count, leg.run.count - grant.count};
      }
      Append(std::move(grant));
    }
  }

  void Append(ChosenGrant grant) {
    if (!grants_.empty()) {
      ChosenGrant next = grants_.back();
      for (ChosenGrant::Leg& leg : next.legs) leg.first = leg.first + next.count;
      if (next.legs == grant.legs) {
        grants_.back().count += grant.count;
        return;
      }
    }
    grants_.push_back(std::move(grant));
  }

  const uint32_t legs_;
  const std::vector<PlacementDevice>& devices_;
  std::vector<uint32_t> nodes_;  // of each device
  uint32_t most_nodes_ = 0;
  std::vector<ChosenGrant> grants_;
};

// What is asked for, but no more than any pool could have, so that nothing overflows.
uint64_t Bounded(uint64_t units, const std::vector<PlacementDevice>& devices) {
  uint64_t free = 0;
  for (const PlacementDevice& device : devices) free += device.space->free_units();
  return std::min(units, free);
}

}  // namespace

std::vector<ChosenGrant> ChooseGrants(const GrantRequest& request,
                                      const std::vector<PlacementDevice>& devices) {
  const uint64_t units = Bounded(request.units, devices);
  Choosing choosing(request.legs, devices);
  if (choosing.Take(Size::kRow, units / kSmallPerExtent, request.columns) == 0) {
    choosing.Take(Size::kUnit, std::min(units, kMaxSmallGrantUnits), 1);
  }
  return std::move(choosing).grants();
}

std::optional<std::vector<ChosenGrant>> ChooseAllGrants(
    const GrantRequest& request, const std::vector<PlacementDevice>& devices) {
  const uint64_t units = request.units;
  if (Bounded(units, devices) < units) return std::nullopt;
  struct Attempt {
    bool rows;
    uint32_t columns;
  };
  for (const Attempt& attempt : {Attempt{true, request.columns}, {true, 1}, {false, 1}}) {
    Choosing choosing(request.legs, devices);
    uint64_t taken = 0;
    if (attempt.rows) {
      taken =
          kSmallPerExtent * choosing.TakeAll(Size::kRow, units / kSmallPerExtent, attempt.columns);
    }
    taken += choosing.TakeAll(Size::kUnit, units - taken, 1);
    std::vector<ChosenGrant> grants = std::move(choosing).grants();
    if (taken == units) return grants;
    GiveBack(grants, devices);
  }
  return std::nullopt;
}

void GiveBack(const std::vector<ChosenGrant>& grants, const std::vector<PlacementDevice>& devices) {
  for (const ChosenGrant& grant : grants) {
    for (const ChosenGrant::Leg& leg : grant.legs) {
      const absl::Status given = devices[leg.device].space->Give({leg.first, grant.count});
      assert(given.ok());
      (void)given;
    }
  }
}

}  // namespace braid
