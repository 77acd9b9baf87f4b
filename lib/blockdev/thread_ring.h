// The calling thread's io_uring: the IoDriver of file devices.
//
// Requests are queued by Start and reach the kernel, all in one system call, when the
// thread waits; so legs that are queued one after the other run at once. What a request
// does next is its owner's business: the ring calls RingDone for each completion, and the
// owner queues the next step with the same op or finishes it.
//
// At most kDepth requests of a thread are in flight, half of what the completion queue
// holds, so it cannot overflow; one more waits for a completion first. The ring belongs
// to its thread and ends with it, which is safe because a thread waits for its groups. A
// forked child leaves its parent's ring alone and makes its own.
#ifndef BRAID_LIB_BLOCKDEV_THREAD_RING_H_
#define BRAID_LIB_BLOCKDEV_THREAD_RING_H_

#include <liburing.h>
#include <sys/types.h>

#include <array>
#include <memory>
#include <vector>

#include "lib/blockdev/block_device.h"
#include "lib/blockdev/io_group.h"

namespace braid {

class RingOp;
class ThreadRing;

class RingClient {
 public:
  // A step of `op` ended with `result` as io_uring gives it. Calls ring.Sqe for another
  // step, or ring.Finish; one of the two. On the submitting thread.
  virtual void RingDone(ThreadRing& ring, RingOp& op, int result) = 0;

 protected:
  ~RingClient() = default;
};

// One request in flight on a ring.
class RingOp {
 public:
  DeviceIo& io() const { return *io_; }
  // Which step this is, by the client's own count; 0 at first.
  int step = 0;

 private:
  friend class ThreadRing;
  RingClient* client_ = nullptr;
  DeviceIo* io_ = nullptr;
  IoGroup* group_ = nullptr;
};

class ThreadRing final : public IoDriver {
 public:
  static constexpr unsigned kDepth = 64;

  // This thread's ring, made at its first use; null where the kernel gives none.
  static ThreadRing* Get();
  // For tests and measurements: from now on Get returns null on all threads.
  static void DisableForTest(bool disable);

  ~ThreadRing();
  ThreadRing(const ThreadRing&) = delete;
  ThreadRing& operator=(const ThreadRing&) = delete;

  // Takes `io` into flight. Sqe is to be called for its first step.
  RingOp& Start(RingClient& client, DeviceIo& io, IoGroup& group);
  // A cleared submission entry for the next step of `op`, queued as the client fills it.
  io_uring_sqe& Sqe(RingOp& op);
  // Completes the request with `error`. `op` is gone.
  void Finish(RingOp& op, int error);

  // Hands the kernel what is queued, and returns at once.
  void Push();
  void Drive() override;

 private:
  static std::unique_ptr<ThreadRing> Make(pid_t self);
  ThreadRing(const io_uring& queues, pid_t owner);
  void TakeCompletions();

  io_uring ring_;
  const pid_t owner_;
  std::array<RingOp, kDepth> ops_;
  std::vector<RingOp*> free_;
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_THREAD_RING_H_
