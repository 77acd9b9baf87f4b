// The part of the request path that only thin volumes have. volume.h tells how it fits in,
// thin_state.h what a change of the map is.
#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "lib/volume/volume.h"

namespace braid {
namespace {

// A trim is cut at multiples of so much: the map is locked for a part at a time.
constexpr uint64_t kTrimBytes = kTiB;

absl::Status NotThin() {
  return absl::FailedPreconditionError("the volume is not thin, or attached read-only");
}

// What each leg of a column has, as ranges that do not touch.
using Coverage = std::vector<UnitRange>;

// Every leg has the same units. Rows that a run covers in part are added to `partial`.
absl::Status CheckLegs(const Geometry& geometry, std::vector<MapRun> runs,
                       std::deque<ThinState::Row>& partial) {
  std::map<std::pair<uint32_t, uint64_t>, bool> rows;
  std::map<std::pair<uint32_t, uint32_t>, Coverage> legs;
  for (const MapRun& run : Normalize(std::move(runs))) {
    Coverage& coverage = legs[{run.column, run.leg}];
    if (!coverage.empty() && coverage.back().end() == run.first) {
      coverage.back().count += run.count;
    } else {
      coverage.push_back({run.column, run.first, run.count});
    }
    const ColumnUnit end = run.first + run.count;
    if (SmallOf(run.first) != 0) rows[{run.column, ExtentOf(run.first).value()}] = true;
    if (SmallOf(end) != 0) rows[{run.column, ExtentOf(end).value()}] = true;
  }
  for (const auto& [column_and_leg, coverage] : legs) {
    for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
      if (legs[{column_and_leg.first, leg}] != coverage) {
        return absl::InvalidArgumentError(
            absl::StrCat("in column ", column_and_leg.first, " legs ", column_and_leg.second,
                         " and ", leg, " do not have the same units; the map is damaged"));
      }
    }
  }
  for (const auto& [row, yes] : rows) partial.push_back({row.first, ExtentIndex(row.second)});
  return absl::OkStatus();
}

}  // namespace

absl::Status Volume::OpenThin(const std::vector<MapRun>& runs, AttachmentJournal* journal,
                              const Options& options) {
  std::deque<ThinState::Row> partial;
  if (absl::Status s = CheckLegs(geometry(), runs, partial); !s.ok()) return s;
  if (read_only_) return absl::OkStatus();
  if (journal == nullptr) return absl::InvalidArgumentError("a thin volume needs a journal");

  const auto stopped = [this](const absl::Status& why) { Stopped(why); };
  gate_ = std::make_unique<RequestGate>();
  absl::StatusOr<std::unique_ptr<ThinState>> state =
      ThinState::Open(map_.get(), slots_.get(), authority_, journal, gate_.get(),
                      options.applied_sequence, options.grants, stopped);
  if (!state.ok()) return state.status();
  state_ = *std::move(state);
  for (DeviceIndex device : options.missing) state_->Avoid(device);
  {
    MutexLock l(&state_->mu);
    state_->full_rows = std::move(partial);
  }
  first_writes_ =
      std::make_unique<FirstWrites>(state_.get(),
                                    FirstWrites::Options{.when_full = options.when_full,
                                                         .full_timeout = options.full_timeout,
                                                         .wanted = options.wanted},
                                    stopped);
  {
    MutexLock l(&end_mu_);
    to_end_ = first_writes_.get();
    if (!ended_.ok()) to_end_->End(ended_);
  }
  folder_ = std::make_unique<Folder>(
      state_.get(), Folder::Hooks{.flush_failed =
                                      [this](DeviceIndex device, int error) {
                                        // What cannot be helped is known to the volume by then.
                                        FlushFailed(device, error).IgnoreError();
                                      },
                                  .space_came_back = [this] { first_writes_->Nudge(); }});
  return absl::OkStatus();
}

void Volume::Stopped(const absl::Status& why) {
  // A shutdown ends what waits; all else goes on to the end.
  if (!absl::IsCancelled(why)) stopped_.store(true);
  MutexLock l(&end_mu_);
  if (ended_.ok()) ended_ = why;
  if (to_end_ != nullptr) to_end_->End(ended_);
}

// -------------------------------------------------------------------------- requests

absl::Status Volume::AwaitNoted(bool fua) {
  return fua ? state_->log->AwaitCommitted(state_->log->noted()) : absl::OkStatus();
}

absl::Status Volume::WriteThin(const Request& request) {
  const uint64_t length = request.io.length;
  if (absl::Status s = CheckChange(request.offset, length); !s.ok()) return s;
  if (length == 0) return absl::OkStatus();
  while (true) {
    bool lacks = false;
    absl::Status s;
    {
      const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kChange, request.offset, length);
      s = Exclusively(request.offset, length, [&] { return ChangeNoted(request, &lacks); });
    }
    if (!lacks) return s.ok() ? AwaitNoted(request.io.fua) : s;
    // What is bound here may be trimmed before the next round finds it; then there is one more.
    if (s = first_writes_->EnsureMapped(request.offset, request.data); !s.ok()) return s;
  }
}

