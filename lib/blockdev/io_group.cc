#include "lib/blockdev/io_group.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cassert>

namespace braid {
namespace {

constexpr uint32_t kSleeping = uint32_t{1} << 31;

// The kernel's futex and not std::atomic::wait, because the group may be gone by the time
// its last completer wakes it. To the kernel a stale address is nothing to wake, or wakes
// someone who looks again.
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void FutexWait(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void FutexWake(const std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

}  // namespace

IoGroup::IoGroup(uint32_t expected) : expected_(expected), pending_(expected) {
  assert(expected < kSleeping);
}

IoGroup::~IoGroup() { assert((pending_.load(std::memory_order_relaxed) & ~kSleeping) == 0); }

void IoGroup::Complete() {
  const std::atomic<uint32_t>* word = &pending_;
  const uint32_t before = pending_.fetch_sub(1, std::memory_order_acq_rel);
  // From here on *this may be gone.
  assert((before & ~kSleeping) != 0);
  if (before == (kSleeping | 1)) FutexWake(word);
}

void IoGroup::AddDriven(IoDriver& driver) {
  assert(driver_ == nullptr || driver_ == &driver);
  driver_ = &driver;
  ++driven_;
}

void IoGroup::CompleteDriven() {
  assert(driven_ > 0);
  --driven_;
  Complete();
}

void IoGroup::Wait() {
  while (driven_ > 0) driver_->Drive();
  if (pending_.load(std::memory_order_acquire) == 0) return;
  uint32_t now = pending_.fetch_or(kSleeping, std::memory_order_acq_rel) | kSleeping;
  while (now != kSleeping) {
    FutexWait(pending_, now);
    now = pending_.load(std::memory_order_acquire);
  }
}

}  // namespace braid
