#include "lib/allocator/placement.h"

#include <algorithm>
#include <cassert>
#include <optional>
#include <set>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/allocator/spread.h"
#include "lib/base/size_text.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

// As many as one line can hold.
constexpr size_t kMaxListed = 6;

// The devices that may serve the request.
struct Candidates {
  std::vector<const PlacementDevice*> devices;
  std::vector<SpreadDevice> free;   // beside `devices`
  std::vector<SpreadDevice> empty;  // as if nothing were taken
  uint32_t nodes = 0;
};

Candidates ChooseCandidates(absl::string_view device_class,
                            const std::vector<PlacementDevice>& devices) {
  Candidates c;
  absl::flat_hash_map<std::string, uint32_t> nodes;
  for (const PlacementDevice& device : devices) {
    if (device_class.empty() || device.device_class == device_class) c.devices.push_back(&device);
  }
  // A volume's table of devices has kMaxDevices places.
  if (c.devices.size() > kMaxDevices) {
    std::stable_sort(c.devices.begin(), c.devices.end(), [](const auto* a, const auto* b) {
      return a->space->free_large_extents() > b->space->free_large_extents();
    });
    c.devices.resize(kMaxDevices);
  }
  for (const PlacementDevice* device : c.devices) {
    const uint32_t node =
        nodes.try_emplace(device->node, static_cast<uint32_t>(nodes.size())).first->second;
    c.free.push_back({device->space->free_large_extents(), node});
    c.empty.push_back({device->space->capacity_units() / kSmallPerExtent, node});
  }
  c.nodes = static_cast<uint32_t>(nodes.size());
  return c;
}

struct Shares {
  SpreadShape shape;
  std::vector<uint64_t> of_device;
};

// On as many nodes as there is room for.
std::optional<Shares> Share(const Geometry& g, const std::vector<SpreadDevice>& devices,
                            uint32_t nodes) {
  for (uint32_t k = std::min(g.legs(), nodes); k >= 1; --k) {
    const SpreadShape shape{g.extents_per_column(), g.columns(), g.legs(), k};
    if (auto shares = ShareExtents(shape, devices)) return Shares{shape, *std::move(shares)};
  }
  return std::nullopt;
}

// The largest volume of this shape that fits, in bytes.
uint64_t LargestThatFits(const Geometry& g, const std::vector<SpreadDevice>& devices) {
  uint64_t fits = 0, too_many = g.extents_per_column();
  while (too_many - fits > 1) {
    const uint64_t middle = fits + (too_many - fits) / 2;
    if (ShareExtents({middle, g.columns(), g.legs(), 1}, devices)) {
      fits = middle;
    } else {
      too_many = middle;
    }
  }
  return fits * g.columns() * kExtentBytes;
}

std::string OfClass(absl::string_view device_class) {
  return device_class.empty() ? "" : absl::StrCat(" of class ", device_class);
}

template <class Range, class Show>
std::string List(const Range& range, Show&& show) {
  std::vector<std::string> shown;
  for (const auto& item : range) {
    if (shown.size() == kMaxListed) {
      shown.push_back(absl::StrCat("and ", range.size() - kMaxListed, " more"));
      break;
    }
    shown.push_back(show(item));
  }
  return absl::StrJoin(shown, ", ");
}

std::string LayoutText(const Geometry& g) {
  std::vector<std::string> parts;
  if (g.legs() > 1) parts.push_back(absl::StrCat(g.legs(), " copies on different devices"));
  if (g.columns() > 1) parts.push_back(absl::StrCat(g.columns(), " stripes on different devices"));
  return parts.empty() ? "one copy" : absl::StrJoin(parts, " and ");
}

