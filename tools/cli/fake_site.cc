#include "tools/cli/fake_site.h"

#include <chrono>
#include <thread>

namespace braid::cli {
namespace {

grpc::Status NotFound(const std::string& name) {
  return {grpc::StatusCode::NOT_FOUND, "no volume '" + name + "'; see 'braid volume list'"};
}

}  // namespace

FakeSite::FakeSite(const std::string& directory) : directory_(directory) {
  device_.set_name("d1");
  device_.set_node("n1");
  device_.set_path("/dev/sdb");
  device_.set_device_class("ssd");
  device_.set_state(v1::DEVICE_STATE_MISSING);
  device_.set_problem("evil \033]0;title\007 text");
  device_.set_size_bytes(11ULL << 30);
  device_.set_capacity_bytes(10ULL << 30);
  device_.set_free_bytes(10ULL << 30);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(control(), grpc::InsecureServerCredentials());
  builder.RegisterService(static_cast<v1::SiteService::Service*>(this));
  builder.RegisterService(static_cast<v1::InventoryService::Service*>(this));
  builder.RegisterService(static_cast<v1::VolumeService::Service*>(this));
  server_ = builder.BuildAndStart();
}

void FakeSite::AddVolume(const v1::Volume& volume) {
  const std::lock_guard<std::mutex> lock(mutex_);
  volumes_[volume.name()] = volume;
}

bool FakeSite::HasVolume(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return volumes_.count(name) != 0;
}

void FakeSite::AddWarning(const std::string& warning) {
  const std::lock_guard<std::mutex> lock(mutex_);
  warnings_.push_back(warning);
}

void FakeSite::AddEvent(const std::string& what) {
  const std::lock_guard<std::mutex> lock(mutex_);
  events_.push_back(what);
}

void FakeSite::AddFinding(const std::string& finding) {
  const std::lock_guard<std::mutex> lock(mutex_);
  findings_.push_back(finding);
}

v1::ResizeVolumeRequest FakeSite::last_resize() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_resize_;
}

v1::ReclaimVolumeRequest FakeSite::last_reclaim() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_reclaim_;
}

v1::CreateVolumeRequest FakeSite::last_create() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_create_;
}

v1::AddDeviceRequest FakeSite::last_add() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return last_add_;
}

v1::Volume* FakeSite::Find(const std::string& name) {
  for (auto& [key, volume] : volumes_) {
    if (key == name || volume.id() == name || "lab/" + key == name) return &volume;
  }
  return nullptr;
}

grpc::Status FakeSite::GetSite(Context*, const v1::GetSiteRequest*, v1::GetSiteResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  r->mutable_site()->set_name("lab");
  r->mutable_site()->set_node("n1");
  r->mutable_site()->set_run_dir(directory_);
  r->mutable_site()->set_device_count(1);
  r->mutable_site()->set_volume_count(volumes_.size());
  for (const std::string& warning : warnings_) r->add_warnings(warning);
  r->set_health(warnings_.empty() ? v1::SITE_HEALTH_GOOD : v1::SITE_HEALTH_WARNING);
  for (const std::string& what : events_) {
    v1::Event* event = r->add_events();
    event->set_unix_seconds(1'700'000'000);
    event->set_severity(v1::SITE_HEALTH_WARNING);
    event->set_what(what);
  }
  return grpc::Status::OK;
}

grpc::Status FakeSite::AddDevice(Context*, const v1::AddDeviceRequest* request,
                                 v1::AddDeviceResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  last_add_ = *request;
  if (request->path() == "/missing") {
    return {grpc::StatusCode::NOT_FOUND, "no file or device '/missing'; check the path"};
  }
  *r->mutable_device() = device_;
  r->mutable_device()->set_path(request->path());
  return grpc::Status::OK;
}

grpc::Status FakeSite::ListDevices(Context*, const v1::ListDevicesRequest*,
                                   v1::ListDevicesResponse* r) {
  *r->add_devices() = device_;
  return grpc::Status::OK;
}

grpc::Status FakeSite::RemoveDevice(Context*, const v1::RemoveDeviceRequest*,
                                    v1::RemoveDeviceResponse* r) {
  *r->mutable_device() = device_;
  return grpc::Status::OK;
}

grpc::Status FakeSite::ListPools(Context*, const v1::ListPoolsRequest*, v1::ListPoolsResponse* r) {
  v1::Pool* pool = r->add_pools();
  pool->set_device_class("ssd");
  pool->set_device_count(1);
  pool->set_capacity_bytes(10ULL << 30);
  pool->set_allocated_bytes(7ULL << 30);
  pool->set_reserved_bytes(1ULL << 30);
  pool->set_free_bytes(2ULL << 30);
  pool->set_promised_bytes(40ULL << 30);
  pool->set_commitment_ratio(4.5);
  pool->set_allocation_bytes_per_second(-1.5 * (1 << 20));
  pool->set_seconds_to_full(7200);
  pool->set_state(v1::POOL_STATE_LOW);
  pool->set_low_percent(80);
  pool->set_critical_percent(95);
  return grpc::Status::OK;
}

grpc::Status FakeSite::CheckPools(Context*, const v1::CheckPoolsRequest*,
                                  v1::CheckPoolsResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const std::string& finding : findings_) r->add_findings(finding);
  r->set_device_count(1);
  r->set_volume_count(volumes_.size());
  r->set_run_count(7);
  return grpc::Status::OK;
}

