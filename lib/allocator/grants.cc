#include "lib/allocator/grants.h"

#include <algorithm>
#include <cassert>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/allocator/free_space.h"
#include "lib/allocator/spread.h"
#include "lib/base/size_text.h"

namespace braid {
namespace {

// As many devices as one line can list.
constexpr size_t kMaxListed = 6;

// With a device as its place among those that may serve the request.
struct Piece {
  struct Leg {
    size_t device = 0;
    DeviceUnit first;
    friend bool operator==(const Leg&, const Leg&) = default;
  };
  uint64_t count = 0;
  std::vector<Leg> legs;
};

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

  std::vector<Piece> pieces() && { return std::move(pieces_); }

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
      Piece piece{UINT64_MAX, {}};
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
        piece.count = std::min(piece.count, leg.run.count);
        piece.legs.push_back({legs[l][leg.segment - 1].device, leg.run.first});
      }
      for (Leg& leg : at) {
        leg.run = {leg.run.first + piece.count, leg.run.count - piece.count};
      }
      Append(std::move(piece));
    }
  }

  void Append(Piece piece) {
    if (!pieces_.empty()) {
      Piece next = pieces_.back();
      for (Piece::Leg& leg : next.legs) leg.first = leg.first + next.count;
      if (next.legs == piece.legs) {
        pieces_.back().count += piece.count;
        return;
      }
    }
    pieces_.push_back(std::move(piece));
  }

  const uint32_t legs_;
  const std::vector<PlacementDevice>& devices_;
  std::vector<uint32_t> nodes_;  // of each device
  uint32_t most_nodes_ = 0;
  std::vector<Piece> pieces_;
};

// What is asked for, but no more than any pool could have, so that nothing overflows.
uint64_t Bounded(uint64_t units, const std::vector<PlacementDevice>& devices) {
  uint64_t free = 0;
  for (const PlacementDevice& device : devices) free += device.space->free_units();
  return std::min(units, free);
}

void GiveBack(const std::vector<Piece>& pieces, const std::vector<PlacementDevice>& devices) {
  for (const Piece& piece : pieces) {
    for (const Piece::Leg& leg : piece.legs) {
      const absl::Status given = devices[leg.device].space->Give({leg.first, piece.count});
      assert(given.ok());
      (void)given;
    }
  }
}

std::vector<Piece> ChooseSome(const GrantRequest& request,
                              const std::vector<PlacementDevice>& devices) {
  const uint64_t units = Bounded(request.units, devices);
  Choosing choosing(request.legs, devices);
  if (choosing.Take(Size::kRow, units / kSmallPerExtent, request.columns) == 0) {
    choosing.Take(Size::kUnit, std::min(units, kMaxSmallGrantUnits), 1);
  }
  return std::move(choosing).pieces();
}

// Empty when there is no room for all.
std::vector<Piece> ChooseAll(const GrantRequest& request,
                             const std::vector<PlacementDevice>& devices) {
  const uint64_t units = request.units;
  if (Bounded(units, devices) < units) return {};
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
    std::vector<Piece> pieces = std::move(choosing).pieces();
    if (taken == units) return pieces;
    GiveBack(pieces, devices);
  }
  return {};
}

absl::Status NoSpace(const GrantRequest& request, std::vector<PlacementDevice> devices) {
  std::stable_sort(devices.begin(), devices.end(), [](const auto& a, const auto& b) {
    return a.space->free_units() > b.space->free_units();
  });
  std::vector<std::string> free;
  for (const PlacementDevice& d : devices) {
    if (free.size() == kMaxListed) {
      free.push_back(absl::StrCat("and ", devices.size() - kMaxListed, " more"));
      break;
    }
    free.push_back(absl::StrCat(d.name, " ", FormatSize(d.space->free_units() * kSmallExtentBytes),
                                " on node ", d.node));
  }
  const std::string amount =
      request.all ? absl::StrCat(" for ", FormatSize(request.units * kSmallExtentBytes)) : "";
  return absl::ResourceExhaustedError(absl::StrCat(
      "no space", amount,
      request.legs == 1 ? "" : absl::StrCat(" on each of ", request.legs, " different devices"),
      request.device_class.empty() ? "" : absl::StrCat(" of class ", request.device_class),
      "; free: ", free.empty() ? "nothing" : absl::StrJoin(free, ", "),
      request.all ? "; add devices, delete volumes or reserve less"
                  : "; add devices or delete volumes"));
}

}  // namespace

absl::StatusOr<std::vector<PlacedGrant>> ChooseGrants(const GrantRequest& request,
                                                      const std::vector<PlacementDevice>& all) {
  std::vector<PlacementDevice> devices;
  for (const PlacementDevice& device : all) {
    if (request.device_class.empty() || device.device_class == request.device_class) {
      devices.push_back(device);
    }
  }
  const std::vector<Piece> pieces =
      request.all ? ChooseAll(request, devices) : ChooseSome(request, devices);
  if (pieces.empty() && request.units > 0) return NoSpace(request, std::move(devices));
  std::vector<PlacedGrant> grants;
  for (const Piece& piece : pieces) {
    PlacedGrant& grant = grants.emplace_back();
    grant.count = piece.count;
    for (const Piece::Leg& leg : piece.legs) {
      grant.legs.emplace_back(devices[leg.device].id, leg.first);
    }
  }
  return grants;
}

}  // namespace braid
