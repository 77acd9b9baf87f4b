// What the parts of a thin volume share: the map, the space that may be bound, and the log of
// what was, changed together under one lock.
//
//   first_writes.h  binds: takes from the reservation, notes, enters
//   thin_volume.cc  unbinds: trims, zeroes, released ranges
//   fold.h          moves: a full row of small extents into one piece
//
// The order within a change is what keeps promises after the process dies. A bind is noted
// before it is in the page table, so before any data can go there. An unbind is in the page
// table before it is noted, so no request finds what the log is about to give away (it
// waits for those that found it earlier).
//
// Under the lock bound units have a place on every leg, or none. Requests look without the
// lock and may find a bind, or unbind, of which some legs are done: they take such a unit
// for one without space.
#ifndef BRAID_LIB_VOLUME_THIN_STATE_H_
#define BRAID_LIB_VOLUME_THIN_STATE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/base/mutex.h"
#include "lib/mapping/map_change.h"
#include "lib/mapping/page_table.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/column_units.h"
#include "lib/volume/device_slots.h"
#include "lib/volume/map_authority.h"
#include "lib/volume/map_log.h"
#include "lib/volume/request_gate.h"
#include "lib/volume/reservation.h"

namespace braid {

class ThinState {
 public:
  // All outlive it. Enters what the holder before noted and the authority does not have, and
  // goes on with committing it. `stopped`: see MapLog. DataLoss: the journal, or a grant,
  // cannot be this volume's.
  static absl::StatusOr<std::unique_ptr<ThinState>> Open(
      PageTable* map, DeviceSlots* slots, MapAuthority* authority, AttachmentJournal* journal,
      RequestGate* gate, uint64_t applied_sequence, const std::vector<Grant>& grants,
      std::function<void(const absl::Status&)> stopped);
  ThinState(const ThinState&) = delete;
  ThinState& operator=(const ThinState&) = delete;

  struct Row {
    uint32_t column = 0;
    ExtentIndex extent;
  };

  const Geometry& geometry() const { return map.geometry(); }

  // Whether all of a unit's legs have space. With the lock it is so; without it may be past.
  bool HasSpace(uint32_t column, ColumnUnit unit) const;
  // Units of the range that have space.
  uint64_t CountMapped(const UnitRange& range) const;
  bool WhollyMapped(Row row) const {
    return CountMapped({row.column, FirstUnit(row.extent), kSmallPerExtent}) == kSmallPerExtent;
  }

  // InvalidArgument unless the grant fits the volume and its devices; else adds it.
  absl::Status AddGrant(const Grant& grant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Notes that the units get the grant's places, and enters them. There is room for two
  // changes in the log. ResourceExhausted: no memory; the units have no space then.
  absl::Status Bind(const UnitRange& units, const Grant& grant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Takes the space of the ranges away; the units it was. nullopt: the log has no room for
  // so many changes as there are ranges, and nothing was done.
  absl::StatusOr<std::optional<uint64_t>> Unbind(absl::Span<const UnitRange> ranges)
      ABSL_LOCKS_EXCLUDED(mu);

  // The device is failing, or not there. Grants with a leg there are unwanted; of those that
  // come later, because there are no others, that leg is bound as stale. Without mirrors
  // they are not used at all.
  void Avoid(DeviceIndex device) ABSL_LOCKS_EXCLUDED(mu);
  // Avoids the device, and makes what is noted and not committed stale there, before the
  // authority is told (MapLog::MarkStale).
  absl::Status BeginRetiring(DeviceIndex device) ABSL_LOCKS_EXCLUDED(mu);
  // After the authority knows: the page table, and what every device has in sync.
  absl::Status MarkStale(DeviceIndex device) ABSL_LOCKS_EXCLUDED(mu);
  void CountLive() ABSL_LOCKS_EXCLUDED(mu);

  // Devices that did not take a flush, with the error.
  using FlushFailures = std::vector<std::pair<DeviceIndex, int>>;
  // Zeroes granted units durably, for use as if new; false when a device would not.
  bool Scrub(const Grant& grant, FlushFailures& failures);
  // Flushes the devices of a grant.
  bool Flush(const Grant& grant, FlushFailures& failures);

  PageTable& map;
  DeviceSlots& slots;
  MapAuthority& authority;
  AttachmentJournal& journal;
  RequestGate& gate;

  // Waits for no request and no I/O. Before the locks of MapLog and PageTable.
  Mutex mu;
  Reservation reservation ABSL_GUARDED_BY(mu);
  // Granted, and of no more use here: for the authority.
  std::vector<Grant> unwanted ABSL_GUARDED_BY(mu);
  // Rows that became full of small extents, or may have been when the volume was opened.
  std::deque<Row> full_rows ABSL_GUARDED_BY(mu);
  CondVar row_filled;  // there is one more

  // Constant after Open.
  std::unique_ptr<MapLog> log;

 private:
  ThinState(PageTable* the_map, DeviceSlots* the_slots, MapAuthority* the_authority,
            AttachmentJournal* the_journal, RequestGate* the_gate)
      : map(*the_map),
        slots(*the_slots),
        authority(*the_authority),
        journal(*the_journal),
        gate(*the_gate),
        reservation(the_map->geometry()) {}

  absl::Status Replay(absl::Span<const MapChange> changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  absl::Status EnterLegs(const MapChange& change);
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_THIN_STATE_H_
