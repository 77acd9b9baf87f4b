// The space that a thin volume may bind: what it was granted and has not used. Its owner
// locks (Volume's map_mu_). No I/O.
//
// Grants are taken from the front, rows of 64 units whole, small extents from a row that is
// open for them, so that the small extents of one time lie together. What is left of such a
// row is used up before another is opened, where it is long enough. Columns of a striped
// volume are kept apart where the grants allow: each column goes on with the grant it took
// from last, and a column that needs another takes one whose devices the other columns'
// grants use least.
//
// Kept as pieces, each a grant or what is left of one, by the place of their first leg, and
// in a list for each length up to a row. Pieces of two grants are never joined, so that what
// is taken at once is of one grant.
#ifndef BRAID_LIB_VOLUME_RESERVATION_H_
#define BRAID_LIB_VOLUME_RESERVATION_H_

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_change.h"

namespace braid {

class Reservation {
 public:
  explicit Reservation(const Geometry& geometry);

  // The grant has passed CheckGrant. One that overlaps, with its first leg, what is here is
  // passed over: the same grant answered twice.
  void Add(Grant grant);
  // Units for each leg, in all.
  uint64_t units() const { return units_; }
  // Whole rows of kSmallPerExtent units that TakeRow could give.
  uint64_t rows() const { return rows_; }

  // kSmallPerExtent units in one piece on every leg; nullopt when there are none.
  std::optional<Grant> TakeRow(uint32_t column);
  // Up to `count` units in one piece, fewer where no piece is as long; nullopt when empty
  // (or count is 0).
  std::optional<Grant> TakeUnits(uint32_t column, uint64_t count);
  // Takes back what was taken and neither noted nor written, to where it was.
  void PutBack(Grant grant);
  // Takes exactly these units, when a journal is replayed; whether a leg is stale does not
  // matter. DataLoss: they are not here, or not in one grant.
  absl::Status TakeExactly(const Grant& grant);
  // A device failed: grants with a leg there are no longer given out, nor counted; returned,
  // for ReturnSpace. Such that come later are kept aside for TakeExcess.
  std::vector<Grant> DropDevice(DeviceIndex device);
  // What is beyond `keep` units, whole rows last, for ReturnSpace.
  std::vector<Grant> TakeExcess(uint64_t keep);
  std::vector<Grant> TakeAll() { return TakeExcess(0); }

 private:
  // Of the first leg.
  struct Key {
    DeviceIndex device;
    DeviceUnit unit;
    friend auto operator<=>(const Key&, const Key&) = default;  // NOLINT(modernize-use-nullptr)
  };
  struct Piece {
    Grant grant;
    // Units of the same grant that lay before it.
    uint64_t before = 0;
  };
  using Pieces = std::map<Key, Piece>;
  // What a column took from last; of the keys the pieces may be gone.
  struct Column {
    std::vector<DeviceIndex> devices;
    std::optional<Key> row;
    std::optional<Key> small;
  };
  // Of pieces that would do, as many are looked at; a bound on the time under the lock.
  static constexpr int kLook = 64;

  static Key KeyOf(const Grant& grant) { return {grant.legs[0].device, grant.legs[0].unit}; }
  static bool Continues(const Piece& left, const Piece& right);
  bool IsDropped(const Grant& grant) const;
  // The piece that has this place.
  Pieces::iterator Find(const Key& key);
  void Insert(Piece piece);
  Piece Remove(Pieces::iterator at);
  // Takes `count` units out of a piece, from `offset` on; the rest stays.
  Grant Cut(Pieces::iterator at, uint64_t offset, uint64_t count);
  Grant CutFront(Pieces::iterator at, uint64_t count) { return Cut(at, 0, count); }
  // How many grants that other columns go on with share devices with this one.
  uint64_t Shared(const Column& column, const Grant& grant) const;
  void GoOn(Column& column, const Grant& taken);

  struct Choice {
    Pieces::iterator piece;
    uint64_t shared = 0;
  };
  // Of the pieces with at least `count` units, among those shorter than a row, the shortest;
  // and among those with a row or more.
  std::optional<Choice> ChooseShort(const Column& column, uint64_t count);
  std::optional<Choice> ChooseLong(const Column& column, uint64_t count);

  std::vector<Column> columns_;
  std::vector<uint32_t> uses_;  // by device: columns that go on there
  std::vector<DeviceIndex> dropped_;
  std::vector<Grant> aside_;  // on those, and not yet returned
  uint64_t units_ = 0;
  uint64_t rows_ = 0;
  Pieces pieces_;
  // Where pieces of a length begin; the last is for a row and more.
  std::array<std::set<Key>, kSmallPerExtent + 1> by_length_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_RESERVATION_H_
