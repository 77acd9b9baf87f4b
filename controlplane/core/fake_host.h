// A machine for tests: its devices are memory, its clock stands still until it is set, its locks
// are a set.
#ifndef BRAID_CONTROLPLANE_CORE_FAKE_HOST_H_
#define BRAID_CONTROLPLANE_CORE_FAKE_HOST_H_

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "controlplane/core/host.h"
#include "lib/blockdev/memory_device.h"
#include "lib/testing/borrowed_device.h"
#include "lib/testing/faulty_device.h"

namespace braid {

class FakeHost final : public Host {
 public:
  FakeHost() : boot_id_(Uuid::Random()) {}

  // A device at a path; the result lives as long as the host. With `threads` it can be
  // paused.
  FaultyDevice& MakeDevice(const std::string& path, uint64_t size_bytes, int threads = 0) {
    return MakeDevice(path, MakeMemoryDevice(path, size_bytes), threads);
  }
  FaultyDevice& MakeDevice(const std::string& path, std::unique_ptr<BlockDevice> inner,
                           int threads = 0) {
    absl::MutexLock lock(&mu_);
    devices_.push_back(
        std::make_unique<FaultyDevice>(std::move(inner), FaultyDeviceOptions{.threads = threads}));
    paths_[path] = devices_.back().get();
    return *devices_.back();
  }
  void Alias(const std::string& path, const std::string& other) {
    absl::MutexLock lock(&mu_);
    paths_[other] = paths_.at(path);
  }
  void Unplug(const std::string& path) {
    absl::MutexLock lock(&mu_);
    paths_.erase(path);
  }
  void Plug(const std::string& path, FaultyDevice& device) {
    absl::MutexLock lock(&mu_);
    paths_[path] = &device;
  }
  // For a while.
  class Unplugged {
   public:
    Unplugged(FakeHost& host, const std::string& path) : host_(host), path_(path) {
      absl::MutexLock lock(&host.mu_);
      device_ = host.paths_.at(path);
      host.paths_.erase(path);
    }
    ~Unplugged() { host_.Plug(path_, *device_); }

   private:
    FakeHost& host_;
    const std::string path_;
    FaultyDevice* device_;
  };
  void SetLocked(const std::string& path, bool locked) {
    absl::MutexLock lock(&mu_);
    if (locked) {
      locks_.insert(path);
    } else {
      locks_.erase(path);
    }
  }
  // Every process dies.
  void Reboot() {
    absl::MutexLock lock(&mu_);
    locks_.clear();
    boot_id_ = Uuid::Random();
  }
  void SetRecognised(const std::string& what) {
    absl::MutexLock lock(&mu_);
    recognised_ = what;
  }

  void SetNow(int64_t unix_seconds) {
    absl::MutexLock lock(&mu_);
    now_ = unix_seconds;
  }
  std::vector<std::string> warnings() {
    absl::MutexLock lock(&mu_);
    return warnings_;
  }

  int64_t NowUnixSeconds() override {
    absl::MutexLock lock(&mu_);
    return now_;
  }
  Uuid NewUuid() override { return Uuid::Random(); }
  Uuid BootId() override {
    absl::MutexLock lock(&mu_);
    return boot_id_;
  }
  absl::StatusOr<DeviceIdentity> Identify(const std::string& path) override {
    absl::MutexLock lock(&mu_);
    auto found = paths_.find(path);
    if (found == paths_.end()) return absl::NotFoundError(absl::StrCat(path, ": no such device"));
    return DeviceIdentity{.inode = reinterpret_cast<uintptr_t>(found->second)};
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> OpenDevice(const std::string& path,
                                                          const FileDeviceOptions&) override {
    absl::MutexLock lock(&mu_);
    auto found = paths_.find(path);
    if (found == paths_.end()) return absl::NotFoundError(absl::StrCat(path, ": no such device"));
    return BorrowDevice(found->second);
  }
  absl::StatusOr<std::string> RecogniseData(const std::string&) override {
    absl::MutexLock lock(&mu_);
    return recognised_;
  }
  absl::Status MakeLock(const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<bool> LockHeld(const std::string& path) override {
    absl::MutexLock lock(&mu_);
    return locks_.contains(path);
  }
  void RemoveLock(const std::string&) override {}
  void Warn(absl::string_view what) override {
    absl::MutexLock lock(&mu_);
    warnings_.emplace_back(what);
  }

 private:
  absl::Mutex mu_;
  int64_t now_ ABSL_GUARDED_BY(mu_) = 1'700'000'000;
  std::vector<std::string> warnings_ ABSL_GUARDED_BY(mu_);
  Uuid boot_id_ ABSL_GUARDED_BY(mu_);
  std::string recognised_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> locks_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, FaultyDevice*> paths_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<FaultyDevice>> devices_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_FAKE_HOST_H_
