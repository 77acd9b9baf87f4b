#include "lib/volume/thin_state.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/volume/io_plan.h"

namespace braid {
namespace {

Grant GrantOf(const MapChange& change, uint32_t legs) {
  Grant grant{.count = change.count};
  for (uint32_t leg = 0; leg < legs; ++leg) {
    grant.legs.push_back({change.legs[leg].device, change.legs[leg].unit, false});
  }
  return grant;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ThinState>> ThinState::Open(
    PageTable* map, DeviceSlots* slots, MapAuthority* authority, AttachmentJournal* journal,
    RequestGate* gate, uint64_t applied_sequence, const std::vector<Grant>& grants,
    std::function<void(const absl::Status&)> stopped) {
  auto state = absl::WrapUnique(new ThinState(map, slots, authority, journal, gate));
  {
    MutexLock l(&state->mu);
    for (const Grant& grant : grants) {
      if (absl::Status s = state->AddGrant(grant); !s.ok()) return s;
    }
    if (const auto& past = journal->past(); past.has_value()) {
      absl::StatusOr<absl::Span<const MapChange>> changes = past->ChangesAfter(applied_sequence);
      if (!changes.ok()) return changes.status();
      if (absl::Status s = state->Replay(*changes); !s.ok()) return s;
      // A fold that died may have written here; what it had moved is bound by now.
      FlushFailures failures;
      if (past->scratch.has_value() && state->reservation.TakeExactly(*past->scratch).ok() &&
          state->Scrub(*past->scratch, failures)) {
        state->reservation.PutBack(*past->scratch);
      }
    }
  }
  journal->ClearScratch();
  state->log =
      std::make_unique<MapLog>(journal, authority, gate, applied_sequence, std::move(stopped));
  return state;
}

absl::Status ThinState::AddGrant(const Grant& grant) {
  if (absl::Status s = CheckGrant(geometry(), grant, slots.count()); !s.ok()) return s;
  for (const UnitPlace& leg : grant.legs) {
    const BlockDevice& device = slots.device(leg.device);
    if (!RangeFits(leg.unit.value() * kSmallExtentBytes, grant.count * kSmallExtentBytes,
                   device.traits().size_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("a grant reaches past the end of device ",
                                                     device.name(), " (",
                                                     device.traits().size_bytes, " bytes)"));
    }
  }
  reservation.Add(grant);
  return absl::OkStatus();
}

absl::Status ThinState::Replay(absl::Span<const MapChange> changes) {
  for (const MapChange& change : changes) {
    absl::Status s = CheckMapChange(geometry(), change, slots.count());
    if (s.ok() && change.kind != MapChange::Kind::kUnbind) {
      s = reservation.TakeExactly(GrantOf(change, geometry().legs()));
    }
    if (s.ok() && change.kind != MapChange::Kind::kBind) {
      s = map.Clear(change.column, change.first, change.count);
    }
    if (s.ok() && change.kind != MapChange::Kind::kUnbind) s = EnterLegs(change);
    if (absl::IsResourceExhausted(s)) return s;
    if (!s.ok()) {
      return absl::DataLossError(absl::StrCat(
          "the attachment's journal does not go with the volume's map: ", s.message()));
    }
  }
  return absl::OkStatus();
}

bool ThinState::HasSpace(uint32_t column, ColumnUnit unit) const {
  for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
    if (!map.Look(PlaceOf(column, unit), leg).mapped()) return false;
  }
  return true;
}

uint64_t ThinState::CountMapped(const UnitRange& range) const {
  uint64_t mapped = 0;
  for (ColumnUnit unit = range.first; unit < range.end();) {
    const uint64_t in_row = std::min<uint64_t>(range.end() - unit, kSmallPerExtent - SmallOf(unit));
    const MapWord word = map.Word(geometry().Row(range.column, ExtentOf(unit)), 0);
    if (word.is_extent()) mapped += in_row;
    for (uint64_t i = 0; word.is_table() && i < in_row; ++i) {
      if (HasSpace(range.column, unit + i)) ++mapped;
    }
    unit = unit + in_row;
  }
  return mapped;
}

absl::Status ThinState::EnterLegs(const MapChange& change) {
  for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
    const UnitPlace& place = change.legs[leg];
    const MapRun run{.column = change.column,
                     .leg = leg,
                     .first = change.first,
                     .count = change.count,
                     .device = place.device,
                     .unit = place.unit,
                     .stale = place.stale};
    if (absl::Status s = map.Enter(run, slots.count()); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ThinState::Bind(const UnitRange& units, const Grant& grant) {
  MapChange change{.kind = MapChange::Kind::kBind,
                   .column = units.column,
                   .first = units.first,
                   .count = static_cast<uint32_t>(units.count)};
  const bool any_good = std::any_of(grant.legs.begin(), grant.legs.end(), [&](const UnitPlace& l) {
    return !slots[l.device].failing.load();
  });
  for (size_t leg = 0; leg < grant.legs.size(); ++leg) {
    change.legs[leg] = grant.legs[leg];
    // With no good leg the lowest stays in sync, as everywhere.
    change.legs[leg].stale = any_good ? slots[grant.legs[leg].device].failing.load() : leg > 0;
  }
  log->Note(change);
  if (absl::Status s = EnterLegs(change); !s.ok()) {
    map.Clear(units.column, units.first, units.count).IgnoreError();
    change.kind = MapChange::Kind::kUnbind;
    change.legs = {};
    log->Note(change);
    return s;
  }
  for (size_t leg = 0; leg < grant.legs.size(); ++leg) {
    if (!change.legs[leg].stale) slots[grant.legs[leg].device].live_units.fetch_add(units.count);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<uint64_t>> ThinState::Unbind(absl::Span<const UnitRange> ranges) {
  uint64_t freed = 0;
  MutexLock l(&mu);
  if (!log->HasRoom(ranges.size())) return std::nullopt;
  for (const UnitRange& range : ranges) {
    const uint64_t mapped = CountMapped(range);
    if (mapped == 0) continue;
    if (absl::Status s = map.Clear(range.column, range.first, range.count); !s.ok()) return s;
    log->Note({.kind = MapChange::Kind::kUnbind,
               .column = range.column,
               .first = range.first,
               .count = static_cast<uint32_t>(range.count)});
    freed += mapped;
  }
  return freed;
}

void ThinState::Avoid(DeviceIndex device) {
  MutexLock l(&mu);
  slots[device].failing.store(true);
  if (geometry().legs() == 1) {
    for (Grant& grant : reservation.DropDevice(device)) unwanted.push_back(std::move(grant));
    return;
  }
  for (Grant& grant : reservation.TakeAll()) {
    const bool meets = std::any_of(grant.legs.begin(), grant.legs.end(),
                                   [device](const UnitPlace& leg) { return leg.device == device; });
    if (meets) {
      unwanted.push_back(std::move(grant));
    } else {
      reservation.Add(std::move(grant));
    }
  }
}

absl::Status ThinState::BeginRetiring(DeviceIndex device) {
  Avoid(device);
  return log->MarkStale(device, geometry().legs());
}

absl::Status ThinState::MarkStale(DeviceIndex device) {
  {
    MutexLock l(&mu);
    if (absl::Status s = map.MarkDeviceStale(device); !s.ok()) return s;
  }
  CountLive();
  return absl::OkStatus();
}

void ThinState::CountLive() {
  MutexLock l(&mu);
  const std::vector<uint64_t> live = map.CountLive(slots.count());
  for (size_t i = 0; i < live.size(); ++i) {
    slots[DeviceIndex(static_cast<uint16_t>(i))].live_units.store(live[i]);
  }
}

bool ThinState::Scrub(const Grant& grant, FlushFailures& failures) {
  for (const UnitPlace& leg : grant.legs) {
    const uint64_t offset = leg.unit.value() * kSmallExtentBytes;
    if (!slots.device(leg.device).Zero(offset, grant.count * kSmallExtentBytes, false).ok()) {
      return false;
    }
  }
  return Flush(grant, failures);
}

bool ThinState::Flush(const Grant& grant, FlushFailures& failures) {
  IoPlan flush(DeviceIo{.kind = IoKind::kFlush});
  for (const UnitPlace& leg : grant.legs) flush.Add(Piece{}, 0, leg.device, 0, nullptr);
  if (flush.Run([this](DeviceIndex d) -> BlockDevice& { return slots.device(d); })) return true;
  for (const IoPlan::DeviceRequest& failed : flush.requests()) {
    if (failed.io.error != 0) failures.emplace_back(failed.device, failed.io.error);
  }
  return false;
}

}  // namespace braid