// Fewer devices than the layout needs at once, whatever their size.
absl::Status TooFewDevices(const PlacementRequest& request, const Candidates& candidates,
                           const std::vector<PlacementDevice>& all) {
  const Geometry& g = request.geometry;
  std::string found = "there are none";
  if (candidates.devices.size() == 1) {
    const PlacementDevice& d = *candidates.devices[0];
    found = absl::StrCat("there is 1 (", d.name, " on node ", d.node, ")");
  } else if (!candidates.devices.empty()) {
    found = absl::StrCat(
        "there are ", candidates.devices.size(), " (",
        List(candidates.devices,
             [](const PlacementDevice* d) { return absl::StrCat(d->name, " on node ", d->node); }),
        ")");
  } else if (!all.empty()) {
    std::set<std::string> classes;
    for (const PlacementDevice& d : all) classes.insert(d.device_class);
    absl::StrAppend(&found,
                    " (classes here: ", List(classes, [](const std::string& name) { return name; }),
                    ")");
  }
  const uint32_t needed = std::max(g.columns(), g.legs());
  std::vector<std::string> lower;
  if (g.legs() > candidates.devices.size() && g.legs() > 1) lower.push_back("--copies");
  if (g.columns() > candidates.devices.size() && g.columns() > 1) lower.push_back("--stripes");
  const std::string help =
      candidates.devices.empty()
          ? absl::StrCat("add devices",
                         request.device_class.empty() ? "" : " or choose another --class")
          : absl::StrCat("add devices or lower ", absl::StrJoin(lower, " and "));
  return absl::FailedPreconditionError(absl::StrCat(
      "the volume needs ", needed, needed == 1 ? " device" : " different devices",
      OfClass(request.device_class), needed == 1 ? "" : absl::StrCat(" for ", LayoutText(g)), "; ",
      found, "; ", help));
}

absl::Status NoRoom(const PlacementRequest& request, const Candidates& candidates) {
  const Geometry& g = request.geometry;
  const bool never = !Share(g, candidates.empty, candidates.nodes);
  std::vector<size_t> order(candidates.devices.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return candidates.free[a].free > candidates.free[b].free;
  });
  const std::string devices = List(order, [&](size_t i) {
    return absl::StrCat(candidates.devices[i]->name, " ",
                        FormatSize(candidates.free[i].free * kExtentBytes), " on node ",
                        candidates.devices[i]->node);
  });
  const uint64_t fits = LargestThatFits(g, candidates.free);
  const std::string help =
      absl::StrCat(never ? "add devices" : "add devices, delete volumes",
                   fits == 0 ? "" : absl::StrCat(", or make it at most ", FormatSize(fits)));
  const std::string message =
      absl::StrCat("no room for ", FormatSize(g.size_bytes()), " as ", LayoutText(g),
                   OfClass(request.device_class), "; free: ", devices,
                   never ? " (too small even when empty)" : "", "; ", help);
  return never ? absl::FailedPreconditionError(message) : absl::ResourceExhaustedError(message);
}

// Takes what was decided. Cannot fail: the shares are within what is free, and any large
// extent is as good as another.
Placement Take(const SpreadShape& shape, const Candidates& candidates,
               const std::vector<SpreadSegment>& segments) {
  Placement placement;
  placement.nodes_per_extent = shape.nodes;
  absl::flat_hash_map<size_t, uint16_t> index;
  for (const SpreadSegment& segment : segments) {
    const PlacementDevice& device = *candidates.devices[segment.device];
    const auto [it, is_new] =
        index.try_emplace(segment.device, static_cast<uint16_t>(placement.devices.size()));
    if (is_new) placement.devices.push_back(device.id);
    for (uint64_t done = 0; done < segment.count;) {
      const std::optional<UnitRun> run = device.space->TakeLarge(segment.count - done);
      assert(run.has_value());
      placement.runs.push_back({segment.column, segment.leg,
                                FirstUnit(ExtentIndex(segment.first + done)), run->count,
                                DeviceIndex(it->second), run->first, false});
      done += run->count / kSmallPerExtent;
    }
  }
  placement.runs = Normalize(std::move(placement.runs));
  return placement;
}

}  // namespace

absl::Status CheckDeviceCount(const PlacementRequest& request,
                              const std::vector<PlacementDevice>& devices) {
  const Candidates candidates = ChooseCandidates(request.device_class, devices);
  const Geometry& g = request.geometry;
  if (candidates.devices.size() >= std::max(g.columns(), g.legs())) return absl::OkStatus();
  return TooFewDevices(request, candidates, devices);
}

absl::StatusOr<Placement> Place(const PlacementRequest& request,
                                const std::vector<PlacementDevice>& devices) {
  const Geometry& g = request.geometry;
  if (absl::Status s = CheckDeviceCount(request, devices); !s.ok()) return s;
  const Candidates candidates = ChooseCandidates(request.device_class, devices);
  std::optional<Shares> shares = Share(g, candidates.free, candidates.nodes);
  if (!shares) return NoRoom(request, candidates);
  return Take(shares->shape, candidates,
              WeaveSegments(shares->shape, candidates.free, std::move(shares->of_device)));
}

}  // namespace braid
