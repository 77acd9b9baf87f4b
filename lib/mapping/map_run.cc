#include "lib/mapping/map_run.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "lib/base/checked.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

bool InOrder(const MapRun& a, const MapRun& b) {
  return std::tuple(a.column, a.leg, a.first) < std::tuple(b.column, b.leg, b.first);
}

// Takes the first `count` units off a run.
MapRun TakeFront(MapRun& run, uint64_t count) {
  MapRun front = run;
  front.count = count;
  run.first = run.first + count;
  run.unit = run.unit + count;
  run.count -= count;
  return front;
}

// Cuts the runs of one column, ordered by (leg, first), into stretches within which no run
// of any leg begins or ends. Calls rule with the copies of each stretch, one run per leg
// that has one, lowest leg first, all of the same units; appends to `out` what rule
// makes of them.
template <class Rule>
void RestateColumn(absl::Span<MapRun> runs, Rule rule, std::vector<MapRun>& out) {
  std::vector<absl::Span<MapRun>> legs;  // of each leg the runs still to visit
  while (!runs.empty()) {
    const uint32_t leg = runs.front().leg;
    const size_t count = static_cast<size_t>(
        std::find_if(runs.begin(), runs.end(), [leg](const MapRun& r) { return r.leg != leg; }) -
        runs.begin());
    legs.push_back(runs.first(count));
    runs.remove_prefix(count);
  }

  std::vector<MapRun> copies;
  while (!legs.empty()) {
    ColumnUnit from = legs[0].front().first;
    for (const auto& leg : legs) from = std::min(from, leg.front().first);
    ColumnUnit to = ColumnUnit(UINT64_MAX);
    for (const auto& leg : legs) {
      const MapRun& run = leg.front();
      to = std::min(to, run.first == from ? run.first + run.count : run.first);
    }
    copies.clear();
    for (auto& leg : legs) {
      if (leg.front().first != from) continue;
      copies.push_back(TakeFront(leg.front(), to - from));
      if (leg.front().count == 0) leg.remove_prefix(1);
    }
    std::erase_if(legs, [](const auto& leg) { return leg.empty(); });
    rule(absl::MakeSpan(copies));
    out.insert(out.end(), copies.begin(), copies.end());
  }
}

template <class Rule>
std::vector<MapRun> Restate(std::vector<MapRun> runs, Rule rule) {
  std::sort(runs.begin(), runs.end(), InOrder);
  std::vector<MapRun> out;
  out.reserve(runs.size());
  for (absl::Span<MapRun> rest = absl::MakeSpan(runs); !rest.empty();) {
    const uint32_t column = rest.front().column;
    const size_t count =
        static_cast<size_t>(std::find_if(rest.begin(), rest.end(),
                                         [column](const MapRun& r) { return r.column != column; }) -
                            rest.begin());
    RestateColumn(rest.first(count), rule, out);
    rest.remove_prefix(count);
  }
  return Normalize(std::move(out));
}

}  // namespace

absl::Status CheckRun(const Geometry& geometry, const MapRun& run, uint64_t device_count) {
  const auto refuse = [&run](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "map run of ", run.count, " units from ", run.first.value(), " in column ", run.column,
        ", leg ", run.leg, " on device ", run.device.value(), " from its unit ", run.unit.value(),
        " ", why..., "; the map is damaged or another volume's"));
  };
  if (run.column >= geometry.columns()) {
    return refuse("lies outside the volume's ", geometry.columns(), " columns");
  }
  if (run.leg >= geometry.legs()) {
    return refuse("lies outside the volume's ", geometry.legs(), " legs");
  }
  if (run.count == 0) return refuse("is empty");
  if (!RangeFits(run.first.value(), run.count, geometry.units_per_column())) {
    return refuse("lies outside the column's ", geometry.units_per_column(), " units");
  }
  if (run.device.value() >= device_count) {
    return refuse("names none of the volume's ", device_count, " devices");
  }
  if (!RangeFits(run.unit.value(), run.count, kMaxDeviceUnits)) {
    return refuse("lies past unit ", kMaxDeviceUnits, ", the last that the map can name");
  }
  return absl::OkStatus();
}

std::vector<MapRun> MarkDeviceStale(std::vector<MapRun> runs, DeviceIndex device) {
  return Restate(std::move(runs), [device](absl::Span<MapRun> copies) {
    auto in_sync =
        std::count_if(copies.begin(), copies.end(), [](const MapRun& copy) { return !copy.stale; });
    // From the highest leg down: should all in-sync copies be on this device, the lowest
    // of them stays, as it does in KeepOneLeg.
    for (auto copy = copies.rbegin(); copy != copies.rend() && in_sync > 1; ++copy) {
      if (copy->stale || copy->device != device) continue;
      copy->stale = true;
      --in_sync;
    }
  });
}

std::vector<MapRun> KeepOneLeg(std::vector<MapRun> runs,
                               absl::FunctionRef<bool(DeviceIndex)> present) {
  return Restate(std::move(runs), [present](absl::Span<MapRun> copies) {
    const MapRun* kept = nullptr;
    for (const MapRun& copy : copies) {
      if (copy.stale) continue;
      if (kept == nullptr || (!present(kept->device) && present(copy.device))) kept = &copy;
    }
    for (MapRun& copy : copies) copy.stale = copy.stale || &copy != kept;
  });
}

bool Continues(const MapRun& a, const MapRun& b) {
  return a.column == b.column && a.leg == b.leg && a.first + a.count == b.first &&
         a.device == b.device && a.unit + a.count == b.unit && a.stale == b.stale;
}

std::vector<MapRun> Normalize(std::vector<MapRun> runs) {
  std::sort(runs.begin(), runs.end(), InOrder);
  size_t kept = 0;
  for (const MapRun& run : runs) {
    if (kept > 0 && Continues(runs[kept - 1], run)) {
      runs[kept - 1].count += run.count;
    } else {
      runs[kept++] = run;
    }
  }
  runs.resize(kept);
  return runs;
}

}  // namespace braid
