#include "lib/volume/device_slots.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"

namespace braid {

absl::StatusOr<std::unique_ptr<DeviceSlots>> DeviceSlots::Create(
    std::vector<std::unique_ptr<BlockDevice>> devices, uint64_t capacity) {
  absl::StatusOr<ReservedMemory> memory =
      ReservedMemory::Allocate(std::max<uint64_t>(capacity, 1) * sizeof(DeviceSlot));
  if (!memory.ok()) return memory.status();
  auto slots = absl::WrapUnique(new DeviceSlots(*std::move(memory), capacity));
  for (std::unique_ptr<BlockDevice>& device : devices) {
    if (absl::Status s = slots->Add(std::move(device)); !s.ok()) return s;
  }
  return slots;
}

DeviceSlots::~DeviceSlots() {
  for (uint64_t i = 0; i < count(); ++i) slots_[i].~DeviceSlot();
}

absl::Status DeviceSlots::Add(std::unique_ptr<BlockDevice> device) {
  const uint64_t index = count_.load(std::memory_order_relaxed);
  if (index == capacity_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a volume has at most ", capacity_, " devices"));
  }
  const DeviceTraits& traits = device->traits();
  can_trim_ = can_trim() && traits.can_trim;
  can_zero_fast_ = can_zero_fast() && traits.can_zero_fast;
  rotational_ = rotational() || traits.rotational;
  required_alignment_ = std::max(required_alignment(), traits.required_alignment);
  auto* const slot = new (slots_ + index) DeviceSlot;
  slot->device = std::move(device);
  count_.store(index + 1, std::memory_order_release);
  return absl::OkStatus();
}

}  // namespace braid
