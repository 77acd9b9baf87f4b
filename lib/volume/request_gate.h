// Which requests are under way, and parts of the volume where changes are held.
//
// A thin volume's map changes under its requests. Two things must then be known: when every
// request that may have looked up the old map has ended (Drain), and that none writes to
// a part while that is being moved or judged (Hold). Requests pay two atomic additions on
// counters of their own thread's line, and one load.
//
// Drain. A request adds 1 to one counter before it looks at the map, and takes it away from
// the same when it has ended. Drain goes over all counters and waits for each to be, at
// some moment, zero. It begins with an addition of its own (of 0), since additions to one
// counter have an order: a request whose addition comes later sees all that was done before
// Drain was called, the changed map with it; one whose addition came earlier keeps the
// counter above zero until it ends. So Drain is right whichever counters requests take, and
// it ends because there are two for each thread's line: it waits for those of the phase
// that is not the present one, which requests leave alone, but for a few that read the
// phase long ago; then turns the phase over, and waits for the others. One Drain at a time.
// (Phases as in sleepable RCU: McKenney, "Sleepable Read-Copy Update", 2006.)
//
// Hold. It is listed, then it drains; a change adds to its counter first and asks for holds
// after. By the same order either the change sees the hold, leaves and waits outside, or
// Drain sees the change. So no request waits for anything while it is inside, but for
// devices, the range lock (whose holders are inside too, ahead of it), and MarkStale of the
// authority and of the map log, which wait for no request.
#ifndef BRAID_LIB_VOLUME_REQUEST_GATE_H_
#define BRAID_LIB_VOLUME_REQUEST_GATE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <list>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"

namespace braid {

// Thread-safe. Outlives its passes and holds.
class RequestGate {
 private:
  struct Range {
    uint64_t begin;
    uint64_t end;  // not in the range
  };

 public:
  RequestGate() = default;
  RequestGate(const RequestGate&) = delete;
  RequestGate& operator=(const RequestGate&) = delete;

  enum class Kind : uint8_t { kRead, kChange };
  // A request under way, of the volume's bytes [offset, offset + length). A change that
  // overlaps a hold waits before it is under way. A thread has one pass at a time.
  class Pass {
   public:
    // `gate` may be null: then nothing is counted (thick volumes).
    Pass(RequestGate* gate, Kind kind, uint64_t offset, uint64_t length);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    RequestGate* const gate_;
    std::atomic<uint64_t>* counter_ = nullptr;
  };

  // While it lives no change of the range is under way. The constructor waits for those
  // that are, and for holds that overlap. Never taken inside a Pass of one's own.
  class Hold {
   public:
    Hold(RequestGate& gate, uint64_t offset, uint64_t length);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    RequestGate& gate_;
    std::list<Range>::iterator at_;
  };

  // Returns when every pass that was under way as it was called has ended. Not inside a pass.
  void Drain();

 private:
  // As many lines as may be worked on at once without sharing; each on a line of its own.
  static constexpr size_t kShards = 64;
  struct alignas(64) Shard {
    std::array<std::atomic<uint64_t>, 2> in_phase{};
  };
  // In a counter, beside the requests: Drain waits for it.
  static constexpr uint64_t kAwaited = uint64_t{1} << 63;

  friend class RequestGatePeer;  // of the test

  std::atomic<uint64_t>* Enter();
  std::atomic<uint64_t>* EnterPhase(uint32_t phase);
  void Leave(std::atomic<uint64_t>* counter);
  void AwaitPhase(uint32_t phase);
  // Whether the range meets one that is held; an empty one meets none.
  bool IsHeld(const Range& range) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::array<Shard, kShards> shards_;
  // Read by every request; written by Drain and Hold.
  alignas(64) std::atomic<uint32_t> phase_{0};
  std::atomic<uint64_t> holds_{0};  // size of held_

  Mutex drain_mu_;  // before wake_mu_, and so is mu_; those two never together
  Mutex wake_mu_;
  CondVar left_;  // an awaited counter has come to zero, if only for a moment
  Mutex mu_;
  CondVar released_;
  std::list<Range> held_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_REQUEST_GATE_H_
