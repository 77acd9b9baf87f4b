#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/log.h"
#include "controlplane/server/services.h"

namespace braid {
namespace {

// Log lines stay lines.
constexpr size_t kMaxReasonBytes = 1024;

}  // namespace

grpc::Status AttachmentService::PrepareAttachment(grpc::ServerContext* /*context*/,
                                                  const v1::PrepareAttachmentRequest* request,
                                                  v1::PrepareAttachmentResponse* response) {
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(request->volume());
  if (!volume.ok()) return ToGrpc(volume.status());
  absl::StatusOr<std::string> path = attachments_.Prepare((*volume)->record);
  if (!path.ok()) return ToGrpc(path.status());
  response->set_volume_id((*volume)->record.id.ToString());
  response->set_lock_path(*std::move(path));
  response->set_thin((*volume)->record.thin);
  return grpc::Status::OK;
}

grpc::Status AttachmentService::OpenAttachment(
    grpc::ServerContext* /*context*/, const v1::OpenAttachmentRequest* request,
    grpc::ServerWriter<v1::OpenAttachmentResponse>* writer) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  absl::StatusOr<Uuid> boot_id = Uuid::Parse(request->boot_id());
  if (!boot_id.ok()) {
    return ToGrpc(absl::InvalidArgumentError(
        "boot_id is not a UUID; give what /proc/sys/kernel/random/boot_id says"));
  }
  absl::StatusOr<Opened> opened =
      attachments_.Open(*id, {.boot_id = *boot_id,
                              .pid = request->pid(),
                              .read_only = request->read_only(),
                              .settles = Epoch(request->settles_epoch())});
  if (!opened.ok()) {
    Log(LogLevel::kWarning, "attachment refused",
        {{"volume_id", id->ToString()}, {"reason", opened.status().message()}});
    return ToGrpc(opened.status());
  }
  const VolumeEntry& volume = *opened->volume;
  const Epoch epoch = volume.record.attachment.epoch;
  tasks_.EndEpochs(*id, Epoch(epoch.value() - 1));
  Log(LogLevel::kInfo, "attachment opened",
      {{"volume", volume.record.name},
       {"epoch", volume.record.attachment.epoch.value()},
       {"pid", request->pid()},
       {"read_only", request->read_only() ? 1 : 0},
       {"takes_over", opened->takes_over ? 1 : 0},
       {"stale_bytes", volumes_.Describe(opened->volume).stale_bytes}});

  v1::OpenAttachmentResponse message;
  v1::AttachmentHeader& header = *message.mutable_header();
  *header.mutable_volume() = ToProto(volumes_.Describe(opened->volume), state_.name());
  header.set_epoch(epoch.value());
  header.set_run_count(opened->runs->size());
  header.set_applied_sequence(volume.record.map_sequence);
  for (const Grant& grant : opened->grants) *header.add_grants() = ToProto(grant);
  header.set_takes_over(opened->takes_over);
  for (const Uuid& device_id : volume.record.devices) {
    const DevicePtr record = state_.FindDevice(device_id);
    if (record == nullptr) {
      return {grpc::StatusCode::ABORTED, "the volume was deleted while it was being attached"};
    }
    *header.add_devices() = ToProto(*record);
  }
  // A holder that did not get the whole map does no I/O, so what it was granted needs no
  // taking back: as it ends, its lock shows that.
  constexpr absl::string_view kGone = "the caller went away";
  if (!writer->Write(message)) return {grpc::StatusCode::CANCELLED, std::string(kGone)};
  message.Clear();
  for (const MapRun& run : *opened->runs) {
    *message.add_runs() = ToProto(run);
    if (message.runs_size() < static_cast<int>(kRowsPerMessage)) continue;
    if (!writer->Write(message)) return {grpc::StatusCode::CANCELLED, std::string(kGone)};
    message.Clear();
  }
  if (message.runs_size() > 0) writer->Write(message);
  return grpc::Status::OK;
}

grpc::Status AttachmentService::MarkStale(grpc::ServerContext* /*context*/,
                                          const v1::MarkStaleRequest* request,
                                          v1::MarkStaleResponse* /*response*/) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  if (request->device_index() > std::numeric_limits<DeviceIndex::rep>::max()) {
    return ToGrpc(absl::InvalidArgumentError(
        absl::StrCat("device_index ", request->device_index(), " is out of range")));
  }
  const DeviceIndex device(static_cast<DeviceIndex::rep>(request->device_index()));
  const absl::Status marked = attachments_.MarkStale(*id, Epoch(request->epoch()), device);
  Log(LogLevel::kWarning, marked.ok() ? "device marked stale" : "device not marked stale",
      {{"volume_id", id->ToString()},
       {"epoch", request->epoch()},
       {"device_index", request->device_index()},
       {"reason", request->reason().substr(0, kMaxReasonBytes)},
       {"status", marked.ToString()}});
  return ToGrpc(marked);
}

grpc::Status AttachmentService::ReportFault(grpc::ServerContext* /*context*/,
                                            const v1::ReportFaultRequest* request,
                                            v1::ReportFaultResponse* /*response*/) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  absl::Status status = attachments_.ReportFault(*id, Epoch(request->epoch()), request->what());
  Log(LogLevel::kError, "volume lost data",
      {{"volume_id", id->ToString()},
       {"epoch", request->epoch()},
       {"what", request->what().substr(0, kMaxReasonBytes)},
       {"status", status.ToString()}});
  return ToGrpc(status);
}

grpc::Status AttachmentService::CloseAttachment(grpc::ServerContext* /*context*/,
                                                const v1::CloseAttachmentRequest* request,
                                                v1::CloseAttachmentResponse* /*response*/) {
  absl::StatusOr<Uuid> id = ParseVolumeId(request->volume_id());
  if (!id.ok()) return ToGrpc(id.status());
  absl::Status status = attachments_.Close(*id, Epoch(request->epoch()));
  if (status.ok()) {
    tasks_.EndEpochs(*id, Epoch(request->epoch()));
    Log(LogLevel::kInfo, "attachment closed",
        {{"volume_id", id->ToString()}, {"epoch", request->epoch()}});
  }
  return ToGrpc(status);
}

}  // namespace braid
