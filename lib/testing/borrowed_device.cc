#include "lib/testing/borrowed_device.h"

namespace braid {
namespace {

class BorrowedDevice final : public BlockDevice {
 public:
  explicit BorrowedDevice(BlockDevice* device) : device_(*device) {}

  const DeviceTraits& traits() const override { return device_.traits(); }
  const std::string& name() const override { return device_.name(); }
  void Submit(DeviceIo& io, IoGroup& group) override { device_.Submit(io, group); }
  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) override {
    return device_.Extents(offset, length, fn);
  }

 private:
  BlockDevice& device_;
};

}  // namespace

std::unique_ptr<BlockDevice> BorrowDevice(BlockDevice* device) {
  return std::make_unique<BorrowedDevice>(device);
}

}  // namespace braid
