#include "lib/volume/fold.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "lib/volume/io_plan.h"

namespace braid {
namespace {

using std::chrono::milliseconds;

// Between two looks at the list of full rows.
constexpr milliseconds kPeriod{100};
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
    MutexLock l(&mu_);
    stopping_ = true;
    stop_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool Folder::Pause(milliseconds time) {
  const auto until = std::chrono::steady_clock::now() + time;
  MutexLock l(&mu_);
  while (!stopping_ && std::chrono::steady_clock::now() < until) stop_.WaitUntil(&mu_, until);
  return !stopping_;
}

void Folder::Work() {
  milliseconds pause = kPeriod;
  while (Pause(pause)) {
    pause = kPeriod;
    std::optional<ThinState::Row> row;
    {
      MutexLock l(&state_.mu);
      if (!state_.full_rows.empty()) {
        row = state_.full_rows.front();
        state_.full_rows.pop_front();
      }
    }
    if (row.has_value()) {
      pause = kAfterCopy;
      if (Fold(*row) == Result::kNotNow) {
        MutexLock l(&state_.mu);
        state_.full_rows.push_back(*row);
        pause = kNotNowPeriod;
      }
    }
    RecycleTables();
  }
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
    if (places.empty() || Join(row, places) || disabled_) return Result::kDone;
    if (state_.reservation.rows() <= kRowsLeft) return Result::kNotNow;
    std::optional<Grant> taken = state_.reservation.TakeRow(row.column);
    if (!taken.has_value()) return Result::kNotNow;
    to = *std::move(taken);
  }
  state_.journal.NoteScratch(to);
  const bool moved = Move(row, to);
  if (!moved && !state_.Scrub(to)) {
    disabled_ = true;
    return Result::kDone;
  }
  state_.journal.ClearScratch();
  if (!moved) {
    MutexLock l(&state_.mu);
    state_.reservation.PutBack(to);
  }
  if (!moved) hooks_.space_came_back();
  return Result::kDone;
}

Folder::Places Folder::Look(ThinState::Row row) const {
  const uint64_t at = state_.geometry().Row(row.column, row.extent);
  Places places;
  for (uint32_t leg = 0; leg < state_.geometry().legs(); ++leg) {
    const MapWord word = state_.map.Word(at, leg);
    if (!word.is_table() || word.is_stale()) return {};
    for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
      const LegPlace place =
          state_.map.Look(PlaceOf(row.column, FirstUnit(row.extent) + small), leg);
      if (!place.mapped() || place.stale() || state_.slots[place.device()].failing.load()) {
        return {};
      }
      places.push_back(MapWord::Extent(place.device(),
                                       DeviceUnit(place.device_offset() / kSmallExtentBytes)));
    }
  }
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
  // Nothing is waited for while the row is held but devices.
  if (!state_.log->AwaitRoom(1).ok()) return false;
  std::vector<std::pair<DeviceIndex, int>> flushes_failed;
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
    moved = !from.empty() && Copy(row, from, to, flushes_failed) && Enter(row, from, to);
  }
  for (const auto& [device, error] : flushes_failed) hooks_.flush_failed(device, error);
  return moved;
}

bool Folder::Copy(ThinState::Row row, const Places& from, const Grant& to,
                  std::vector<std::pair<DeviceIndex, int>>& flushes_failed) {
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
  IoPlan flush(DeviceIo{.kind = IoKind::kFlush});
  for (const UnitPlace& place : to.legs) {
    write.Add(Piece{.length = kExtentBytes}, 0, place.device,
              place.unit.value() * kSmallExtentBytes, buffer_.data());
    flush.Add(Piece{}, 0, place.device, 0, nullptr);
  }
  if (!write.Run(device_of)) return false;
  if (flush.Run(device_of)) return true;
  for (const IoPlan::DeviceRequest& failed : flush.requests()) {
    if (failed.io.error != 0) flushes_failed.emplace_back(failed.device, failed.io.error);
  }
  return false;
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
