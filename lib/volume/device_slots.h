// The open devices of a volume, by DeviceIndex. A thin volume gets devices while it runs, so
// slots lie in memory reserved for as many as there can be, and never move: who has a
// place from the page table finds its device without a lock.
#ifndef BRAID_LIB_VOLUME_DEVICE_SLOTS_H_
#define BRAID_LIB_VOLUME_DEVICE_SLOTS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"
#include "lib/mapping/reserved_memory.h"

namespace braid {

struct DeviceSlot {
  std::unique_ptr<BlockDevice> device;
  // Answered with an error: reads prefer other legs. A hint, never a decision.
  std::atomic<bool> suspect{false};
  // Missed a write, or a flush, and is about to be stale or is: what is bound from now on
  // is stale here when another leg is not. Set with the map held.
  std::atomic<bool> failing{false};
  // Units of all legs in sync here, at least; 0 takes the device out of every flush.
  std::atomic<uint64_t> live_units{0};
};

class DeviceSlots {
 public:
  // With room for `capacity` devices, the first of them `devices`.
  static absl::StatusOr<std::unique_ptr<DeviceSlots>> Create(
      std::vector<std::unique_ptr<BlockDevice>> devices, uint64_t capacity);
  ~DeviceSlots();
  DeviceSlots(const DeviceSlots&) = delete;
  DeviceSlots& operator=(const DeviceSlots&) = delete;

  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  // device < count().
  DeviceSlot& operator[](DeviceIndex device) const { return slots_[device.value()]; }
  BlockDevice& device(DeviceIndex index) const { return *slots_[index.value()].device; }

  // The next index is this device's. One caller at a time. ResourceExhausted: no room.
  absl::Status Add(std::unique_ptr<BlockDevice> device);

  // Facts of all devices together.
  bool can_trim() const { return can_trim_.load(std::memory_order_relaxed); }
  bool can_zero_fast() const { return can_zero_fast_.load(std::memory_order_relaxed); }
  bool rotational() const { return rotational_.load(std::memory_order_relaxed); }
  uint32_t required_alignment() const {
    return required_alignment_.load(std::memory_order_relaxed);
  }

 private:
  DeviceSlots(ReservedMemory memory, uint64_t capacity)
      : memory_(std::move(memory)),
        slots_(static_cast<DeviceSlot*>(memory_.data())),
        capacity_(capacity) {}

  const ReservedMemory memory_;
  DeviceSlot* const slots_;
  const uint64_t capacity_;
  std::atomic<uint64_t> count_{0};
  std::atomic<bool> can_trim_{true};
  std::atomic<bool> can_zero_fast_{true};
  std::atomic<bool> rotational_{false};
  std::atomic<uint32_t> required_alignment_{1};
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_DEVICE_SLOTS_H_
