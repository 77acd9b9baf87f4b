#include "nbdkit-plugin/reclaim.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace braid {
namespace {

using Extent = ext4::FileSystem::Extent;
using View = ext4::FileSystem::View;

constexpr absl::Duration kReportInterval = absl::Milliseconds(300);
// A busy file system overwrites its log all the time, but seldom during ten looks.
constexpr int kLooks = 10;
constexpr absl::Duration kLookPause = absl::Milliseconds(200);
// A commit record under way is written within this, or the device is not worth waiting for.
constexpr absl::Duration kRecordPatience = absl::Seconds(5);
constexpr absl::Duration kRecordPause = absl::Milliseconds(20);

absl::Status Stopped() { return absl::CancelledError("the reclaim was stopped"); }

}  // namespace

// What one pass over all file systems carries along.
struct Reclaimer::Pass {
  const bool dry_run;
  const absl::FunctionRef<bool(const ReclaimCounts&)> report;
  ReclaimCounts& counts;
  std::optional<uint64_t> quiet;  // as ClientCount has it; nullopt: online
  absl::Time reported = absl::InfinitePast();
};

Reclaimer::Reclaimer(ReclaimVolume* volume, FindReclaimable find, WriteWatch* watch,
                     const ClientCount* clients, absl::Duration relearn)
    : volume_(*volume),
      find_(std::move(find)),
      watch_(*watch),
      clients_(*clients),
      relearn_(relearn),
      read_([this](uint64_t offset, absl::Span<char> data) {
        return over() ? Stopped() : volume_.Read(offset, data);
      }) {}

Reclaimer::~Reclaimer() {
  for (const Known& known : known_) watch_.Remove(known.journal);
}

void Reclaimer::Watch(Known& known) {
  WriteWatch::Journal journal;
  for (const Extent& extent : known.file_system->journal())
    journal.places.push_back({extent.offset, extent.length});
  journal.block_bytes = known.file_system->block_bytes();
  journal.commit_in = ext4::CommitSequence;
  known.journal = watch_.Add(std::move(journal));
}

absl::Status Reclaimer::Refresh() {
  look_again_ = watch_.TakeChanged() || look_again_;
  if (!look_again_) return absl::OkStatus();
  absl::StatusOr<FoundFileSystems> found = find_(read_, volume_.size_bytes());
  if (!found.ok()) return found.status();
  look_again_ = false;
  looked_ = absl::Now();
  refused_ = std::move(found->refused);
  std::vector<Known> now;
  for (std::shared_ptr<ReclaimFileSystem>& file_system : found->usable) {
    const auto same = std::find_if(known_.begin(), known_.end(), [&](const Known& known) {
      return known.file_system != nullptr &&
             known.file_system->description() == file_system->description() &&
             known.file_system->journal() == file_system->journal();
    });
    if (same != known_.end()) {
      // With what it remembers of its block groups.
      now.push_back(*same);
      same->file_system = nullptr;
    } else {
      Known added{std::move(file_system), 0};
      Watch(added);
      now.push_back(std::move(added));
    }
  }
  for (const Known& known : known_)
    if (known.file_system != nullptr) watch_.Remove(known.journal);
  known_ = std::move(now);
  return absl::OkStatus();
}

void Reclaimer::Report(Pass& pass) {
  if (over() || absl::Now() - pass.reported < kReportInterval) return;
  pass.reported = absl::Now();
  if (!pass.report(pass.counts)) unwanted_ = true;
}

void Reclaimer::Learn() {
  unwanted_ = false;
  if (!known_.empty() && absl::Now() - looked_ < relearn_) return;
  // Not readable now, or in the middle of a mkfs: the next look tells.
  (void)Refresh();
}

absl::Status Reclaimer::Run(bool dry_run, absl::FunctionRef<bool(const ReclaimCounts&)> report,
                            ReclaimCounts& counts) {
  counts = {};
  unwanted_ = false;
  look_again_ = true;
  if (absl::Status status = Refresh(); !status.ok()) return status;
  absl::Status result = refused_.empty() ? absl::OkStatus() : refused_.front();
  if (known_.empty() && result.ok())
    return absl::FailedPreconditionError(
        "there is no ext4 file system in the volume, whole or in a partition; have its client "
        "discard what it does not use (fstrim)");
  Pass pass{.dry_run = dry_run, .report = report, .counts = counts, .quiet = clients_.Quiet()};
  for (const Known& known : known_) {
    absl::StrAppend(&counts.file_system, counts.file_system.empty() ? "" : ", ",
                    known.file_system->description());
    counts.groups_total += known.file_system->group_count();
  }
  for (Known& known : known_) {
    const uint64_t done_before = counts.groups_done;
    absl::Status status = RunOne(known, pass);
    if (over()) return Stopped();
    counts.groups_done = done_before + known.file_system->group_count();
    if (result.ok()) result = std::move(status);
  }
  return result;
}

