#include "lib/mapping/map_change.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "lib/base/checked.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

// What is wrong with legs of `count` units each, or nothing.
std::string WrongWithLegs(absl::Span<const UnitPlace> legs, uint64_t count, uint64_t device_count) {
  for (size_t leg = 0; leg < legs.size(); ++leg) {
    const UnitPlace& place = legs[leg];
    if (place.device.value() >= device_count) {
      return absl::StrCat("has leg ", leg, " on device ", place.device.value(), ", but there are ",
                          device_count);
    }
    if (!RangeFits(place.unit.value(), count, kMaxDeviceUnits)) {
      return absl::StrCat("has leg ", leg, " at unit ", place.unit.value(), ", but a device has ",
                          kMaxDeviceUnits, " at most");
    }
    for (size_t other = 0; other < leg; ++other) {
      if (legs[other].device == place.device) {
        return absl::StrCat("has legs ", other, " and ", leg, " on one device, ",
                            place.device.value());
      }
    }
  }
  return "";
}

bool KnownKind(MapChange::Kind kind) {
  switch (kind) {
    case MapChange::Kind::kBind:
    case MapChange::Kind::kUnbind:
    case MapChange::Kind::kMove:
      return true;
  }
  return false;
}

}  // namespace

absl::Status CheckMapChange(const Geometry& geometry, const MapChange& change,
                            uint64_t device_count) {
  const auto refuse = [&change](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "map change of ", change.count, " units from ", change.first.value(), " in column ",
        change.column, " ", why..., "; it is damaged or another volume's"));
  };
  if (!KnownKind(change.kind)) {
    return refuse("is of kind ", static_cast<uint32_t>(change.kind), ", which is none");
  }
  if (change.column >= geometry.columns()) {
    return refuse("lies outside the volume's ", geometry.columns(), " columns");
  }
  if (change.count == 0) return refuse("is empty");
  // The product fits: a column has at most 2^41 extents.
  const uint64_t units = geometry.extents_per_column() * kSmallPerExtent;
  if (!RangeFits(change.first.value(), change.count, units)) {
    return refuse("lies outside the column's ", units, " units");
  }
  if (change.kind == MapChange::Kind::kUnbind) return absl::OkStatus();
  const auto legs = absl::MakeConstSpan(change.legs).first(geometry.legs());
  const std::string wrong = WrongWithLegs(legs, change.count, device_count);
  if (!wrong.empty()) return refuse(wrong);
  if (std::all_of(legs.begin(), legs.end(), [](const UnitPlace& leg) { return leg.stale; })) {
    return refuse("has stale legs only");
  }
  return absl::OkStatus();
}

absl::Status CheckGrant(const Geometry& geometry, const Grant& grant, uint64_t device_count) {
  const auto refuse = [&grant](const auto&... why) {
    return absl::InvalidArgumentError(absl::StrCat("grant of ", grant.count, " units ", why...,
                                                   "; it is damaged or another volume's"));
  };
  if (grant.count == 0) return refuse("is empty");
  if (grant.legs.size() != geometry.legs()) {
    return refuse("has ", grant.legs.size(), " legs where the volume has ", geometry.legs());
  }
  const std::string wrong = WrongWithLegs(grant.legs, grant.count, device_count);
  if (!wrong.empty()) return refuse(wrong);
  if (std::any_of(grant.legs.begin(), grant.legs.end(),
                  [](const UnitPlace& leg) { return leg.stale; })) {
    return refuse("has a stale leg");
  }
  return absl::OkStatus();
}

}  // namespace braid
