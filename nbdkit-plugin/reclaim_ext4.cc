#include "nbdkit-plugin/reclaim_ext4.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace braid {
namespace {

class Ext4 final : public ReclaimFileSystem {
 public:
  explicit Ext4(std::unique_ptr<ext4::FileSystem> file_system)
      : file_system_(std::move(file_system)) {}

  const std::string& description() const override { return file_system_->description(); }
  const std::vector<ext4::FileSystem::Extent>& journal() const override {
    return file_system_->journal();
  }
  uint32_t block_bytes() const override { return file_system_->block_bytes(); }
  uint32_t group_count() const override { return file_system_->group_count(); }
  absl::StatusOr<ext4::FileSystem::View> Look(
      bool offline, absl::FunctionRef<void(uint32_t groups_done)> progress) override {
    return file_system_->Look(offline, progress);
  }

 private:
  const std::unique_ptr<ext4::FileSystem> file_system_;
};

}  // namespace

absl::StatusOr<FoundFileSystems> FindExt4(const ext4::ReadVolume& read, uint64_t volume_bytes) {
  const absl::StatusOr<std::vector<ext4::Place>> places = ext4::FindFileSystems(read, volume_bytes);
  if (!places.ok()) return places.status();
  FoundFileSystems found;
  for (const ext4::Place& place : *places) {
    absl::StatusOr<std::unique_ptr<ext4::FileSystem>> opened = ext4::FileSystem::Open(read, place);
    if (opened.ok()) {
      found.usable.push_back(std::make_shared<Ext4>(*std::move(opened)));
    } else {
      found.refused.push_back(opened.status());
    }
  }
  return found;
}

}  // namespace braid
