#include "lib/volume/first_writes.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

#include "lib/base/errno_status.h"

namespace braid {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A write held by a full pool goes on within a second after space appears.
constexpr milliseconds kAskAgain{200};
// With nobody waiting there is time.
constexpr seconds kAskAgainIdle{2};
// Nothing bound for so long: what was kept for a writer is better with others.
constexpr seconds kIdle{5};
// Whoever waits for space looks so often whether he is still wanted.
constexpr seconds kLookAgain{1};
// In reserve: at least some rows, so that a burst finds something; at most what two seconds
// of a fast device take, so that the pool is not hoarded.
constexpr uint64_t kLeastRows = 8;
constexpr uint64_t kMostUnits = 4 * kGiB / kSmallExtentBytes;
// A request that covers three quarters of a row gets it whole.
constexpr uint64_t kLargeUnits = kSmallPerExtent * 3 / 4;

// `timeout` may be infinite.
std::chrono::steady_clock::time_point After(std::chrono::steady_clock::time_point now,
                                            absl::Duration timeout) {
  // Beyond a year is forever.
  return now + absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24 * 365)));
}

}  // namespace

void RecentCount::Add(uint64_t amount, Clock::time_point now) {
  const int64_t number = now.time_since_epoch() / kSlice;
  Slice& slice = slices_[static_cast<size_t>(number) % slices_.size()];
  if (slice.number != number) slice = {number, 0};
  slice.amount += amount;
}

uint64_t RecentCount::AtPeak(Clock::time_point now) const {
  const int64_t number = now.time_since_epoch() / kSlice;
  uint64_t most = 0;
  for (const Slice& slice : slices_) {
    if (slice.number > number - static_cast<int64_t>(slices_.size())) {
      most = std::max(most, slice.amount);
    }
  }
  return most * slices_.size();
}

FirstWrites::FirstWrites(ThinState* state, const Options& options,
                         std::function<void(const absl::Status&)> stopped)
    : state_(*state),
      options_(options),
      stopped_(std::move(stopped)),
      least_reserve_(std::max<uint64_t>(kLeastRows, uint64_t{2} * state->geometry().columns()) *
                     kSmallPerExtent),
      last_bound_(Clock::now()),
      thread_([this] { Refill(); }) {}

FirstWrites::~FirstWrites() { Stop(); }

void FirstWrites::Stop() {
  {
    MutexLock l(&state_.mu);
    ending_ = true;
    refill_.Signal();
  }
  if (thread_.joinable()) thread_.join();
}

void FirstWrites::End(const absl::Status& why) {
  MutexLock l(&state_.mu);
  if (ended_.ok()) ended_ = why;
  space_changed_.SignalAll();
  refill_.Signal();
}

void FirstWrites::Nudge() {
  MutexLock l(&state_.mu);
  refill_.Signal();
  if (waiting_ > 0) space_changed_.SignalAll();
}

// --------------------------------------------------------------------------- binding

absl::Status FirstWrites::EnsureMapped(uint64_t offset, absl::Span<const char> data) {
  const std::vector<UnitRange> lacking = Lacking(offset, data);
  if (lacking.empty()) return absl::OkStatus();
  std::optional<Clock::time_point> give_up;
  for (bool waited = false;; waited = true) {
    // After a wait whoever asked may be gone, and have sent the same again elsewhere.
    if (waited && options_.wanted && !options_.wanted()) {
      return ErrnoStatus(ESHUTDOWN, "the client of this write is gone");
    }
    uint64_t room = 0;
    {
      MutexLock l(&state_.mu);
      if (!ended_.ok()) return ended_;
      const Needs needs = NeedsOf(lacking);
      if (needs.rows.empty()) return absl::OkStatus();
      const std::vector<Binding> bindings = Take(needs);
      // Twice, so that there is room to take each back.
      if (!bindings.empty() && state_.log->HasRoom(2 * bindings.size())) return Bind(bindings);
      if (bindings.empty()) {
        if (absl::Status s = AwaitSpace(needs, give_up); !s.ok()) return s;
      } else {
        room = 2 * bindings.size();
        for (const Binding& binding : bindings) state_.reservation.PutBack(binding.grant);
        space_changed_.SignalAll();  // who looked meanwhile found it gone
      }
    }
    if (absl::Status s = state_.log->AwaitRoom(room); !s.ok()) return s;
  }
}

