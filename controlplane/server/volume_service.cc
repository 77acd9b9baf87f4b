#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/log.h"
#include "controlplane/server/services.h"
#include "lib/base/checked.h"

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

// The length of the list of devices that the runs need.
size_t DevicesNamed(const std::vector<MapRun>& runs) {
  size_t most = 0;
  for (const MapRun& run : runs) most = std::max(most, size_t{run.device.value()} + 1);
  return most;
}

// Of a volume that can be reclaimed now: the epoch of its holder.
absl::StatusOr<Epoch> CheckReclaimable(const VolumeStatus& status) {
  const VolumeRecord& record = status.volume->record;
  const std::string& name = record.name;
  if (!record.thin) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", name,
                     "' is thick: it has all its space for good, used or not; only thin volumes "
                     "give space back"));
  }
  if (!record.attachment.held || !status.alive) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume '", name,
                     "' is not attached, and its holder does the work; attach it first, with "
                     "'braid attach ",
                     name, "'"));
  }
  if (record.attachment.read_only) {
    return absl::FailedPreconditionError(absl::StrCat(
        "volume '", name, "' is attached read-only; detach it, then attach it for writing"));
  }
  return record.attachment.epoch;
}

}  // namespace

v1::Volume VolumeService::Shown(const VolumeStatus& volume) const {
  v1::Volume out = ToProto(volume, state_.name());
  const Pools::Reclaimable reclaimable = pools_.ReclaimableOf(volume.volume->record.id);
  out.set_reclaimable_bytes(reclaimable.bytes);
  out.set_reclaimable_unix_seconds(reclaimable.unix_seconds);
  return out;
}

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
  *response->mutable_volume() = Shown(volume);
  return grpc::Status::OK;
}

grpc::Status VolumeService::GetVolume(grpc::ServerContext* /*context*/,
                                      const v1::GetVolumeRequest* request,
                                      v1::GetVolumeResponse* response) {
  absl::StatusOr<VolumeStatus> volume = volumes_.Get(request->name());
  if (!volume.ok()) return ToGrpc(volume.status());
  *response->mutable_volume() = Shown(*volume);
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
    *response->add_volumes() = Shown(volume);
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
    pools_.Look();
  }
  *response->mutable_volume() = Shown(*deleted);
  return grpc::Status::OK;
}

grpc::Status VolumeService::ResizeVolume(grpc::ServerContext* /*context*/,
                                         const v1::ResizeVolumeRequest* request,
                                         v1::ResizeVolumeResponse* response) {
  // What a thick volume grows by is zeroed while the caller waits.
  const bool may_wait = ++waiters_ <= kMaxWaiters;
  absl::Cleanup leave = [this] { --waiters_; };
  if (!may_wait) {
    return ToGrpc(absl::UnavailableError(
        absl::StrCat(kMaxWaiters, " callers wait for their volumes already; try again later")));
  }
  absl::StatusOr<VolumeStatus> resized = volumes_.Resize(
      request->name(), request->size_bytes(), request->allow_data_loss(), request->dry_run());
  if (!resized.ok()) return ToGrpc(resized.status());
  if (!request->dry_run()) {
    const VolumeRecord& record = resized->volume->record;
    Log(LogLevel::kInfo, "volume resized",
        {{"volume", record.name}, {"id", record.id.ToString()}, {"size_bytes", record.size_bytes}});
    pools_.Look();
  }
  *response->mutable_volume() = Shown(*resized);
  return grpc::Status::OK;
}

grpc::Status VolumeService::ReclaimVolume(grpc::ServerContext* context,
                                          const v1::ReclaimVolumeRequest* request,
                                          grpc::ServerWriter<v1::ReclaimVolumeResponse>* writer) {
  absl::StatusOr<VolumeStatus> volume = volumes_.Get(request->name());
  if (!volume.ok()) return ToGrpc(volume.status());
  absl::StatusOr<Epoch> epoch = CheckReclaimable(*volume);
  if (!epoch.ok()) return ToGrpc(epoch.status());
  const bool may_wait = ++reclaims_ <= kMaxReclaims;
  absl::Cleanup leave = [this] { --reclaims_; };
  if (!may_wait) {
    return ToGrpc(absl::UnavailableError(
        absl::StrCat(kMaxReclaims, " volumes are being reclaimed already; try again later")));
  }
  v1::ReclaimVolumeResponse message;
  const auto send = [&](const v1::ReclaimReport& report) {
    *message.mutable_report() = report;
    return writer->Write(message);
  };
  const VolumeRecord& record = volume->volume->record;
  absl::StatusOr<v1::ReclaimReport> report = tasks_.Reclaim(
      record.id, *epoch, request->dry_run(), send, [context] { return context->IsCancelled(); });
  Log(report.ok() ? LogLevel::kInfo : LogLevel::kWarning, "volume reclaimed",
      {{"volume", record.name},
       {"dry_run", request->dry_run() ? 1 : 0},
       {"free_bytes", report.ok() ? report->free_bytes() : 0},
       {"released_bytes", report.ok() ? report->released_bytes() : 0},
       {"status", report.status().ToString()}});
  if (!report.ok()) return ToGrpc(report.status());
  // A holder that counts wrongly makes a number wrong, no more.
  const uint64_t left =
      report->free_bytes() - std::min(report->free_bytes(), report->released_bytes());
  pools_.NoteReclaimable(record.id, CheckedMul(left, uint64_t{record.legs}).value_or(UINT64_MAX));
  pools_.Look();
  message.set_done(true);
  send(*report);
  return grpc::Status::OK;
}

grpc::Status VolumeService::GetVolumeMap(grpc::ServerContext* /*context*/,
                                         const v1::GetVolumeMapRequest* request,
                                         grpc::ServerWriter<v1::GetVolumeMapResponse>* writer) {
  // The map of one moment, however long it takes to send. That of a thin volume may be newer
  // than the record it is found with, and name devices that only the next record has.
  absl::StatusOr<VolumePtr> volume;
  std::shared_ptr<const std::vector<MapRun>> runs;
  do {
    volume = state_.FindVolume(request->name());
    if (!volume.ok()) return ToGrpc(volume.status());
    runs = RunsOf(**volume);
  } while (DevicesNamed(*runs) > (*volume)->record.devices.size());
  const std::vector<Uuid>& ids = (*volume)->record.devices;
  std::vector<DeviceRecord> devices(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    devices[i].id = ids[i];
    // Gone only when the volume went just now, too.
    if (DevicePtr record = state_.FindDevice(ids[i]); record != nullptr) devices[i] = *record;
  }
  v1::GetVolumeMapResponse message;
  for (const MapRun& run : *runs) {
    *message.add_rows() = ToMapRow(**volume, run, devices[run.device.value()]);
    if (message.rows_size() < static_cast<int>(kRowsPerMessage)) continue;
    if (!writer->Write(message)) return {grpc::StatusCode::CANCELLED, "the caller went away"};
    message.Clear();
  }
  if (message.rows_size() > 0) writer->Write(message);
  return grpc::Status::OK;
}

}  // namespace braid
