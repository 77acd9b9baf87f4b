// Which requests are under way, and parts of the volume where changes are held.
//
// A thin volume's map changes under its requests. Two things must then be known: when every
// request that may have looked up the old map has ended (Drain), and that none writes to
// a part while that is being moved or judged (Hold). Requests pay two atomic additions on
// counters of their own thread's line, and one load.
//
// How: a request adds 1 to the counter of the present phase (one of two) before it looks
// at the map, and takes it away when it has ended. Drain turns the phase over and waits for
// the old phase's counters to be zero; one Drain at a time (as in sleepable RCU,
// McKenney, "Sleepable Read-Copy Update", 2006). Holding: the hold is listed, counted,
// then drained; a request enters first and looks at the count after. Both with sequential
// consistency, so that either the request sees the hold, leaves and waits, or Drain sees the
// request. So no request waits for anything while it is inside, but for devices, the
// range lock (whose holders are inside too, ahead of it), and the authority's MarkStale.
#ifndef BRAID_LIB_VOLUME_REQUEST_GATE_H_
#define BRAID_LIB_VOLUME_REQUEST_GATE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <list>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"

namespace braid {

// Thread-safe.
class RequestGate {
 public:
  RequestGate() = default;
  RequestGate(const RequestGate&) = delete;
  RequestGate& operator=(const RequestGate&) = delete;

  enum class Kind : uint8_t { kRead, kChange };
  // A request under way, of the volume's bytes [offset, offset + length). A change that
  // overlaps a hold waits before it is under way.
  class Pass {
   public:
    // `gate` may be null: then nothing is counted (thick volumes).
    Pass(RequestGate* gate, Kind kind, uint64_t offset, uint64_t length);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    RequestGate* gate_;
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
    struct Range { uint64_t begin, end; };
    std::list<Range>::iterator at_;
    friend class RequestGate;
  };

  // Returns when every pass that was under way as it was called has ended. Not inside a pass.
  void Drain();

 private:
  // Each on a line of its own.
  static constexpr size_t kShards = 64;
  struct alignas(64) Shard {
    std::array<std::atomic<uint64_t>, 2> in_phase{};
  };
  std::atomic<uint32_t> phase_{0};
  std::array<Shard, kShards> shards_;
  std::atomic<uint64_t> holds_{0};
  Mutex drain_mu_;
  Mutex mu_;
  CondVar released_;
  std::list<Hold::Range> held_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_REQUEST_GATE_H_