absl::Status Volume::ZeroThin(const DeviceIo& io, uint64_t offset, uint64_t length,
                              bool with_edges) {
  if (absl::Status s = CheckChange(offset, length); !s.ok()) return s;
  const uint64_t step = kTrimBytes / UnitRoundBytes(geometry()) * UnitRoundBytes(geometry());
  for (const uint64_t end = offset + length; offset < end;) {
    const uint64_t part = std::min(end - offset, step - offset % step);
    UnitRanges whole;
    absl::InlinedVector<VolumeRange, 2> in_place;
    if (io.may_unmap) {
      whole = WholeUnits(geometry(), offset, part);
      if (with_edges) in_place = EdgeRanges(geometry(), offset, part);
    } else {
      in_place.push_back({offset, part});
    }
    bool done = false;
    while (!done) {
      if (absl::Status s = state_->log->AwaitRoom(whole.size()); !s.ok()) return s;
      const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kChange, offset, part);
      absl::Status s = Exclusively(offset, part, [&]() -> absl::Status {
        if (!whole.empty()) {
          const absl::StatusOr<std::optional<uint64_t>> freed = state_->Unbind(whole);
          if (!freed.ok()) return freed.status();
          if (!freed->has_value()) return absl::OkStatus();  // the log is full again
        }
        done = true;
        for (const VolumeRange& range : in_place) {
          Request request{io, range.offset, {}};
          request.io.length = range.length;
          bool lacks = false;  // zeros need nothing
          if (absl::Status zeroed = ChangeNoted(request, &lacks); !zeroed.ok()) return zeroed;
        }
        return absl::OkStatus();
      });
      if (!s.ok()) return s;
    }
    if (io.may_unmap && with_edges) UnbindZeroEdges(offset, part, whole);
    offset += part;
  }
  return AwaitNoted(io.fua);
}

bool Volume::IsZero(const UnitRange& unit) {
  // In parts: most that are not zero show it in the first.
  constexpr uint64_t kPart = 16 * kKiB;
  std::array<char, kPart> part;
  const VolumeRange range = RangeOf(geometry(), unit);
  const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, range.offset, range.length);
  const ColumnPlace place = PlaceOf(unit.column, unit.first);
  for (uint64_t done = 0; done < kSmallExtentBytes; done += kPart) {
    const Piece piece{range.offset, kPart, {place.column, place.offset + done}};
    if (!ReadPiece(piece, part.data(), 0).ok() || !AllZero(part)) return false;
  }
  // A device that did not take a flush may have dropped what another leg has.
  for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
    const LegPlace at = map_->Look(place, leg);
    if (at.mapped() && !at.stale() && (*slots_)[at.device()].failing.load()) return false;
  }
  return true;
}

void Volume::UnbindZeroEdges(uint64_t offset, uint64_t length, const UnitRanges& whole) {
  // Stripes smaller than a unit pass by each more than once.
  UnitRanges edges;
  for (const VolumeRange& range : EdgeRanges(geometry(), offset, length)) {
    ForEachUnitPiece(geometry(), range.offset, range.length, [&](const Piece& piece) {
      const auto has = [&](const UnitRange& r) {
        return r.Contains(piece.place.column, UnitOf(piece.place));
      };
      if (std::none_of(whole.begin(), whole.end(), has) &&
          std::none_of(edges.begin(), edges.end(), has)) {
        edges.push_back({piece.place.column, UnitOf(piece.place), 1});
      }
      return true;
    });
  }
  for (const UnitRange& unit : edges) {
    // First without holding anybody up; a unit without space needs nothing.
    {
      const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, 0, 0);
      if (!state_->HasSpace(unit.column, unit.first)) continue;
    }
    if (!IsZero(unit) || !state_->log->AwaitRoom(1).ok()) continue;
    const VolumeRange range = RangeOf(geometry(), unit);
    RequestGate::Hold hold(*gate_, range.offset, range.length);
    // Should there be no room or memory, the unit stays, as good as it was.
    if (IsZero(unit)) state_->Unbind(absl::MakeConstSpan(&unit, 1)).IgnoreError();
  }
}

// ------------------------------------------------------------------- for the holder

absl::StatusOr<uint64_t> Volume::ReleaseIf(uint64_t offset, uint64_t length,
                                           absl::FunctionRef<bool()> still_free) {
  if (absl::Status s = CheckChange(offset, length); !s.ok()) return s;
  if (state_ == nullptr) return NotThin();
  const UnitRanges whole = WholeUnits(geometry(), offset, length);
  if (whole.empty()) return 0;
  while (true) {
    if (absl::Status s = state_->log->AwaitRoom(whole.size()); !s.ok()) return s;
    RequestGate::Hold hold(*gate_, offset, length);
    if (!still_free()) return 0;
    const absl::StatusOr<std::optional<uint64_t>> freed = state_->Unbind(whole);
    if (!freed.ok()) return freed.status();
    if (freed->has_value()) return **freed * kSmallExtentBytes;
  }
}

uint64_t Volume::MappedBytes(uint64_t offset, uint64_t length) {
  if (state_ == nullptr || !CheckRange(offset, length).ok()) return 0;
  const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, offset, length);
  uint64_t units = 0;
  for (const UnitRange& range : WholeUnits(geometry(), offset, length)) {
    units += state_->CountMapped(range);
  }
  return units * kSmallExtentBytes;
}

void Volume::EndWaits() {
  if (state_ == nullptr) return;
  const absl::Status why = ErrnoStatus(ESHUTDOWN, "the server ends");
  state_->log->EndWaits(why);
  first_writes_->End(why);
}

absl::Status Volume::Finish() {
  if (state_ == nullptr) return Flush();
  folder_->Stop();
  first_writes_->End(ErrnoStatus(ESHUTDOWN, "the volume was closed"));
  first_writes_->Stop();
  if (absl::Status s = Flush(); !s.ok()) return s;
  if (absl::Status s = AwaitNoted(true); !s.ok()) return s;
  std::vector<Grant> left;
  {
    MutexLock l(&state_->mu);
    left = state_->reservation.TakeAll();
    std::move(state_->unwanted.begin(), state_->unwanted.end(), std::back_inserter(left));
    state_->unwanted.clear();
  }
  if (!left.empty()) authority_->ReturnSpace(left);
  return absl::OkStatus();
}

}  // namespace braid
