// The space that a thin volume may bind: what it was granted and has not used. Its owner
// locks (Volume's map_mu_). No I/O.
//
// Grants are taken from the front, rows of 64 units whole, small extents from a row that is
// open for them, so that the small extents of one time lie together. Columns of a striped
// volume are kept apart where the grants allow: each column goes on with the grant it took
// from last, and a column that needs another takes one whose devices the other columns'
// grants use least.
#ifndef BRAID_LIB_VOLUME_RESERVATION_H_
#define BRAID_LIB_VOLUME_RESERVATION_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_change.h"

namespace braid {

class Reservation {
 public:
  explicit Reservation(const Geometry& geometry);

  void Add(Grant grant);
  // Units for each leg, in all.
  uint64_t units() const { return units_; }
  // Whole rows of kSmallPerExtent units that TakeRow could give.
  uint64_t rows() const;

  // kSmallPerExtent units in one piece on every leg; nullopt when there are none.
  std::optional<Grant> TakeRow(uint32_t column);
  // Up to `count` units in one piece, fewer where no piece is as long; nullopt when empty.
  std::optional<Grant> TakeUnits(uint32_t column, uint64_t count);
  // Takes back what was taken and neither noted nor written.
  void PutBack(Grant grant) { Add(std::move(grant)); }
  // Takes exactly these units, when a journal is replayed. DataLoss: they are not here.
  absl::Status TakeExactly(const Grant& grant);
  // A device failed: grants with a leg there are no longer given out; returned, for
  // ReturnSpace.
  std::vector<Grant> DropDevice(DeviceIndex device);
  // What is beyond `keep` units, whole rows last, for ReturnSpace.
  std::vector<Grant> TakeExcess(uint64_t keep);
  std::vector<Grant> TakeAll() { return TakeExcess(0); }
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_RESERVATION_H_
