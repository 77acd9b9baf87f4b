// One WatchTasks stream. It is of gRPC's callback kind: a stream that stays open for as long
// as a volume is attached would cost the synchronous server a thread each.
#ifndef BRAID_CONTROLPLANE_SERVER_TASK_STREAM_H_
#define BRAID_CONTROLPLANE_SERVER_TASK_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "braid/v1/attachment.pb.h"
#include "controlplane/server/holder_tasks.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"

namespace braid {

// Keeps itself until gRPC is done with it. Locks: that of HolderTasks, then mu_.
class TaskStream final : public grpc::ServerWriteReactor<v1::Task>, public HolderTasks::Watcher {
 public:
  // The reactor of a call: watches, or ends with what Watch() says. `tasks` outlives the
  // server.
  static TaskStream* Start(HolderTasks* tasks, const Uuid& volume, Epoch epoch);
  // Of a call that is refused.
  static TaskStream* Refuse(const absl::Status& why);

  void Hand(const v1::Task& task) override ABSL_LOCKS_EXCLUDED(mu_);
  void End(const absl::Status& why) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  TaskStream(HolderTasks* tasks, const Uuid& volume) : tasks_(tasks), volume_(volume) {}
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone() override;
  void Leave() ABSL_LOCKS_EXCLUDED(mu_);

  HolderTasks* const tasks_;  // null when refused
  const Uuid volume_;
  std::shared_ptr<TaskStream> self_;  // until OnDone
  absl::Mutex mu_;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  v1::Task writing_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  // Comes next: only the newest, as a volume has one task at a time.
  std::optional<v1::Task> next_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_TASK_STREAM_H_