grpc::Status FakeSite::CreateVolume(Context*, const v1::CreateVolumeRequest* request,
                                    v1::CreateVolumeResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  last_create_ = *request;
  if (request->size_bytes() == 0 || request->size_bytes() % 512 != 0) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "the size is bad; give whole sectors"};
  }
  if (volumes_.count(request->name()) != 0) {
    return {grpc::StatusCode::ALREADY_EXISTS, "there is one; choose another name"};
  }
  v1::Volume volume;
  volume.set_id("id-of-" + request->name());
  volume.set_name(request->name());
  volume.set_site("lab");
  volume.set_size_bytes(request->size_bytes());
  volume.set_layout(v1::LAYOUT_LINEAR);
  volume.set_stripes(1);
  volume.set_copies(1);
  volume.set_state(v1::VOLUME_STATE_PREPARING);
  volume.set_health(v1::VOLUME_HEALTH_GOOD);
  volume.set_allocated_bytes(request->size_bytes());
  if (request->thin()) {
    volume.set_state(v1::VOLUME_STATE_READY);
    volume.set_thin(true);
    volume.set_allocated_bytes(0);
    volume.set_reserve_bytes(request->reserve_bytes());
    volume.set_on_full(request->on_full());
    volume.set_full_timeout_seconds(request->full_timeout_seconds());
  }
  if (!request->dry_run()) volumes_[request->name()] = volume;
  *r->mutable_volume() = volume;
  v1::DeviceShare* share = r->add_chosen();
  share->set_device("d1");
  share->set_node("n1");
  share->set_device_class("ssd");
  share->set_bytes(request->size_bytes());
  return grpc::Status::OK;
}

grpc::Status FakeSite::GetVolume(Context*, const v1::GetVolumeRequest* request,
                                 v1::GetVolumeResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  v1::Volume* volume = Find(request->name());
  if (volume == nullptr) return NotFound(request->name());
  if (volume->state() == v1::VOLUME_STATE_PREPARING) {
    const uint64_t step = volume->allocated_bytes() / (volume->name() == "slow" ? 1000 : 2);
    volume->set_prepared_bytes(volume->prepared_bytes() + step);
    if (volume->prepared_bytes() > volume->allocated_bytes()) {
      volume->set_prepared_bytes(volume->allocated_bytes());
      volume->set_state(v1::VOLUME_STATE_READY);
    }
    if (volume->name() == "broken") volume->set_fault("device d1 failed");
  }
  *r->mutable_volume() = *volume;
  return grpc::Status::OK;
}

