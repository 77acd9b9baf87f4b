#include "controlplane/server/delayed_store.h"

#include <utility>

#include "absl/time/clock.h"

namespace braid {
namespace {

class DelayedStore final : public MetadataStore {
 public:
  DelayedStore(std::unique_ptr<MetadataStore> store, absl::Duration delay)
      : store_(std::move(store)), delay_(delay) {}

  absl::Status Commit(const MetadataBatch& batch) override {
    absl::SleepFor(delay_);
    return store_->Commit(batch);
  }
  std::unique_ptr<MetadataReader> Snapshot() override { return store_->Snapshot(); }
  absl::StatusOr<SiteRecord> ReadSite() override { return store_->ReadSite(); }
  absl::Status ForEachDevice(absl::FunctionRef<absl::Status(const DeviceRecord&)> fn) override {
    return store_->ForEachDevice(fn);
  }
  absl::Status ForEachVolume(absl::FunctionRef<absl::Status(const VolumeRecord&)> fn) override {
    return store_->ForEachVolume(fn);
  }
  absl::Status ForEachRun(const Uuid& volume,
                          absl::FunctionRef<absl::Status(const MapRun&)> fn) override {
    return store_->ForEachRun(volume, fn);
  }
  absl::Status ForEachGrant(const Uuid& volume,
                            absl::FunctionRef<absl::Status(const GrantRecord&)> fn) override {
    return store_->ForEachGrant(volume, fn);
  }

 private:
  const std::unique_ptr<MetadataStore> store_;
  const absl::Duration delay_;
};

}  // namespace

std::unique_ptr<MetadataStore> DelayCommits(std::unique_ptr<MetadataStore> store,
                                            absl::Duration delay) {
  return std::make_unique<DelayedStore>(std::move(store), delay);
}

}  // namespace braid
