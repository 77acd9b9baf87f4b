#include "lib/volume/map_log.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid {

MapLog::MapLog(AttachmentJournal* journal, MapAuthority* authority, RequestGate* gate,
               uint64_t applied, std::function<void(const absl::Status&)> stopped)
    : journal_(*journal),
      authority_(*authority),
      gate_(*gate),
      stopped_callback_(std::move(stopped)),
      // The journal has less than the authority when it is new since, as after a restart of
      // the machine.
      noted_(std::max(journal->last_change(), applied)),
      committed_(applied),
      sent_(applied),
      thread_([this] { Work(); }) {}

MapLog::~MapLog() {
  {
    MutexLock l(&mu_);
    ending_ = true;
    work_.Signal();
  }
  thread_.join();
}

bool MapLog::HasRoom(uint64_t count) const {
  const uint64_t committed_before = committed();  // first, so that it is not above noted()
  return count <= AttachmentJournal::kChanges &&
         noted() - committed_before <= AttachmentJournal::kChanges - count;
}

absl::Status MapLog::AwaitRoom(uint64_t count) {
  if (count > AttachmentJournal::kChanges) {
    return absl::InvalidArgumentError(absl::StrCat("a request of ", count,
                                                   " map changes; the journal has room for ",
                                                   AttachmentJournal::kChanges));
  }
  if (HasRoom(count)) return absl::OkStatus();
  MutexLock l(&mu_);
  while (!HasRoom(count) && stopped_.ok() && waits_ended_.ok()) settled_.Wait(&mu_);
  if (HasRoom(count)) return absl::OkStatus();
  return stopped_.ok() ? waits_ended_ : stopped_;
}

void MapLog::EndWaits(const absl::Status& status) {
  MutexLock l(&mu_);
  waits_ended_ = status;
  settled_.SignalAll();
}

uint64_t MapLog::Note(const MapChange& change) {
  assert(HasRoom(1));
  const uint64_t number = noted_.load(std::memory_order_relaxed) + 1;
  journal_.NoteChange(number, change);
  // Under the lock, so that the thread has not looked yet or waits already.
  MutexLock l(&mu_);
  noted_.store(number, std::memory_order_release);
  work_.Signal();
  return number;
}

absl::Status MapLog::AwaitCommitted(uint64_t sequence) {
  if (committed() >= sequence) return absl::OkStatus();
  assert(sequence <= noted());
  MutexLock l(&mu_);
  while (committed() < sequence && stopped_.ok()) settled_.Wait(&mu_);
  return committed() >= sequence ? absl::OkStatus() : stopped_;
}

absl::Status MapLog::MarkStale(DeviceIndex device, uint32_t legs) {
  MutexLock l(&mu_);
  const uint64_t last = noted();
  for (uint64_t number = committed() + 1; number <= last; ++number) {
    journal_.MarkChangeStale(number, device, legs);
  }
  const uint64_t under_way = sent_;
  while (committed() < under_way && stopped_.ok()) settled_.Wait(&mu_);
  return committed() >= under_way ? absl::OkStatus() : stopped_;
}

void MapLog::Work() {
  while (true) {
    const Group group = AwaitWork();
    if (group.count == 0) return;
    if (group.frees) gate_.Drain();
    absl::StatusOr<std::vector<MapChange>> changes = Take(group);
    const absl::Status status =
        changes.ok() ? authority_.CommitMap(group.first, *changes) : changes.status();
    Settle(group, status);
    if (status.ok()) continue;
    stopped_callback_(status);
    return;
  }
}

MapLog::Group MapLog::AwaitWork() {
  uint64_t last = 0;
  {
    MutexLock l(&mu_);
    while (noted() == committed() && !ending_) work_.Wait(&mu_);
    if (ending_) return {};
    last = noted();
  }
  Group group{.first = committed() + 1};
  group.count = std::min(last - group.first + 1, kGroup);
  for (uint64_t number = group.first; number < group.first + group.count; ++number) {
    const std::optional<MapChange> change = journal_.ReadChange(number);
    group.frees |= !change.has_value() || change->kind != MapChange::Kind::kBind;
  }
  return group;
}

absl::StatusOr<std::vector<MapChange>> MapLog::Take(const Group& group) {
  std::vector<MapChange> changes;
  changes.reserve(group.count);
  MutexLock l(&mu_);
  for (uint64_t number = group.first; number < group.first + group.count; ++number) {
    const std::optional<MapChange> change = journal_.ReadChange(number);
    if (!change.has_value()) {
      return absl::DataLossError(
          absl::StrCat("map change ", number,
                       " is no longer in the attachment's journal; see who else writes "
                       "to the volume's lock file"));
    }
    changes.push_back(*change);
  }
  sent_ = group.first + group.count - 1;
  return changes;
}

void MapLog::Settle(const Group& group, const absl::Status& status) {
  const uint64_t last = group.first + group.count - 1;
  MutexLock l(&mu_);
  if (status.ok()) {
    committed_.store(last, std::memory_order_release);
  } else {
    stopped_ = status;
  }
  settled_.SignalAll();
}

}  // namespace braid
