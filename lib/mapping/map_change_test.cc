#include "lib/mapping/map_change.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

constexpr uint64_t kDevices = 5;
// Three extents in each of two columns: 192 units.
constexpr uint64_t kColumnUnits = uint64_t{3} * kSmallPerExtent;

Geometry StripedMirror() {
  return Geometry::Make(5 * kExtentBytes + kSectorBytes, 2, 64 * kKiB, 2).value();
}

UnitPlace At(uint16_t device, uint64_t unit, bool stale = false) {
  return {.device = DeviceIndex(device), .unit = DeviceUnit(unit), .stale = stale};
}

MapChange Bind() {
  return {.kind = MapChange::Kind::kBind,
          .column = 1,
          .first = ColumnUnit(10),
          .count = 3,
          .legs = {At(4, 100), At(0, 7)}};
}

struct ChangeCase {
  const char* name;
  void (*alter)(MapChange&);
  const char* complaint;  // nullptr: none
};

TEST(CheckMapChangeTest, AcceptsWhatFitsAndNamesWhatDoesNot) {
  constexpr ChangeCase kCases[] = {
      {"as it is", [](MapChange&) {}, nullptr},
      {"move", [](MapChange& c) { c.kind = MapChange::Kind::kMove; }, nullptr},
      {"kind 0", [](MapChange& c) { c.kind = static_cast<MapChange::Kind>(0); }, "kind 0"},
      {"kind 4", [](MapChange& c) { c.kind = static_cast<MapChange::Kind>(4); }, "kind 4"},
      {"column", [](MapChange& c) { c.column = 2; }, "2 columns"},
      {"no units", [](MapChange& c) { c.count = 0; }, "empty"},
      {"up to the end", [](MapChange& c) { c.first = ColumnUnit(kColumnUnits - 3); }, nullptr},
      {"past the end", [](MapChange& c) { c.first = ColumnUnit(kColumnUnits - 2); }, "192 units"},
      {"from the end", [](MapChange& c) { c.first = ColumnUnit(kColumnUnits); }, "192 units"},
      {"wraps", [](MapChange& c) { c.first = ColumnUnit(UINT64_MAX - 1); }, "192 units"},
      {"many units", [](MapChange& c) { c.count = UINT32_MAX; }, "192 units"},
      {"device", [](MapChange& c) { c.legs[1].device = DeviceIndex(5); }, "on device 5"},
      {"same device", [](MapChange& c) { c.legs[1].device = DeviceIndex(4); }, "one device, 4"},
      {"last units of a device",
       [](MapChange& c) { c.legs[0].unit = DeviceUnit(kMaxDeviceUnits - 3); }, nullptr},
      {"past the device", [](MapChange& c) { c.legs[0].unit = DeviceUnit(kMaxDeviceUnits - 2); },
       "leg 0 at unit"},
      {"far past the device", [](MapChange& c) { c.legs[1].unit = DeviceUnit(UINT64_MAX); },
       "leg 1 at unit"},
      {"one stale leg", [](MapChange& c) { c.legs[0].stale = true; }, nullptr},
      {"stale legs", [](MapChange& c) { c.legs[0].stale = c.legs[1].stale = true; },
       "stale legs only"},
      {"legs that the volume has not", [](MapChange& c) { c.legs[2] = At(9, 0, true); }, nullptr},
      {"unbind has no legs", [](MapChange& c) { c.kind = MapChange::Kind::kUnbind, c.legs = {}; },
       nullptr},
      {"unbind past the end",
       [](MapChange& c) {
         c.kind = MapChange::Kind::kUnbind;
         c.first = ColumnUnit(kColumnUnits - 2);
       },
       "192 units"},
  };
  for (const ChangeCase& c : kCases) {
    MapChange change = Bind();
    c.alter(change);
    const absl::Status status = CheckMapChange(StripedMirror(), change, kDevices);
    EXPECT_EQ(status.ok(), c.complaint == nullptr) << c.name << ": " << status;
    if (c.complaint == nullptr) continue;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_NE(std::string(status.message()).find(c.complaint), std::string::npos)
        << c.name << ": " << status;
  }
}

struct GrantCase {
  const char* name;
  Grant grant;
  const char* complaint;  // nullptr: none
};

TEST(CheckGrantTest, AcceptsWhatFitsAndNamesWhatDoesNot) {
  const GrantCase cases[] = {
      {"good", {3, {At(4, 100), At(0, 7)}}, nullptr},
      {"more than a column has", {uint64_t{1} << 33, {At(4, 0), At(0, 7)}}, nullptr},
      {"empty", {0, {At(4, 100), At(0, 7)}}, "empty"},
      {"no legs", {3, {}}, "0 legs"},
      {"a leg too few", {3, {At(4, 100)}}, "1 legs"},
      {"a leg too many", {3, {At(4, 100), At(0, 7), At(1, 1)}}, "3 legs"},
      {"device", {3, {At(5, 100), At(0, 7)}}, "on device 5"},
      {"same device", {3, {At(4, 100), At(4, 7)}}, "one device, 4"},
      {"past the device", {3, {At(4, kMaxDeviceUnits - 2), At(0, 7)}}, "leg 0 at unit"},
      {"wraps", {UINT64_MAX, {At(4, 100), At(0, 7)}}, "leg 0 at unit"},
      {"stale", {3, {At(4, 100), At(0, 7, true)}}, "stale leg"},
  };
  for (const GrantCase& c : cases) {
    const absl::Status status = CheckGrant(StripedMirror(), c.grant, kDevices);
    EXPECT_EQ(status.ok(), c.complaint == nullptr) << c.name << ": " << status;
    if (c.complaint == nullptr) continue;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_NE(std::string(status.message()).find(c.complaint), std::string::npos)
        << c.name << ": " << status;
  }
}

}  // namespace
}  // namespace braid