std::vector<UnitRange> FirstWrites::Lacking(uint64_t offset, absl::Span<const char> data) const {
  const RequestGate::Pass pass(&state_.gate, RequestGate::Kind::kRead, offset, data.size());
  std::vector<UnitRange> units;
  ForEachUnitPiece(state_.geometry(), offset, data.size(), [&](const Piece& piece) {
    const ColumnUnit unit = UnitOf(piece.place);
    if (!state_.HasSpace(piece.place.column, unit) &&
        !AllZero(data.subspan(piece.volume_offset - offset, piece.length))) {
      units.push_back({piece.place.column, unit, 1});
    }
    return true;
  });
  std::sort(units.begin(), units.end(), [](const UnitRange& a, const UnitRange& b) {
    return std::pair(a.column, a.first) < std::pair(b.column, b.first);
  });
  size_t kept = 0;
  for (const UnitRange& unit : units) {
    UnitRange* const last = kept > 0 ? &units[kept - 1] : nullptr;
    if (last != nullptr && last->Contains(unit.column, unit.first)) continue;
    if (last != nullptr && last->column == unit.column && last->end() == unit.first) {
      ++last->count;
    } else {
      units[kept++] = unit;
    }
  }
  units.resize(kept);
  return units;
}

FirstWrites::Needs FirstWrites::NeedsOf(absl::Span<const UnitRange> lacking) const {
  Needs needs;
  for (const UnitRange& range : lacking) {
    for (ColumnUnit unit = range.first; unit < range.end(); ++unit) {
      if (state_.HasSpace(range.column, unit)) continue;
      const ThinState::Row row{range.column, ExtentOf(unit)};
      if (needs.rows.empty() || needs.rows.back().row.column != row.column ||
          needs.rows.back().row.extent != row.extent) {
        needs.rows.push_back({.row = row});
      }
      RowNeed& need = needs.rows.back();
      if (!need.units.empty() && need.units.back().end() == unit) {
        ++need.units.back().count;
      } else {
        need.units.push_back({range.column, unit, 1});
      }
      ++need.count;
    }
  }
  for (RowNeed& need : needs.rows) {
    need.large = BetterLarge(need);
    needs.least_units += need.count;
    needs.wanted_units += need.large ? kSmallPerExtent : need.count;
  }
  return needs;
}

bool FirstWrites::BetterLarge(const RowNeed& need) const {
  const ColumnUnit first = FirstUnit(need.row.extent);
  if (first.value() + kSmallPerExtent > UnitsInUse(state_.geometry(), need.row.column)) {
    return false;  // the volume ends in it
  }
  if (state_.CountMapped({need.row.column, first, kSmallPerExtent}) > 0) return false;
  if (need.count >= kLargeUnits) return true;
  return need.units[0].first == first && need.row.extent.value() > 0 &&
         state_.WhollyMapped({need.row.column, ExtentIndex(need.row.extent.value() - 1)});
}

std::vector<FirstWrites::Binding> FirstWrites::Take(const Needs& needs) {
  std::vector<Binding> taken;
  if (state_.reservation.units() < needs.least_units) return taken;
  for (const RowNeed& need : needs.rows) {
    if (TakeRow(need, taken)) continue;
    for (const Binding& binding : taken) state_.reservation.PutBack(binding.grant);
    return {};
  }
  return taken;
}

bool FirstWrites::TakeRow(const RowNeed& need, std::vector<Binding>& taken) {
  if (need.large) {
    if (std::optional<Grant> row = state_.reservation.TakeRow(need.row.column)) {
      taken.push_back({{need.row.column, FirstUnit(need.row.extent), kSmallPerExtent}, *row});
      return true;
    }
  }
  for (UnitRange left : need.units) {
    while (left.count > 0) {
      std::optional<Grant> grant = state_.reservation.TakeUnits(need.row.column, left.count);
      if (!grant.has_value()) return false;
      taken.push_back({{left.column, left.first, grant->count}, *grant});
      left.first = left.first + grant->count;
      left.count -= grant->count;
    }
  }
  return true;
}

absl::Status FirstWrites::Bind(const std::vector<Binding>& bindings) {
  uint64_t units = 0;
  absl::Status status;
  for (const Binding& binding : bindings) {
    if (!status.ok()) {
      state_.reservation.PutBack(binding.grant);
      continue;
    }
    status = state_.Bind(binding.units, binding.grant);
    if (!status.ok()) continue;
    units += binding.units.count;
    const ThinState::Row row{binding.units.column, ExtentOf(binding.units.first)};
    if (binding.units.count < kSmallPerExtent && state_.WhollyMapped(row)) {
      state_.full_rows.push_back(row);
      state_.row_filled.Signal();
    }
  }
  last_bound_ = Clock::now();
  bound_.Add(units, last_bound_);
  if (Wanted(last_bound_) > 0) refill_.Signal();
  return status;
}

