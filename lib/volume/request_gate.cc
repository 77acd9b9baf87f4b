#include "lib/volume/request_gate.h"

#include <algorithm>

namespace braid {
namespace {

// Threads take turns in taking lines.
size_t OwnShard(size_t shards) {
  static std::atomic<size_t> threads{0};
  thread_local const size_t own = threads.fetch_add(1, std::memory_order_relaxed);
  return own % shards;
}

}  // namespace

std::atomic<uint64_t>* RequestGate::Enter() {
  // An old phase is as good for the outcome: it makes a Drain wait a little longer.
  return EnterPhase(phase_.load(std::memory_order_relaxed));
}

std::atomic<uint64_t>* RequestGate::EnterPhase(uint32_t phase) {
  std::atomic<uint64_t>* const counter = &shards_[OwnShard(kShards)].in_phase[phase];
  counter->fetch_add(1, std::memory_order_acq_rel);
  return counter;
}

void RequestGate::Leave(std::atomic<uint64_t>* counter) {
  if (counter->fetch_sub(1, std::memory_order_acq_rel) != (kAwaited | 1)) return;
  // Under the lock, so that it comes before Drain has looked or while it waits.
  MutexLock l(&wake_mu_);
  left_.SignalAll();
}

void RequestGate::AwaitPhase(uint32_t phase) {
  for (Shard& shard : shards_) {
    std::atomic<uint64_t>& counter = shard.in_phase[phase];
    if (counter.fetch_add(0, std::memory_order_acq_rel) == 0) continue;
    counter.fetch_or(kAwaited, std::memory_order_acq_rel);
    {
      MutexLock l(&wake_mu_);
      while (counter.load(std::memory_order_acquire) != kAwaited) left_.Wait(&wake_mu_);
    }
    counter.fetch_and(~kAwaited, std::memory_order_acq_rel);
  }
}

void RequestGate::Drain() {
  MutexLock l(&drain_mu_);
  const uint32_t present = phase_.load(std::memory_order_relaxed);
  AwaitPhase(1 - present);
  phase_.store(1 - present, std::memory_order_relaxed);
  AwaitPhase(present);
}

bool RequestGate::IsHeld(const Range& range) const {
  return range.begin != range.end &&
         std::any_of(held_.begin(), held_.end(), [&range](const Range& held) {
           return held.begin != held.end && held.begin < range.end && range.begin < held.end;
         });
}

RequestGate::Pass::Pass(RequestGate* gate, Kind kind, uint64_t offset, uint64_t length)
    : gate_(gate) {
  if (gate_ == nullptr) return;
  counter_ = gate_->Enter();
  if (kind == Kind::kRead || gate_->holds_.load(std::memory_order_acquire) == 0) return;
  const Range range{offset, offset + length};
  MutexLock l(&gate_->mu_);
  if (!gate_->IsHeld(range)) return;  // holds listed from now on see it inside
  gate_->Leave(counter_);
  while (gate_->IsHeld(range)) gate_->released_.Wait(&gate_->mu_);
  counter_ = gate_->Enter();
}

RequestGate::Pass::~Pass() {
  if (gate_ != nullptr) gate_->Leave(counter_);
}

RequestGate::Hold::Hold(RequestGate& gate, uint64_t offset, uint64_t length) : gate_(gate) {
  const Range range{offset, offset + length};
  {
    MutexLock l(&gate_.mu_);
    while (gate_.IsHeld(range)) gate_.released_.Wait(&gate_.mu_);
    at_ = gate_.held_.insert(gate_.held_.end(), range);
    gate_.holds_.fetch_add(1, std::memory_order_acq_rel);
  }
  gate_.Drain();
}

RequestGate::Hold::~Hold() {
  MutexLock l(&gate_.mu_);
  gate_.held_.erase(at_);
  gate_.holds_.fetch_sub(1, std::memory_order_acq_rel);
  gate_.released_.SignalAll();
}

}  // namespace braid
