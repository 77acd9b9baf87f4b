// Chooses devices for a volume's extents. Pure: decides on a picture of the pool. The
// argument that it finds a placement whenever there is one stands in spread.h.
//
// Rules, in this order:
//  1. The legs of one extent lie on different devices, always.
//  2. On different nodes. Where the pool has no room for that (or not as many nodes as
//     legs), on as many nodes as it has room for: every extent on at least
//     Placement::nodes_per_extent.
//  3. The columns of one leg lie on different devices at each extent index (a stripe over
//     one device is none); fewer devices of the class than columns is a refusal.
//  4. A column's leg lies on one device where one has room (a linear volume stays
//     whole), the roomiest first; else it spans, always taking the roomiest.
#ifndef BRAID_LIB_ALLOCATOR_PLACEMENT_H_
#define BRAID_LIB_ALLOCATOR_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/allocator/free_space.h"
#include "lib/base/uuid.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"

namespace braid {

struct PlacementDevice {
  Uuid id;
  std::string name;
  std::string node;
  std::string device_class;
  FreeSpace* space = nullptr;  // extents are taken from here; not null
};

struct PlacementRequest {
  Geometry geometry;
  std::string device_class;  // "" for any
};

struct Placement {
  std::vector<Uuid> devices;  // DeviceIndex is the place in here
  std::vector<MapRun> runs;   // normalized, of whole extents; every row of every leg, once
  // On how many nodes each extent's legs lie at least; any one fewer nodes may be lost.
  uint32_t nodes_per_extent = 1;
};

// Whether there are as many different devices as the layout needs at once, however full:
// FailedPrecondition, in words, when not.
absl::Status CheckDeviceCount(const PlacementRequest& request,
                              const std::vector<PlacementDevice>& devices);

// Takes the extents from the devices' spaces. On failure nothing stays taken, and the
// error is FailedPrecondition (the devices cannot carry this layout, however empty) or
// ResourceExhausted (no room), and says what was needed, what there is, by class and
// node, and what would help. The devices' ids differ, and so do their spaces.
absl::StatusOr<Placement> Place(const PlacementRequest& request,
                                const std::vector<PlacementDevice>& devices);

}  // namespace braid

#endif  // BRAID_LIB_ALLOCATOR_PLACEMENT_H_