absl::Status FirstWrites::AwaitSpace(const Needs& needs,
                                     std::optional<Clock::time_point>& give_up) {
  const Clock::time_point now = Clock::now();
  if (full_) {
    if (!give_up.has_value()) give_up = After(now, options_.full_timeout);
    const bool out_of_time = options_.when_full == WhenFull::kWait
                                 ? now >= *give_up
                                 // An answer this old is asked for again.
                                 : now < asked_ + kAskAgain;
    if (out_of_time) {
      return ErrnoStatus(ENOSPC, "the pool has no space left; add a device or free some");
    }
  }
  ++waiting_;
  waiting_units_ += needs.wanted_units;
  refill_.Signal();
  const Clock::time_point look = now + kLookAgain;
  space_changed_.WaitUntil(&state_.mu, full_ ? std::min(look, *give_up) : look);
  --waiting_;
  waiting_units_ -= needs.wanted_units;
  return absl::OkStatus();
}

// --------------------------------------------------------------------------- refilling

uint64_t FirstWrites::Target(Clock::time_point now) const {
  return std::clamp(bound_.AtPeak(now), least_reserve_, std::max(least_reserve_, kMostUnits));
}

uint64_t FirstWrites::Wanted(Clock::time_point now) const {
  const uint64_t have = state_.reservation.units();
  const uint64_t target = Target(now);
  if (waiting_ > 0) return have < target + waiting_units_ ? target + waiting_units_ - have : 0;
  return have < target / 2 ? target - have : 0;
}

FirstWrites::Clock::time_point FirstWrites::NextLook(Clock::time_point now) const {
  if (Wanted(now) > 0) {
    if (!refused_) return now;
    return asked_ + (waiting_ > 0 ? milliseconds(kAskAgain) : milliseconds(kAskAgainIdle));
  }
  if (state_.reservation.units() > least_reserve_) return last_bound_ + kIdle;
  return Clock::time_point::max();
}

void FirstWrites::Refill() {
  state_.mu.Lock();
  while (!ending_ && ended_.ok()) {
    const Clock::time_point now = Clock::now();
    const Clock::time_point next = NextLook(now);
    const uint64_t wanted = next <= now ? Wanted(now) : 0;
    if (next <= now && wanted == 0) {
      std::vector<Grant> excess = state_.reservation.TakeExcess(least_reserve_);
      std::move(excess.begin(), excess.end(), std::back_inserter(state_.unwanted));
      last_bound_ = now;  // so that this is not looked at again at once
    }
    if (!state_.unwanted.empty()) {
      const std::vector<Grant> back = std::exchange(state_.unwanted, {});
      state_.mu.Unlock();
      state_.authority.ReturnSpace(back);
      state_.mu.Lock();
    } else if (wanted > 0) {
      state_.mu.Unlock();
      Ask(wanted);
      state_.mu.Lock();
    } else if (next == Clock::time_point::max()) {
      refill_.Wait(&state_.mu);
    } else {
      refill_.WaitUntil(&state_.mu, next);
    }
  }
  state_.mu.Unlock();
}

void FirstWrites::Ask(uint64_t units) {
  absl::StatusOr<MapAuthority::Space> space = state_.authority.TakeSpace(units);
  absl::Status fatal;
  {
    MutexLock l(&state_.mu);
    absl::Status s = space.status();
    // What cannot be this volume's is as bad as a map that cannot.
    if (s.ok()) s = TakeIn(*std::move(space));
    refused_ = !s.ok();
    full_ = absl::IsResourceExhausted(s);
    if (refused_) asked_ = Clock::now();
    if (refused_ && !full_ && !absl::IsUnavailable(s)) {
      ended_ = s;
      if (!absl::IsCancelled(s)) fatal = s;
    }
    space_changed_.SignalAll();
  }
  if (!fatal.ok()) stopped_(fatal);
}

absl::Status FirstWrites::TakeIn(MapAuthority::Space space) {
  for (std::unique_ptr<BlockDevice>& device : space.devices) {
    if (absl::Status s = state_.slots.Add(std::move(device)); !s.ok()) {
      return absl::DataLossError(s.message());
    }
  }
  for (const Grant& grant : space.grants) {
    if (absl::Status s = state_.AddGrant(grant); !s.ok()) return s;
  }
  if (space.grants.empty()) return absl::ResourceExhaustedError("no space was given");
  return absl::OkStatus();
}

}  // namespace braid
