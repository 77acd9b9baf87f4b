#include "nbdkit-plugin/tasks.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nbdkit-plugin/control_call.h"

namespace braid {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
// A braidd that has restarted waits 5 s for its holders before it says that there are none.
constexpr absl::Duration kLongestPause = absl::Seconds(2);
constexpr absl::Duration kReportAttempt = absl::Seconds(5);
constexpr int kReportAttempts = 3;
// braidd hands out one at a time; whoever sends more wants something else.
constexpr size_t kMostWaiting = 4;
// As much as braidd takes.
constexpr size_t kMostWordsBytes = 1000;

}  // namespace

Tasks::Tasks(v1::AttachmentService::StubInterface* stub, Reclaimer* reclaimer, Options options)
    : stub_(*stub), reclaimer_(*reclaimer), options_(std::move(options)) {
  stream_ = std::thread([this] { ReadStream(); });
  worker_ = std::thread([this] { Work(); });
}

Tasks::~Tasks() {
  {
    const MutexLock lock(&mu_);
    ending_ = true;
    if (streaming_ != nullptr) streaming_->TryCancel();
    if (reporting_ != nullptr) reporting_->TryCancel();
    changed_.SignalAll();
  }
  reclaimer_.Stop();
  stream_.join();
  worker_.join();
}

absl::Status Tasks::Call(grpc::ClientContext& context,
                         absl::FunctionRef<absl::Status(grpc::ClientContext&)> call,
                         grpc::ClientContext* Tasks::*under_way) {
  {
    const MutexLock lock(&mu_);
    if (ending_) return absl::CancelledError("shut down");
    this->*under_way = &context;
  }
  absl::Status status = call(context);
  const MutexLock lock(&mu_);
  this->*under_way = nullptr;
  return status;
}

bool Tasks::Pause(absl::Duration duration) {
  const auto until = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(duration);
  const MutexLock lock(&mu_);
  while (!ending_ && std::chrono::steady_clock::now() < until) changed_.WaitUntil(&mu_, until);
  return !ending_;
}

absl::Status Tasks::ReadTasks(bool* heard) {
  grpc::ClientContext context;
  v1::WatchTasksRequest request;
  request.set_volume_id(options_.volume_id);
  request.set_epoch(options_.epoch.value());
  return Call(
      context,
      [&](grpc::ClientContext& called) {
        const std::unique_ptr<grpc::ClientReaderInterface<v1::Task>> reader =
            stub_.WatchTasks(&called, request);
        v1::Task task;
        while (reader->Read(&task)) {
          *heard = true;
          const MutexLock lock(&mu_);
          if (waiting_.size() < kMostWaiting) waiting_.push_back(task);
          changed_.SignalAll();
        }
        return FromGrpc(reader->Finish());
      },
      &Tasks::streaming_);
}

void Tasks::ReadStream() {
  absl::Duration pause = kFirstPause;
  while (true) {
    bool heard = false;
    const absl::Time begun = absl::Now();
    const absl::Status status = ReadTasks(&heard);
    {
      // What came on a stream that has ended is over.
      const MutexLock lock(&mu_);
      waiting_.clear();
      if (ending_) return;
    }
    if (IsFinal(status)) {
      options_.log(absl::StrCat("no tasks are taken for this volume any more: ", status.message()));
      return;
    }
    if (heard || absl::Now() - begun > kLongestPause) pause = kFirstPause;
    if (!Pause(pause)) return;
    pause = std::min(pause * 2, kLongestPause);
  }
}

void Tasks::Work() {
  while (true) {
    reclaimer_.Learn();
    v1::Task task;
    {
      const auto until =
          std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(options_.learn_interval);
      const MutexLock lock(&mu_);
      while (!ending_ && waiting_.empty() && std::chrono::steady_clock::now() < until)
        changed_.WaitUntil(&mu_, until);
      if (ending_) return;
      if (waiting_.empty()) continue;
      task = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (task.has_reclaim()) {
      RunReclaim(task.id(), task.reclaim().dry_run());
    } else {
      v1::ReportTaskRequest request = Request(task.id(), {});
      request.set_done(true);
      request.set_error_code(static_cast<int>(absl::StatusCode::kUnimplemented));
      request.set_error("this server does not know what is asked; restart it with this version");
      (void)Report(request);
    }
  }
}

v1::ReportTaskRequest Tasks::Request(uint64_t id, const ReclaimCounts& counts) const {
  v1::ReportTaskRequest request;
  request.set_volume_id(options_.volume_id);
  request.set_epoch(options_.epoch.value());
  request.set_task_id(id);
  v1::ReclaimReport* const report = request.mutable_reclaim();
  report->set_file_system(counts.file_system.substr(0, kMostWordsBytes));
  report->set_groups_total(counts.groups_total);
  report->set_groups_done(counts.groups_done);
  report->set_groups_unchanged(counts.groups_unchanged);
  report->set_free_bytes(counts.free_bytes);
  report->set_released_bytes(counts.released_bytes);
  report->set_deferred_bytes(counts.deferred_bytes);
  return request;
}

bool Tasks::Report(const v1::ReportTaskRequest& request) {
  const int attempts = request.done() ? kReportAttempts : 1;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    if (attempt > 0 && !Pause(kFirstPause)) return false;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kReportAttempt));
    v1::ReportTaskResponse response;
    const absl::Status status = Call(
        context,
        [&](grpc::ClientContext& called) {
          return FromGrpc(stub_.ReportTask(&called, request, &response));
        },
        &Tasks::reporting_);
    if (status.ok()) return true;
    if (IsFinal(status) || absl::IsCancelled(status)) return false;
  }
  // Perhaps braidd answers the next one; when it has restarted, it does not know the task.
  return true;
}

void Tasks::RunReclaim(uint64_t id, bool dry_run) {
  ReclaimCounts counts;
  const absl::Status status = reclaimer_.Run(
      dry_run, [&](const ReclaimCounts& now) { return Report(Request(id, now)); }, counts);
  v1::ReportTaskRequest request = Request(id, counts);
  request.set_done(true);
  request.set_error_code(static_cast<int>(status.code()));
  request.set_error(std::string(status.message().substr(0, kMostWordsBytes)));
  (void)Report(request);
}

}  // namespace braid
