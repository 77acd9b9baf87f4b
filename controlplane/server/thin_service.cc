// The part of AttachmentService that is for thin volumes: map changes, space, tasks.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/log.h"
#include "controlplane/server/services.h"
#include "controlplane/server/task_stream.h"

namespace braid {
namespace {

// What a holder says in words, in its own report or about its failure.
constexpr size_t kMaxWordsBytes = 1024;

absl::Status TooMany(absl::string_view what, int count, int most) {
  return absl::InvalidArgumentError(
      absl::StrCat(count, " ", what, " in one request are too many; send up to ", most));
}

absl::Status CheckReport(const v1::ReportTaskRequest& request) {
  if (request.reclaim().file_system().size() > kMaxWordsBytes ||
      request.error().size() > kMaxWordsBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("words in a report may have up to ", kMaxWordsBytes, " bytes"));
  }
  if (request.error_code() < 0 ||
      request.error_code() > static_cast<int32_t>(absl::StatusCode::kUnauthenticated)) {
    return absl::InvalidArgumentError(
        absl::StrCat("error_code ", request.error_code(), " is no google.rpc.Code"));
  }
  if (request.error_code() != 0 && !request.done()) {
    return absl::InvalidArgumentError("a task that failed is done; set done");
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status AttachmentService::CommitMap(grpc::ServerContext* /*context*/,
                                          const v1::CommitMapRequest* request,
                                          v1::CommitMapResponse* response) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  if (request->changes_size() > kMaxChangesPerCommit) {
    return ToGrpc(TooMany("map changes", request->changes_size(), kMaxChangesPerCommit));
  }
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(*id);
  if (!volume.ok()) return ToGrpc(volume.status());
  std::vector<MapChange> changes;
  changes.reserve(static_cast<size_t>(request->changes_size()));
  for (const v1::MapChange& change : request->changes()) {
    absl::StatusOr<MapChange> one = FromProto(change, (*volume)->geometry.legs());
    if (!one.ok()) {
      return ToGrpc(absl::InvalidArgumentError(
          absl::StrCat("map change ", changes.size(), ": ", one.status().message())));
    }
    changes.push_back(*one);
  }
  absl::StatusOr<uint64_t> applied =
      spaces_.CommitMap(*id, Epoch(request->epoch()), request->first_sequence(), changes);
  if (!applied.ok()) {
    // The holder stops at most of these, so somebody will want to know why.
    Log(LogLevel::kWarning, "map changes refused",
        {{"volume", (*volume)->record.name},
         {"epoch", request->epoch()},
         {"first_sequence", request->first_sequence()},
         {"changes", request->changes_size()},
         {"status", applied.status().ToString()}});
    return ToGrpc(applied.status());
  }
  response->set_applied_sequence(*applied);
  return grpc::Status::OK;
}

grpc::Status AttachmentService::TakeSpace(grpc::ServerContext* /*context*/,
                                          const v1::TakeSpaceRequest* request,
                                          v1::TakeSpaceResponse* response) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  if (request->unit_count() == 0) {
    return ToGrpc(absl::InvalidArgumentError("unit_count is 0; ask for 1 or more"));
  }
  const bool may_take = ++takers_ <= kMaxTakers;
  absl::Cleanup leave = [this] { --takers_; };
  if (!may_take) {
    return ToGrpc(absl::UnavailableError(
        absl::StrCat(kMaxTakers, " volumes are taking space at this moment; ask again")));
  }
  absl::StatusOr<Spaces::Taken> taken = spaces_.Take(
      *id, Epoch(request->epoch()), request->unit_count(), request->known_device_count());
  const bool none = absl::IsResourceExhausted(taken.status());
  if (!taken.ok() && !none) {
    Log(LogLevel::kWarning, "space not granted",
        {{"volume_id", id->ToString()}, {"status", taken.status().ToString()}});
    return ToGrpc(taken.status());
  }
  if (none) return grpc::Status::OK;  // no grants: see attachment.proto
  for (const Grant& grant : taken->grants) *response->add_grants() = ToProto(grant);
  response->set_first_device_index(taken->first_device);
  for (const DevicePtr& device : taken->devices) *response->add_devices() = ToProto(*device);
  return grpc::Status::OK;
}

grpc::Status AttachmentService::ReturnSpace(grpc::ServerContext* /*context*/,
                                            const v1::ReturnSpaceRequest* request,
                                            v1::ReturnSpaceResponse* /*response*/) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  if (request->grants_size() > kMaxGrantsPerReturn) {
    return ToGrpc(TooMany("grants", request->grants_size(), kMaxGrantsPerReturn));
  }
  std::vector<Grant> grants;
  for (const v1::Grant& grant : request->grants()) {
    absl::StatusOr<Grant> one = FromProto(grant);
    if (!one.ok()) return ToGrpc(one.status());
    grants.push_back(*std::move(one));
  }
  absl::Status status = spaces_.Return(*id, Epoch(request->epoch()), grants);
  if (!status.ok()) {
    Log(LogLevel::kWarning, "space not taken back",
        {{"volume_id", id->ToString()}, {"status", status.ToString()}});
  }
  return ToGrpc(status);
}

grpc::ServerWriteReactor<v1::Task>* AttachmentService::WatchTasks(
    grpc::CallbackServerContext* /*context*/, const v1::WatchTasksRequest* request) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return TaskStream::Refuse(id.status());
  return TaskStream::Start(&tasks_, *id, Epoch(request->epoch()));
}

grpc::Status AttachmentService::ReportTask(grpc::ServerContext* /*context*/,
                                           const v1::ReportTaskRequest* request,
                                           v1::ReportTaskResponse* /*response*/) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  if (absl::Status status = CheckReport(*request); !status.ok()) return ToGrpc(status);
  const absl::Status outcome(static_cast<absl::StatusCode>(request->error_code()),
                             request->error());
  return ToGrpc(tasks_.Report(*id, Epoch(request->epoch()), request->task_id(), request->reclaim(),
                              request->done(), outcome));
}

}  // namespace braid
