// Tasks that the site has for the holders of volumes: from who asks (ReclaimVolume) to who
// holds (WatchTasks), and the reports back (ReportTask).
//
// A task lives only as long as both sides do, and only in memory: when the caller goes away,
// the holder ends or loses its stream, the epoch ends or braidd does, the task is over. The
// caller is told why; the holder is told with its next report, which nobody waits for. So a
// task is never done twice, and none is left behind.
#ifndef BRAID_CONTROLPLANE_SERVER_HOLDER_TASKS_H_
#define BRAID_CONTROLPLANE_SERVER_HOLDER_TASKS_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.pb.h"
#include "braid/v1/volume.pb.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"

namespace braid {

// Thread-safe.
class HolderTasks {
 public:
  // A holder's stream. Neither call waits, or calls back into HolderTasks.
  class Watcher {
   public:
    virtual ~Watcher() = default;
    virtual void Hand(const v1::Task& task) = 0;
    // The last call.
    virtual void End(const absl::Status& why) = 0;
  };

  struct Patience {
    // A holder that has just come, or whose braidd has just restarted, watches within this.
    absl::Duration for_watcher = absl::Seconds(5);
    // A holder reports every 30 s at least (attachment.proto); one that is stopped, or hangs
    // on a device, never does.
    absl::Duration for_report = absl::Seconds(120);
  };

  // `check_held` says whether an epoch of a volume is its present one and held; NotFound,
  // FailedPrecondition. Called under a lock: it waits for nothing.
  using CheckHeld = std::function<absl::Status(const Uuid& volume, Epoch epoch)>;
  explicit HolderTasks(CheckHeld check_held) : HolderTasks(std::move(check_held), Patience()) {}
  HolderTasks(CheckHeld check_held, const Patience& patience);

  // Hands the watcher this volume's tasks from now on, and ends the one before. After an
  // error the watcher is not kept and nothing of it is called.
  absl::Status Watch(const Uuid& volume, Epoch epoch, std::shared_ptr<Watcher> watcher)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The stream broke. Nothing of the watcher is called after this.
  void Unwatch(const Uuid& volume, const Watcher* watcher) ABSL_LOCKS_EXCLUDED(mu_);
  // Every epoch up to `last` is over: call it after the commit that ended it.
  void EndEpochs(const Uuid& volume, Epoch last) ABSL_LOCKS_EXCLUDED(mu_);
  // braidd stops: all tasks and watchers end, and none come any more.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // Of a holder. With `done` the last one, and `outcome` counts. NotFound: nobody waits.
  absl::Status Report(const Uuid& volume, Epoch epoch, uint64_t task,
                      const v1::ReclaimReport& report, bool done, const absl::Status& outcome)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Has the holder of this epoch reclaim, and calls `progress` with what it reports, but for
  // the last report, which is the result. `progress` returns false, or `cancelled` true, when
  // the caller has gone: Cancelled. FailedPrecondition: no holder watches, or the volume is
  // being reclaimed already. Aborted: the holder ended. Else the holder's own error.
  absl::StatusOr<v1::ReclaimReport> Reclaim(
      const Uuid& volume, Epoch epoch, bool dry_run,
      absl::FunctionRef<bool(const v1::ReclaimReport&)> progress,
      absl::FunctionRef<bool()> cancelled) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // What a caller waits for; lives on its stack, for as long as the volume's place has it.
  struct Job {
    uint64_t id = 0;
    Epoch epoch;
    bool dry_run = false;
    bool handed = false;
    v1::ReclaimReport report;  // the newest
    bool reported = false;     // since the caller last looked
    bool done = false;
    absl::Status outcome;
  };
  struct Place {
    std::shared_ptr<Watcher> watcher;
    Epoch epoch;  // the watcher's
    Job* job = nullptr;
  };

  void HandJob(Place& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndJob(Job* job, absl::Status outcome) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropIfEmpty(const Uuid& volume) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Until `job` is done, or nothing more can come of it.
  absl::Status Await(Job& job, absl::FunctionRef<bool(const v1::ReclaimReport&)> progress,
                     absl::FunctionRef<bool()> cancelled) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CheckHeld check_held_;
  const Patience patience_;
  absl::Mutex mu_;
  absl::CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Uuid, Place> places_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_HOLDER_TASKS_H_