absl::Status Reclaimer::RunOne(Known& known, Pass& pass) {
  const uint64_t done_before = pass.counts.groups_done;
  absl::StatusOr<View> view = absl::AbortedError("");
  for (int look = 0; look < kLooks && absl::IsAborted(view.status()); ++look) {
    if (look > 0) absl::SleepFor(kLookPause);
    // Who comes while an offline view is taken may have written into the middle of it.
    const bool offline = pass.quiet.has_value() && clients_.Quiet() == pass.quiet;
    if (!offline) pass.quiet = std::nullopt;
    view = known.file_system->Look(offline, [&](uint32_t groups_done) {
      pass.counts.groups_done = done_before + groups_done;
      // Once it is over the next read fails, and with it the look.
      Report(pass);
    });
    if (over()) return Stopped();
    if (view.ok() && offline && clients_.Quiet() != pass.quiet)
      view = absl::AbortedError("a client came");
  }
  if (absl::IsAborted(view.status()))
    return absl::AbortedError(
        absl::StrCat(known.file_system->description(),
                     " overwrote its log whenever it was read; try again when it has less to do"));
  if (!view.ok()) return view.status();
  pass.counts.groups_unchanged += view->groups_unchanged;

  uint32_t tick = 0;
  if (pass.quiet.has_value()) {
    if (absl::Status status = volume_.Flush(); !status.ok()) return status;
  } else {
    absl::StatusOr<uint32_t> settled = Settle(known, view->sequence);
    if (!settled.ok()) return settled.status();
    tick = *settled;
  }
  return Release(*view, tick, pass);
}

absl::StatusOr<uint32_t> Reclaimer::Settle(Known& known, uint32_t sequence) {
  // Whatever commit the view has something of was seen before the view could read it.
  const std::optional<uint32_t> newest = watch_.Newest(known.journal);
  const uint32_t tick = watch_.SettledBelow(known.journal, sequence);
  if (!newest.has_value() || !ext4::SequenceAtLeast(*newest, sequence) || tick == 0) return 0;
  const absl::Time give_up = absl::Now() + kRecordPatience;
  while (watch_.UnderWay(known.journal, *newest)) {
    if (over()) return Stopped();
    if (absl::Now() >= give_up) return 0;
    absl::SleepFor(kRecordPause);
  }
  // A record that failed is no longer under way, and its journal was forgotten.
  if (watch_.SettledBelow(known.journal, sequence) != tick) return 0;
  if (absl::Status status = volume_.Flush(); !status.ok()) return status;
  return tick;
}

absl::Status Reclaimer::Release(const View& view, uint32_t tick, Pass& pass) {
  const uint64_t row = volume_.row_bytes();
  for (const Extent& range : view.free) {
    uint64_t offset = range.offset;
    uint64_t left = range.length;
    while (left > 0) {
      Report(pass);
      if (over()) return Stopped();
      const uint64_t length = std::min(left, row - offset % row);
      if (absl::Status status = ReleasePiece(offset, length, tick, pass); !status.ok())
        return status;
      offset += length;
      left -= length;
    }
  }
  return absl::OkStatus();
}

// Of the part of a row that is free. Runs of extents that are settled go together, for a
// unit of a striped volume may lie in several.
absl::Status Reclaimer::ReleasePiece(uint64_t offset, uint64_t length, uint32_t tick, Pass& pass) {
  const uint64_t mapped = volume_.MappedBytes(offset, length);
  if (mapped == 0) return absl::OkStatus();
  const auto settled = [&](uint64_t at, uint64_t bytes) {
    if (pass.quiet.has_value()) return clients_.Quiet() == pass.quiet;
    return watch_.StampedBelow(tick, at, bytes);
  };
  uint64_t freed = 0;
  const uint64_t end = offset + length;
  uint64_t at = offset;
  while (at < end) {
    const auto extent_end = [&](uint64_t begin) {
      return std::min(end, (begin / WriteWatch::kStampBytes + 1) * WriteWatch::kStampBytes);
    };
    uint64_t run_end = at;
    while (run_end < end && settled(run_end, extent_end(run_end) - run_end))
      run_end = extent_end(run_end);
    if (run_end == at) {
      at = extent_end(at);
      continue;
    }
    const uint64_t bytes = run_end - at;
    if (pass.dry_run) {
      freed += volume_.MappedBytes(at, bytes);
    } else {
      absl::StatusOr<uint64_t> released =
          volume_.ReleaseIf(at, bytes, [&] { return settled(at, bytes); });
      if (!released.ok()) return released.status();
      freed += *released;
    }
    at = run_end;
  }
  pass.counts.free_bytes += mapped;
  if (!pass.dry_run) pass.counts.released_bytes += freed;
  pass.counts.deferred_bytes += mapped - std::min(mapped, freed);
  return absl::OkStatus();
}

}  // namespace braid
