#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/log.h"
#include "controlplane/server/services.h"

namespace braid {
namespace {

constexpr uint32_t kDefaultPage = 1000;
constexpr uint32_t kMaxPage = 10000;
// A page token is the last name of the page before, behind this: opaque to callers, and
// free for another form one day.
constexpr absl::string_view kTokenPrefix = "after:";

absl::StatusOr<absl::string_view> NameInToken(absl::string_view token) {
  if (token.empty()) return token;
  if (absl::ConsumePrefix(&token, kTokenPrefix) && CheckName("name", token).ok()) return token;
  return absl::InvalidArgumentError("this page_token is not one that ListVolumes gave");
}

}  // namespace

grpc::Status VolumeService::CreateVolume(grpc::ServerContext* context,
                                         const v1::CreateVolumeRequest* request,
                                         v1::CreateVolumeResponse* response) {
  absl::StatusOr<VolumeSpec> spec = FromProto(*request);
  if (!spec.ok()) return ToGrpc(spec.status());
  absl::StatusOr<CreatedVolume> created = volumes_.Create(*spec, request->dry_run());
  if (!created.ok()) return ToGrpc(created.status());
  for (const DeviceShare& share : created->chosen) *response->add_chosen() = ToProto(share);
  VolumeStatus volume = created->status;
  if (!request->dry_run()) {
    const VolumeRecord& record = volume.volume->record;
    Log(LogLevel::kInfo, "volume created",
        {{"volume", record.name}, {"id", record.id.ToString()}, {"size_bytes", record.size_bytes}});
    const bool may_wait = ++waiters_ <= kMaxWaiters;
    absl::Cleanup leave = [this] { --waiters_; };
    if (may_wait && !request->return_immediately()) {
      absl::StatusOr<VolumeStatus> ready =
          volumes_.AwaitReady(record.id, [context] { return context->IsCancelled(); });
      if (!ready.ok()) return ToGrpc(ready.status());
      volume = *std::move(ready);
    }
  }
  *response->mutable_volume() = ToProto(volume, state_.name());
  return grpc::Status::OK;
}

grpc::Status VolumeService::GetVolume(grpc::ServerContext* /*context*/,
                                      const v1::GetVolumeRequest* request,
                                      v1::GetVolumeResponse* response) {
  absl::StatusOr<VolumeStatus> volume = volumes_.Get(request->name());
  if (!volume.ok()) return ToGrpc(volume.status());
  *response->mutable_volume() = ToProto(*volume, state_.name());
  return grpc::Status::OK;
}

grpc::Status VolumeService::ListVolumes(grpc::ServerContext* /*context*/,
                                        const v1::ListVolumesRequest* request,
                                        v1::ListVolumesResponse* response) {
  absl::StatusOr<absl::string_view> after = NameInToken(request->page_token());
  if (!after.ok()) return ToGrpc(after.status());
  const size_t page =
      request->page_size() == 0 ? kDefaultPage : std::min(request->page_size(), kMaxPage);
  // One more tells whether there is a next page.
  std::vector<VolumeStatus> found = volumes_.List(*after, page + 1);
  const bool more = found.size() > page;
  if (more) found.pop_back();
  for (const VolumeStatus& volume : found) {
    *response->add_volumes() = ToProto(volume, state_.name());
  }
  if (more) {
    response->set_next_page_token(absl::StrCat(kTokenPrefix, found.back().volume->record.name));
  }
  return grpc::Status::OK;
}

grpc::Status VolumeService::DeleteVolume(grpc::ServerContext* /*context*/,
                                         const v1::DeleteVolumeRequest* request,
                                         v1::DeleteVolumeResponse* response) {
  absl::StatusOr<VolumeStatus> deleted = volumes_.Delete(request->name(), request->dry_run());
  if (!deleted.ok()) return ToGrpc(deleted.status());
  if (!request->dry_run()) {
    const VolumeRecord& record = deleted->volume->record;
    Log(LogLevel::kInfo, "volume deleted", {{"volume", record.name}, {"id", record.id.ToString()}});
  }
  *response->mutable_volume() = ToProto(*deleted, state_.name());
  return grpc::Status::OK;
}

grpc::Status VolumeService::GetVolumeMap(grpc::ServerContext* /*context*/,
                                         const v1::GetVolumeMapRequest* request,
                                         grpc::ServerWriter<v1::GetVolumeMapResponse>* writer) {
  // The map of one moment, however long it takes to send.
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(request->name());
  if (!volume.ok()) return ToGrpc(volume.status());
  const std::vector<Uuid>& ids = (*volume)->record.devices;
  std::vector<DeviceRecord> devices(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    devices[i].id = ids[i];
    // Gone only when the volume went just now, too.
    if (DevicePtr record = state_.FindDevice(ids[i]); record != nullptr) devices[i] = *record;
  }
  v1::GetVolumeMapResponse message;
  for (const MapRun& run : *(*volume)->runs) {
    *message.add_rows() = ToMapRow(**volume, run, devices[run.device.value()]);
    if (message.rows_size() < static_cast<int>(kRowsPerMessage)) continue;
    if (!writer->Write(message)) return {grpc::StatusCode::CANCELLED, "the caller went away"};
    message.Clear();
  }
  if (message.rows_size() > 0) writer->Write(message);
  return grpc::Status::OK;
}

}  // namespace braid
