#include "controlplane/core/map_sweep.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid {
namespace {

absl::Status Uncovered(uint32_t column, uint32_t leg, uint64_t unit) {
  return absl::DataLossError(absl::StrCat("the map does not hold unit ", unit, " of column ",
                                          column, ", leg ", leg, " exactly once"));
}

}  // namespace

absl::Status SweepMap(const Geometry& geometry, Coverage coverage, const std::vector<MapRun>& runs,
                      absl::FunctionRef<absl::Status(const MapStretch&)> fn) {
  const uint64_t units = geometry.units_per_column();
  size_t begin = 0;  // of the column's first leg in `runs`
  for (uint32_t column = 0; column < geometry.columns(); ++column) {
    size_t next[kMaxLegs];  // of each leg, the first run that does not end before `unit`
    size_t end[kMaxLegs];
    const MapRun* legs[kMaxLegs];
    for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
      next[leg] = begin;
      while (begin < runs.size() && runs[begin].column == column && runs[begin].leg == leg) ++begin;
      end[leg] = begin;
      legs[leg] = nullptr;
    }

    for (uint64_t unit = 0; unit < units;) {
      if (coverage == Coverage::kHoles) {
        // On to where some leg has a run again. One that began before it would be a leg's
        // in the stretch before.
        uint64_t nearest = units;
        for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
          if (next[leg] == end[leg]) continue;
          const MapRun& run = runs[next[leg]];
          nearest = std::min(nearest, legs[leg] == &run ? unit : run.first.value());
        }
        unit = std::max(unit, nearest);
        if (unit == units) break;
      }
      uint64_t stop = units;
      for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
        if (next[leg] == end[leg]) return Uncovered(column, leg, unit);
        const MapRun& run = runs[next[leg]];
        // A run that was not in the stretch before must begin with this one.
        if (legs[leg] != &run) {
          if (run.first.value() != unit) return Uncovered(column, leg, unit);
          if (run.count == 0 || run.count > units - unit) return Uncovered(column, leg, unit);
          legs[leg] = &run;
        }
        stop = std::min(stop, run.first.value() + run.count);
      }
      absl::Status status =
          fn({column, ColumnUnit(unit), stop - unit, absl::MakeConstSpan(legs, geometry.legs())});
      if (!status.ok()) return status;
      for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
        if (legs[leg]->first.value() + legs[leg]->count == stop) ++next[leg];
      }
      unit = stop;
    }
    for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
      if (next[leg] != end[leg]) return Uncovered(column, leg, runs[next[leg]].first.value());
    }
  }
  if (begin != runs.size()) {
    return absl::DataLossError("the map has rows outside the volume, or out of order");
  }
  return absl::OkStatus();
}

uint64_t StaleBytes(const std::vector<MapRun>& runs) {
  uint64_t bytes = 0;
  for (const MapRun& run : runs) {
    if (run.stale) bytes += run.count * kSmallExtentBytes;
  }
  return bytes;
}

absl::Status CheckReadable(const Geometry& geometry, Coverage coverage,
                           const std::vector<MapRun>& runs,
                           absl::FunctionRef<bool(DeviceIndex)> present,
                           absl::FunctionRef<std::string(DeviceIndex)> name_of) {
  return SweepMap(geometry, coverage, runs, [&](const MapStretch& stretch) -> absl::Status {
    std::string missing;
    for (const MapRun* run : stretch.legs) {
      if (run->stale) continue;
      if (present(run->device)) return absl::OkStatus();
      absl::StrAppend(&missing, missing.empty() ? "" : "' and '", name_of(run->device));
    }
    if (missing.empty()) {
      return absl::DataLossError(absl::StrCat("unit ", stretch.first.value(), " of column ",
                                              stretch.column, " has no in-sync copy"));
    }
    return absl::FailedPreconditionError(
        absl::StrCat("the only in-sync copies of some extents are on device '", missing,
                     "', which is missing; bring it back (braid device list says why)"));
  });
}

}  // namespace braid
