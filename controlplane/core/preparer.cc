#include "controlplane/core/preparer.h"

#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace braid {
namespace {

// Devices that are zeroed at once. Each worker mostly waits for its device.
constexpr size_t kWorkers = 4;
constexpr absl::Duration kCancelPoll = absl::Milliseconds(100);

}  // namespace

Preparer::Preparer(SiteState* state) : state_(*state) {
  for (const VolumePtr& volume : state_.VolumesAfter("", SIZE_MAX)) {
    if (volume->record.state == VolumeState::kPreparing) Start(volume);
  }
  for (size_t i = 0; i < kWorkers; ++i) workers_.emplace_back([this] { Work(); });
}

Preparer::~Preparer() {
  {
    absl::MutexLock lock(&mu_);
    ending_ = true;
    for (auto& [id, job] : jobs_) job->progress.stop = true;
  }
  for (std::thread& worker : workers_) worker.join();
}

void Preparer::Start(const VolumePtr& volume) {
  std::set<DeviceIndex> devices;
  for (const MapRun& run : *volume->runs) devices.insert(run.device);
  auto job = std::make_shared<Job>();
  job->volume = volume;
  job->parts_left = devices.size();
  absl::MutexLock lock(&mu_);
  if (!jobs_.try_emplace(volume->record.id, job).second) return;
  for (DeviceIndex device : devices) parts_.emplace_back(job, device);
}

uint64_t Preparer::PreparedBytes(const Uuid& volume) const {
  absl::MutexLock lock(&mu_);
  auto found = jobs_.find(volume);
  return found == jobs_.end() ? 0 : found->second->progress.zeroed_bytes.load();
}

void Preparer::Wait(const Uuid& volume, absl::FunctionRef<bool()> cancelled) const {
  const auto idle = [&] {
    mu_.AssertReaderHeld();
    return ending_ || !jobs_.contains(volume);
  };
  absl::MutexLock lock(&mu_);
  while (!mu_.AwaitWithTimeout(absl::Condition(&idle), kCancelPoll)) {
    if (cancelled()) return;
  }
}

absl::Status Preparer::Stop(const Uuid& volume, absl::Duration patience) {
  const auto idle = [&] {
    mu_.AssertReaderHeld();
    return !jobs_.contains(volume);
  };
  absl::MutexLock lock(&mu_);
  auto found = jobs_.find(volume);
  if (found == jobs_.end()) return absl::OkStatus();
  found->second->progress.stop = true;
  if (mu_.AwaitWithTimeout(absl::Condition(&idle), patience)) return absl::OkStatus();
  return absl::UnavailableError(
      "a device of the volume does not answer while it is being zeroed; try again when it does");
}

void Preparer::Work() {
  const auto something = [this] {
    mu_.AssertReaderHeld();
    return ending_ || !parts_.empty();
  };
  absl::MutexLock lock(&mu_);
  while (true) {
    mu_.Await(absl::Condition(&something));
    if (ending_) return;
    auto [job, device] = std::move(parts_.front());
    parts_.pop_front();
    mu_.Unlock();
    absl::Status status = ZeroPart(*job, device);
    mu_.Lock();
    if (job->error.ok()) job->error = status;
    if (--job->parts_left > 0) continue;
    // The last part of a volume: everything is zero and flushed, or there is an error.
    const absl::Status error = job->error;
    mu_.Unlock();
    if (!job->progress.stop) Finish(*job, error);
    mu_.Lock();
    jobs_.erase(job->volume->record.id);
  }
}

absl::Status Preparer::ZeroPart(Job& job, DeviceIndex index) {
  std::vector<UnitRun> units;
  for (const MapRun& run : *job.volume->runs) {
    if (run.device == index) units.push_back({run.unit, run.count});
  }
  return ZeroOnDevice(state_, job.volume->record.devices[index.value()], units, job.progress);
}

void Preparer::Finish(const Job& job, const absl::Status& error) {
  Change change(state_);
  // Another record of the volume may have been committed since the job began.
  absl::StatusOr<VolumePtr> volume = state_.FindVolume(job.volume->record.id);
  absl::Status status = volume.ok() ? change.Ready() : volume.status();
  if (status.ok()) {
    VolumeRecord record = (*volume)->record;
    if (error.ok()) {
      record.state = VolumeState::kReady;
      record.fault.clear();
    } else {
      record.fault = absl::StrCat("could not be zeroed: ", error.message());
      state_.host().Warn(absl::StrCat("volume '", record.name, "' ", record.fault));
    }
    change.PutVolume(**volume, std::move(record));
    status = change.Commit();
  }
  if (!status.ok()) {
    state_.host().Warn(absl::StrCat("volume '", job.volume->record.name,
                                    "' stays in preparation: ", status.message()));
  }
}

}  // namespace braid
