// A device that fails, tears, delays and reorders on purpose.
//
// Fault model. A real device, or the way to it, may
//   - refuse a request: an error, and nothing changed;
//   - tear it: an error, and some of its sectors changed, the others not;
//   - lose the answer: an error, though all of it was done;
//   - be late: any time passes before a request is done;
//   - reorder: requests in flight together take effect in any order, and complete in any;
//   - hang: requests stay in flight until further notice;
//   - die: from some moment on every request fails; and come back later, old bytes and all.
// It does not, here, change bytes that no request named, answer success for what it did
// not do, or return wrong bytes for a read. (What power takes away: crash_device.h.)
//
// Which fault a request meets is drawn, from the seed, in the order of Submit calls. One
// thread that submits therefore meets the same faults each time; with several, and with
// `threads` of the device's own, the operating system has a say as well.
#ifndef BRAID_LIB_TESTING_FAULTY_DEVICE_H_
#define BRAID_LIB_TESTING_FAULTY_DEVICE_H_

#include <array>
#include <cerrno>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "lib/base/mutex.h"
#include "lib/blockdev/block_device.h"

namespace braid {

// A set of IoKinds.
class IoKinds {
 public:
  constexpr IoKinds(std::initializer_list<IoKind> kinds) {  // NOLINT(google-explicit-constructor)
    for (IoKind kind : kinds) bits_ |= Bit(kind);
  }
  static constexpr IoKinds All() {
    return {IoKind::kRead, IoKind::kWrite, IoKind::kZero,
            IoKind::kTrim, IoKind::kFlush, IoKind::kCache};
  }
  constexpr bool Contains(IoKind kind) const { return (bits_ & Bit(kind)) != 0; }

 private:
  static constexpr uint32_t Bit(IoKind kind) { return 1U << static_cast<unsigned>(kind); }
  uint32_t bits_ = 0;
};

struct Fault {
  enum class Effect : uint8_t {
    kRefused,     // nothing changed
    kTorn,        // a random choice of its sectors changed
    kAnswerLost,  // all of it done
  };

  // Which requests it may meet: of these kinds, touching [offset, offset + length).
  // A flush touches every range.
  IoKinds kinds = IoKinds::All();
  uint64_t offset = 0;
  uint64_t length = UINT64_MAX;
  // Of those, the first `skip` pass, then up to `count` meet it, each with `probability`.
  uint64_t skip = 0;
  uint64_t count = UINT64_MAX;
  double probability = 1;
  // What happens to them. Error 0: only the delay. Only kWrite and kZero tear.
  int error = EIO;
  Effect effect = Effect::kRefused;
  absl::Duration delay = absl::ZeroDuration();
};

struct FaultyDeviceOptions {
  uint64_t seed = 1;
  // 0: requests are done inside Submit. Otherwise by so many threads, which take the
  // requests in flight in random order, each after up to max_delay.
  int threads = 0;
  absl::Duration max_delay = absl::ZeroDuration();
};

// Thread-safe.
class FaultyDevice final : public BlockDevice {
 public:
  FaultyDevice(std::unique_ptr<BlockDevice> inner, const FaultyDeviceOptions& options);
  // No request is in flight, so a paused device has been resumed.
  ~FaultyDevice() override;

  // The first added that matches a request is what it meets.
  void AddFault(const Fault& fault);
  void ClearFaults();

  // From now on every request that has not begun fails with `error`.
  void Die(int error = EIO);
  void Revive();

  // Hangs: requests stay in flight until Resume. With `threads` only.
  void Pause();
  void Resume();
  // Returns once `count` requests wait for Resume.
  void AwaitPaused(uint64_t count);

  struct Counters {
    // By IoKind.
    std::array<uint64_t, 6> submitted{};
    std::array<uint64_t, 6> failed{};  // by a fault, or dead
    uint64_t submitted_of(IoKind kind) const { return submitted[static_cast<size_t>(kind)]; }
    uint64_t failed_of(IoKind kind) const { return failed[static_cast<size_t>(kind)]; }
  };
  Counters counters() const;

  const DeviceTraits& traits() const override { return inner_->traits(); }
  const std::string& name() const override { return inner_->name(); }
  void Submit(DeviceIo& io, IoGroup& group) override;
  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) override;

 private:
  struct Rule {
    Fault fault;
    uint64_t matched = 0;
    uint64_t met = 0;
  };
  // What was drawn for one request.
  struct Fate {
    int error = 0;
    Fault::Effect effect = Fault::Effect::kRefused;
    absl::Duration delay = absl::ZeroDuration();
    uint64_t tear_seed = 0;
  };
  struct InFlight {
    DeviceIo* io;
    IoGroup* group;
    Fate fate;
  };

  Fate Draw(const DeviceIo& io) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || (!paused_ && !queue_.empty());
  }
  void WorkerLoop();
  void Execute(DeviceIo& io, IoGroup& group, const Fate& fate);
  int RunInner(const DeviceIo& io);
  void Tear(const DeviceIo& io, uint64_t seed);

  const std::unique_ptr<BlockDevice> inner_;
  const FaultyDeviceOptions options_;

  mutable Mutex mutex_;
  CondVar changed_;  // paused_, stopping_, or queue_ has grown
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::vector<Rule> rules_ ABSL_GUARDED_BY(mutex_);
  int dead_error_ ABSL_GUARDED_BY(mutex_) = 0;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<InFlight> queue_ ABSL_GUARDED_BY(mutex_);
  Counters counters_ ABSL_GUARDED_BY(mutex_);

  std::vector<std::thread> workers_;
};

}  // namespace braid

#endif  // BRAID_LIB_TESTING_FAULTY_DEVICE_H_
