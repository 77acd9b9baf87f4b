#include "controlplane/server/holder_tasks.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace braid {
namespace {

// How soon a caller that has gone away is noticed.
constexpr absl::Duration kLookAround = absl::Milliseconds(200);

absl::Status Stopping() {
  return absl::UnavailableError("braidd is stopping; try again when it runs");
}

}  // namespace

// Numbers begin where no earlier braidd has been, so that a report of a task from before a
// restart is taken for no other.
HolderTasks::HolderTasks(CheckHeld check_held, const Patience& patience)
    : check_held_(std::move(check_held)),
      patience_(patience),
      next_id_(static_cast<uint64_t>(absl::GetCurrentTimeNanos())) {}

absl::Status HolderTasks::Watch(const Uuid& volume, Epoch epoch, std::shared_ptr<Watcher> watcher) {
  absl::MutexLock lock(&mu_);
  if (stopped_) return Stopping();
  // Under the lock that EndEpochs takes after its commit: an epoch that ends after this look
  // finds the watcher.
  if (absl::Status held = check_held_(volume, epoch); !held.ok()) return held;
  Place& place = places_[volume];
  if (place.watcher != nullptr) {
    place.watcher->End(absl::AbortedError("another stream watches this volume now"));
    if (place.job != nullptr && place.job->handed) {
      EndJob(place.job, absl::AbortedError(
                            "the volume's holder lost its connection and came back; try again"));
    }
  }
  place.watcher = std::move(watcher);
  place.epoch = epoch;
  HandJob(place);
  return absl::OkStatus();
}

void HolderTasks::Unwatch(const Uuid& volume, const Watcher* watcher) {
  absl::MutexLock lock(&mu_);
  const auto found = places_.find(volume);
  if (found == places_.end() || found->second.watcher.get() != watcher) return;
  found->second.watcher.reset();
  if (Job* job = found->second.job; job != nullptr && job->handed) {
    EndJob(job, absl::AbortedError("the volume's holder ended, or lost its connection to the "
                                   "site; see 'braid attach --list', then try again"));
  }
  DropIfEmpty(volume);
}

void HolderTasks::EndEpochs(const Uuid& volume, Epoch last) {
  absl::MutexLock lock(&mu_);
  const auto found = places_.find(volume);
  if (found == places_.end()) return;
  Place& place = found->second;
  if (place.watcher != nullptr && place.epoch <= last) {
    place.watcher->End(absl::FailedPreconditionError(
        absl::StrCat("epoch ", place.epoch.value(), " of this volume is over")));
    place.watcher.reset();
  }
  if (place.job != nullptr && place.job->epoch <= last) {
    EndJob(place.job, absl::AbortedError("the volume was detached meanwhile; attach it, then try "
                                         "again"));
  }
  DropIfEmpty(volume);
}

void HolderTasks::Stop() {
  absl::MutexLock lock(&mu_);
  stopped_ = true;
  for (auto& [volume, place] : places_) {
    if (place.watcher != nullptr) place.watcher->End(Stopping());
    place.watcher.reset();
    if (place.job != nullptr) EndJob(place.job, Stopping());
  }
  absl::erase_if(places_, [](const auto& entry) { return entry.second.job == nullptr; });
}

absl::Status HolderTasks::Report(const Uuid& volume, Epoch epoch, uint64_t task,
                                 const v1::ReclaimReport& report, bool done,
                                 const absl::Status& outcome) {
  absl::MutexLock lock(&mu_);
  if (absl::Status held = check_held_(volume, epoch); !held.ok()) return held;
  const auto found = places_.find(volume);
  Job* job = found == places_.end() ? nullptr : found->second.job;
  if (job == nullptr || !job->handed || job->id != task || job->epoch != epoch || job->done) {
    return absl::NotFoundError(absl::StrCat("nobody waits for task ", task, " any more; stop it"));
  }
  job->report = report;
  job->reported = true;
  if (done) EndJob(job, outcome);
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<v1::ReclaimReport> HolderTasks::Reclaim(
    const Uuid& volume, Epoch epoch, bool dry_run,
    absl::FunctionRef<bool(const v1::ReclaimReport&)> progress,
    absl::FunctionRef<bool()> cancelled) {
  absl::MutexLock lock(&mu_);
  if (stopped_) return Stopping();
  if (absl::Status held = check_held_(volume, epoch); !held.ok()) return held;
  Place& place = places_[volume];
  if (place.job != nullptr) {
    return absl::FailedPreconditionError(
        "the volume is being reclaimed already; wait until that has ended");
  }
  Job job{.id = next_id_++, .epoch = epoch, .dry_run = dry_run};
  place.job = &job;
  HandJob(place);
  absl::Status status = Await(job, progress, cancelled);
  places_[volume].job = nullptr;
  DropIfEmpty(volume);
  if (!status.ok()) return status;
  return std::move(job.report);
}

absl::Status HolderTasks::Await(Job& job,
                                absl::FunctionRef<bool(const v1::ReclaimReport&)> progress,
                                absl::FunctionRef<bool()> cancelled) {
  absl::Time heard = absl::Now();
  bool handed = job.handed;
  while (!job.done) {
    changed_.WaitWithTimeout(&mu_, kLookAround);
    const absl::Time now = absl::Now();
    if (job.reported || job.handed != handed) {
      heard = now;
      handed = job.handed;
    }
    if (job.reported && !job.done) {
      job.reported = false;
      const v1::ReclaimReport report = job.report;
      mu_.Unlock();
      const bool there = progress(report);
      mu_.Lock();
      if (!there) return absl::CancelledError("the caller went away");
    }
    if (job.done) break;
    if (cancelled()) return absl::CancelledError("the caller went away");
    if (!job.handed && now - heard > patience_.for_watcher) {
      return absl::FailedPreconditionError(
          "the volume's holder does not watch for tasks; detach the volume and attach it again");
    }
    if (job.handed && now - heard > patience_.for_report) {
      return absl::AbortedError(absl::StrCat("the volume's holder has said nothing for ",
                                             absl::FormatDuration(patience_.for_report),
                                             "; see 'braid attach --list'"));
    }
  }
  return job.outcome;
}

void HolderTasks::HandJob(Place& place) {
  Job* job = place.job;
  if (job == nullptr || job->handed || job->done || place.watcher == nullptr ||
      place.epoch != job->epoch) {
    return;
  }
  v1::Task task;
  task.set_id(job->id);
  task.mutable_reclaim()->set_dry_run(job->dry_run);
  job->handed = true;
  place.watcher->Hand(task);
  changed_.SignalAll();
}

void HolderTasks::EndJob(Job* job, absl::Status outcome) {
  if (job->done) return;
  job->done = true;
  job->outcome = std::move(outcome);
  changed_.SignalAll();
}

void HolderTasks::DropIfEmpty(const Uuid& volume) {
  const auto found = places_.find(volume);
  if (found != places_.end() && found->second.watcher == nullptr && found->second.job == nullptr) {
    places_.erase(found);
  }
}

}  // namespace braid
