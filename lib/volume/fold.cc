#include "lib/volume/fold.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "lib/volume/io_plan.h"

namespace braid {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Between two looks at an empty list of full rows.
constexpr milliseconds kPeriod{500};
// After a row was copied: at most 40 rows, 160 MiB, a second on each leg.
constexpr milliseconds kAfterCopy{25};
// When there is no row to copy to, or the log is full.
constexpr milliseconds kNotNowPeriod{1000};
// Left for writers.
constexpr uint64_t kRowsLeft = 2;

}  // namespace

Folder::Folder(ThinState* state, Hooks hooks)
    : state_(*state), hooks_(std::move(hooks)), thread_([this] { Work(); }) {}

Folder::~Folder() { Stop(); }

void Folder::Stop() {
  {
    MutexLock l(&state_.mu);
    stopping_ = true;
    state_.row_filled.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Folder::Work() {
  state_.mu.Lock();
  while (!stopping_) {
    if (state_.full_rows.empty()) {
      state_.row_filled.WaitUntil(&state_.mu, Clock::now() + kPeriod);
      state_.mu.Unlock();
      RecycleTables();
      state_.mu.Lock();
      continue;
    }
    const ThinState::Row row = state_.full_rows.front();
    state_.full_rows.pop_front();
    state_.mu.Unlock();
    const Result result = Fold(row);
    state_.mu.Lock();
    if (result == Result::kNothing) continue;
    if (result == Result::kNotNow) state_.full_rows.push_back(row);
    const Clock::time_point until =
        Clock::now() + (result == Result::kNotNow ? kNotNowPeriod : kAfterCopy);
    while (!stopping_ && Clock::now() < until) state_.row_filled.WaitUntil(&state_.mu, until);
  }
  state_.mu.Unlock();
}

void Folder::RecycleTables() {
  RetiredTables tables = state_.map.TakeRetired();
  if (tables.empty()) return;
  state_.gate.Drain();
  state_.map.Recycle(std::move(tables));
}

Folder::Result Folder::Fold(ThinState::Row row) {
  Grant to;
  {
    MutexLock l(&state_.mu);
    const Places places = Look(row);
    if (places.empty() || Join(row, places) || disabled_) return Result::kNothing;
    if (state_.reservation.rows() <= kRowsLeft || !state_.log->HasRoom(1)) return Result::kNotNow;
    std::optional<Grant> taken = state_.reservation.TakeRow(row.column);
    if (!taken.has_value()) return Result::kNotNow;
    to = *std::move(taken);
  }
  state_.journal.NoteScratch(to);
  if (Move(row, to)) {
    state_.journal.ClearScratch();
    return Result::kCopied;
  }
  ThinState::FlushFailures failures;
  const bool clean = state_.Scrub(to, failures);
  for (const auto& [device, error] : failures) hooks_.flush_failed(device, error);
  if (!clean) {
    disabled_ = true;
    return Result::kCopied;
  }
  state_.journal.ClearScratch();
  {
    MutexLock l(&state_.mu);
    state_.reservation.PutBack(to);
  }
  hooks_.space_came_back();
  return Result::kCopied;
}

Folder::Places Folder::Look(ThinState::Row row) const {
  const uint64_t at = state_.geometry().Row(row.column, row.extent);
  Places places;
  bool large = true;
  for (uint32_t leg = 0; leg < state_.geometry().legs(); ++leg) {
    // One leg may lie in one piece where another does not.
    large = large && state_.map.Word(at, leg).is_extent();
    for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
      const LegPlace place =
          state_.map.Look(PlaceOf(row.column, FirstUnit(row.extent) + small), leg);
      if (!place.mapped() || place.stale() || state_.slots[place.device()].failing.load()) {
        return {};
      }
      places.push_back(
          MapWord::Extent(place.device(), DeviceUnit(place.device_offset() / kSmallExtentBytes)));
    }
  }
  if (large) places.clear();
  return places;
}

bool Folder::Join(ThinState::Row row, const Places& places) {
  for (size_t i = 0; i < places.size(); ++i) {
    const uint64_t small = i % kSmallPerExtent;
    const MapWord first = places[i - small];
    if (places[i] != MapWord::Extent(first.device(), first.unit() + small)) return false;
  }
  for (uint32_t leg = 0; leg < state_.geometry().legs(); ++leg) {
    state_.map.SetLarge(state_.geometry().Row(row.column, row.extent), leg,
                        places[size_t{leg} * kSmallPerExtent]);
  }
  return true;
}

bool Folder::Move(ThinState::Row row, const Grant& to) {
  ThinState::FlushFailures failures;
  bool moved = false;
  {
    const VolumeRange range =
        RangeOf(state_.geometry(), {row.column, FirstUnit(row.extent), kSmallPerExtent});
    RequestGate::Hold hold(state_.gate, range.offset, range.length);
    Places from;
    {
      MutexLock l(&state_.mu);
      from = Look(row);
    }
    moved = !from.empty() && Copy(row, from, to, failures) && Enter(row, from, to);
  }
  for (const auto& [device, error] : failures) hooks_.flush_failed(device, error);
  return moved;
}

bool Folder::Copy(ThinState::Row row, const Places& from, const Grant& to,
                  ThinState::FlushFailures& failures) {
  const auto device_of = [this](DeviceIndex d) -> BlockDevice& { return state_.slots.device(d); };
  buffer_.resize(kExtentBytes);
  IoPlan read(DeviceIo{.kind = IoKind::kRead});
  // Legs take turns, as they do for reads.
  const size_t leg = (row.extent.value() % to.legs.size()) * kSmallPerExtent;
  for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
    const MapWord place = from[leg + small];
    read.Add(Piece{.length = kSmallExtentBytes}, 0, place.device(), place.device_offset(),
             &buffer_[small * kSmallExtentBytes]);
  }
  if (!read.Run(device_of)) return false;

  IoPlan write(DeviceIo{.kind = IoKind::kWrite});
  for (const UnitPlace& place : to.legs) {
    write.Add(Piece{.length = kExtentBytes}, 0, place.device,
              place.unit.value() * kSmallExtentBytes, buffer_.data());
  }
  return write.Run(device_of) && state_.Flush(to, failures);
}

bool Folder::Enter(ThinState::Row row, const Places& from, const Grant& to) {
  MapChange move{.kind = MapChange::Kind::kMove,
                 .column = row.column,
                 .first = FirstUnit(row.extent),
                 .count = kSmallPerExtent};
  MutexLock l(&state_.mu);
  // A device that failed meanwhile may have given old bytes, or not have kept the new ones.
  if (Look(row) != from || !state_.log->HasRoom(1)) return false;
  for (size_t leg = 0; leg < to.legs.size(); ++leg) {
    if (state_.slots[to.legs[leg].device].failing.load()) return false;
    move.legs[leg] = to.legs[leg];
  }
  for (uint32_t leg = 0; leg < to.legs.size(); ++leg) {
    state_.map.SetLarge(state_.geometry().Row(row.column, row.extent), leg,
                        MapWord::Extent(to.legs[leg].device, to.legs[leg].unit));
    state_.slots[to.legs[leg].device].live_units.fetch_add(kSmallPerExtent);
  }
  state_.log->Note(move);
  return true;
}

}  // namespace braid
