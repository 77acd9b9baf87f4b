#include "lib/testing/faulty_device.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"
#include "lib/base/units.h"

namespace braid {
namespace {

bool Touches(const Fault& fault, const DeviceIo& io) {
  if (io.kind == IoKind::kFlush) return true;
  if (io.offset >= fault.offset) return io.offset - fault.offset < fault.length;
  return fault.offset - io.offset < io.length;
}

// The bytes of a write as one piece.
std::string Gather(const DeviceIo& io) {
  std::string bytes;
  for (const iovec& part : io.data) {
    bytes.append(static_cast<const char*>(part.iov_base), part.iov_len);
  }
  return bytes;
}

}  // namespace

FaultyDevice::FaultyDevice(std::unique_ptr<BlockDevice> inner, const FaultyDeviceOptions& options)
    : inner_(std::move(inner)), options_(options), random_(options.seed) {
  for (int i = 0; i < options_.threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

FaultyDevice::~FaultyDevice() {
  {
    MutexLock lock(&mutex_);
    assert(queue_.empty());
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

void FaultyDevice::AddFault(const Fault& fault) {
  MutexLock lock(&mutex_);
  rules_.push_back({.fault = fault});
}

void FaultyDevice::ClearFaults() {
  MutexLock lock(&mutex_);
  rules_.clear();
}

void FaultyDevice::Die(int error) {
  assert(error != 0);
  MutexLock lock(&mutex_);
  dead_error_ = error;
}

void FaultyDevice::Revive() {
  MutexLock lock(&mutex_);
  dead_error_ = 0;
}

void FaultyDevice::Pause() {
  assert(options_.threads > 0);
  MutexLock lock(&mutex_);
  paused_ = true;
  changed_.SignalAll();
}

void FaultyDevice::Resume() {
  MutexLock lock(&mutex_);
  paused_ = false;
  changed_.SignalAll();
}

void FaultyDevice::AwaitPaused(uint64_t count) {
  MutexLock lock(&mutex_);
  while (!paused_ || queue_.size() < count) changed_.Wait(&mutex_);
}

FaultyDevice::Counters FaultyDevice::counters() const {
  MutexLock lock(&mutex_);
  return counters_;
}

FaultyDevice::Fate FaultyDevice::Draw(const DeviceIo& io) {
  Fate fate;
  if (options_.max_delay > absl::ZeroDuration()) {
    fate.delay = options_.max_delay * std::uniform_real_distribution<>(0, 1)(random_);
  }
  for (Rule& rule : rules_) {
    const Fault& fault = rule.fault;
    if (!fault.kinds.Contains(io.kind) || !Touches(fault, io)) continue;
    if (rule.matched++ < fault.skip || rule.met >= fault.count) continue;
    if (std::uniform_real_distribution<>(0, 1)(random_) >= fault.probability) continue;
    ++rule.met;
    fate.error = fault.error;
    fate.effect = fault.effect;
    fate.delay += fault.delay;
    fate.tear_seed = random_();
    break;
  }
  return fate;
}

void FaultyDevice::Submit(DeviceIo& io, IoGroup& group) {
  Fate fate;
  {
    MutexLock lock(&mutex_);
    ++counters_.submitted[static_cast<size_t>(io.kind)];
    fate = Draw(io);
    if (options_.threads > 0) {
      queue_.push_back({.io = &io, .group = &group, .fate = fate});
      changed_.SignalAll();
      return;
    }
  }
  Execute(io, group, fate);
}

void FaultyDevice::WorkerLoop() {
  while (true) {
    InFlight request{};
    {
      MutexLock lock(&mutex_);
      while (!HasWork()) changed_.Wait(&mutex_);
      if (stopping_) return;
      const size_t pick = std::uniform_int_distribution<size_t>(0, queue_.size() - 1)(random_);
      std::swap(queue_[pick], queue_.back());
      request = queue_.back();
      queue_.pop_back();
    }
    Execute(*request.io, *request.group, request.fate);
  }
}

void FaultyDevice::Execute(DeviceIo& io, IoGroup& group, const Fate& fate) {
  if (fate.delay > absl::ZeroDuration()) absl::SleepFor(fate.delay);
  int error = fate.error;
  Fault::Effect effect = fate.effect;
  {
    MutexLock lock(&mutex_);
    if (dead_error_ != 0) {
      error = dead_error_;
      effect = Fault::Effect::kRefused;
    }
    if (error != 0) ++counters_.failed[static_cast<size_t>(io.kind)];
  }
  if (error == 0) {
    error = RunInner(io);
  } else if (effect == Fault::Effect::kAnswerLost) {
    RunInner(io);
  } else if (effect == Fault::Effect::kTorn) {
    Tear(io, fate.tear_seed);
  }
  io.error = error;
  group.Complete();
}

int FaultyDevice::RunInner(const DeviceIo& io) {
  DeviceIo copy = io;
  IoGroup group(1);
  inner_->Submit(copy, group);
  group.Wait();
  return copy.error;
}

void FaultyDevice::Tear(const DeviceIo& io, uint64_t seed) {
  if (io.kind != IoKind::kWrite && io.kind != IoKind::kZero) return;
  if (!IsWellFormed(io, traits())) return;
  std::string bytes = io.kind == IoKind::kWrite ? Gather(io) : std::string(io.length, '\0');
  std::mt19937_64 random(seed);
  const uint64_t end = io.offset + io.length;
  for (uint64_t at = io.offset; at < end;) {
    const uint64_t next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
    if (random() % 2 == 0) {
      iovec part{.iov_base = bytes.data() + (at - io.offset),
                 .iov_len = static_cast<size_t>(next - at)};
      RunInner({.kind = IoKind::kWrite,
                .offset = at,
                .length = next - at,
                .data = absl::MakeConstSpan(&part, 1)});
    }
    at = next;
  }
}

absl::Status FaultyDevice::Extents(uint64_t offset, uint64_t length,
                                   absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) {
  {
    MutexLock lock(&mutex_);
    if (dead_error_ != 0) return ErrnoStatus(dead_error_, "device " + name() + " is dead");
  }
  return inner_->Extents(offset, length, fn);
}

}  // namespace braid
