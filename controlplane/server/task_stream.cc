#include "controlplane/server/task_stream.h"

#include <utility>

#include "controlplane/server/convert.h"

namespace braid {

TaskStream* TaskStream::Start(HolderTasks* tasks, const Uuid& volume, Epoch epoch) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): its constructor is private.
  auto stream = std::shared_ptr<TaskStream>(new TaskStream(tasks, volume));
  stream->self_ = stream;
  // So that the holder knows that it watches before it has anything to do.
  stream->StartSendInitialMetadata();
  if (absl::Status watched = tasks->Watch(volume, epoch, stream); !watched.ok()) {
    stream->End(watched);
  }
  return stream.get();
}

TaskStream* TaskStream::Refuse(const absl::Status& why) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): its constructor is private.
  auto stream = std::shared_ptr<TaskStream>(new TaskStream(nullptr, Uuid()));
  stream->self_ = stream;
  stream->End(why);
  return stream.get();
}

void TaskStream::Hand(const v1::Task& task) {
  absl::MutexLock lock(&mu_);
  if (finished_) return;
  if (busy_) {
    next_ = task;
    return;
  }
  writing_ = task;
  busy_ = true;
  StartWrite(&writing_);
}

void TaskStream::End(const absl::Status& why) {
  absl::MutexLock lock(&mu_);
  if (finished_) return;
  finished_ = true;
  Finish(ToGrpc(why));
}

void TaskStream::OnWriteDone(bool ok) {
  if (!ok) {
    Leave();
    return;
  }
  absl::MutexLock lock(&mu_);
  busy_ = false;
  if (finished_ || !next_.has_value()) return;
  writing_ = *std::move(next_);
  next_.reset();
  busy_ = true;
  StartWrite(&writing_);
}

void TaskStream::OnCancel() { Leave(); }

void TaskStream::Leave() {
  if (tasks_ != nullptr) tasks_->Unwatch(volume_, this);
  End(absl::CancelledError("the holder went away"));
}

void TaskStream::OnDone() {
  // Ended by itself or by HolderTasks, it is no watcher any more; by gRPC, OnCancel came
  // first. What is left of it may be a call of Hand or End that is just returning.
  const std::shared_ptr<TaskStream> last = std::move(self_);
}

}  // namespace braid