grpc::Status FakeSite::ListVolumes(Context*, const v1::ListVolumesRequest* request,
                                   v1::ListVolumesResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = volumes_.upper_bound(request->page_token()); it != volumes_.end(); ++it) {
    if (r->volumes_size() == 2) {
      r->set_next_page_token(r->volumes(1).name());
      break;
    }
    *r->add_volumes() = it->second;
  }
  return grpc::Status::OK;
}

grpc::Status FakeSite::DeleteVolume(Context*, const v1::DeleteVolumeRequest* request,
                                    v1::DeleteVolumeResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const v1::Volume* volume = Find(request->name());
  if (volume == nullptr) return NotFound(request->name());
  if (volume->name() == "broken") {
    return {grpc::StatusCode::UNAVAILABLE, "device d1 does not answer; try again"};
  }
  *r->mutable_volume() = *volume;
  if (!request->dry_run()) volumes_.erase(r->volume().name());
  return grpc::Status::OK;
}

grpc::Status FakeSite::ResizeVolume(Context*, const v1::ResizeVolumeRequest* request,
                                    v1::ResizeVolumeResponse* r) {
  const std::lock_guard<std::mutex> lock(mutex_);
  last_resize_ = *request;
  v1::Volume* volume = Find(request->name());
  if (volume == nullptr) return NotFound(request->name());
  if (request->size_bytes() < volume->size_bytes() / 2 && !request->allow_data_loss()) {
    return {grpc::StatusCode::FAILED_PRECONDITION,
            "shrinking would cut off 1G that has space; force it"};
  }
  *r->mutable_volume() = *volume;
  r->mutable_volume()->set_size_bytes(request->size_bytes());
  if (!request->dry_run()) volume->set_size_bytes(request->size_bytes());
  return grpc::Status::OK;
}

grpc::Status FakeSite::ReclaimVolume(Context* context, const v1::ReclaimVolumeRequest* request,
                                     grpc::ServerWriter<v1::ReclaimVolumeResponse>* writer) {
  v1::Volume volume;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_reclaim_ = *request;
    const v1::Volume* found = Find(request->name());
    if (found == nullptr) return NotFound(request->name());
    volume = *found;
  }
  if (volume.name() == "xfs") {
    return {grpc::StatusCode::FAILED_PRECONDITION, "no ext4 file system in it; use fstrim"};
  }
  v1::ReclaimVolumeResponse answer;
  v1::ReclaimReport& report = *answer.mutable_report();
  report.set_file_system("ext4 (1234)");
  report.set_groups_total(100);
  for (uint64_t i = 1; i <= (volume.name() == "slow" ? 100U : 2U); ++i) {
    report.set_groups_done(i);
    report.set_free_bytes(i << 30);
    if (!writer->Write(answer) || context->IsCancelled()) return grpc::Status::CANCELLED;
    if (volume.name() == "slow") std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  report.set_groups_done(100);
  report.set_groups_unchanged(40);
  report.set_deferred_bytes(512 << 20);
  if (!request->dry_run()) report.set_released_bytes(3ULL << 29);
  answer.set_done(true);
  writer->Write(answer);
  return grpc::Status::OK;
}

grpc::Status FakeSite::GetVolumeMap(Context*, const v1::GetVolumeMapRequest* request,
                                    grpc::ServerWriter<v1::GetVolumeMapResponse>* writer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const v1::Volume* volume = Find(request->name());
  if (volume == nullptr) return NotFound(request->name());
  for (uint32_t leg = 0; leg < 2; ++leg) {
    v1::GetVolumeMapResponse part;
    v1::MapRow* row = part.add_rows();
    row->set_leg(leg);
    row->set_first_unit(192);
    row->set_unit_count(128);
    row->set_device("d1");
    row->set_length_bytes(8 << 20);
    row->set_stale(leg == 1);
    writer->Write(part);
  }
  return grpc::Status::OK;
}

}  // namespace braid::cli
