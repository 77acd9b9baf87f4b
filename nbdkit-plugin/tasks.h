// Does what the site wants the holder of a thin volume to do: keeps a stream open on which
// tasks come (WatchTasks), runs them one at a time, reports how they go.
//
// Two threads. One reads the stream, and opens it again when it ends, for braidd may restart;
// the other runs tasks and, between them, looks what file systems the volume has, so that
// their commits are watched from early on. A task whose stream broke is over: the answer to
// its next report says so.
#ifndef BRAID_NBDKIT_PLUGIN_TASKS_H_
#define BRAID_NBDKIT_PLUGIN_TASKS_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"
#include "nbdkit-plugin/reclaim.h"

namespace braid {

class Tasks {
 public:
  struct Options {
    std::string volume_id;
    Epoch epoch;
    std::function<void(absl::string_view line)> log;
    // How often to look for file systems, where there were writes.
    absl::Duration learn_interval = absl::Seconds(15);
  };

  // Starts both threads. `stub` and `reclaimer`, which nobody else uses, outlive it.
  Tasks(v1::AttachmentService::StubInterface* stub, Reclaimer* reclaimer, Options options);
  // Ends a task under way, and waits for the threads.
  ~Tasks();
  Tasks(const Tasks&) = delete;
  Tasks& operator=(const Tasks&) = delete;

 private:
  void ReadStream();
  // The stream's end. Whether a task came is told in `*heard`.
  absl::Status ReadTasks(bool* heard);
  void Work();
  void RunReclaim(uint64_t id, bool dry_run);
  // Whether anybody waits for the task.
  bool Report(const v1::ReportTaskRequest& request);
  v1::ReportTaskRequest Request(uint64_t id, const ReclaimCounts& counts) const;
  // A call that the destructor ends. Cancelled when it has begun.
  absl::Status Call(grpc::ClientContext& context,
                    absl::FunctionRef<absl::Status(grpc::ClientContext&)> call,
                    grpc::ClientContext* Tasks::*under_way) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits; false when the destructor has begun.
  bool Pause(absl::Duration duration) ABSL_LOCKS_EXCLUDED(mu_);

  v1::AttachmentService::StubInterface& stub_;
  Reclaimer& reclaimer_;
  const Options options_;

  Mutex mu_;
  CondVar changed_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<v1::Task> waiting_ ABSL_GUARDED_BY(mu_);
  grpc::ClientContext* streaming_ ABSL_GUARDED_BY(mu_) = nullptr;
  grpc::ClientContext* reporting_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::thread stream_;
  std::thread worker_;
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_TASKS_H_
