#include "lib/blockdev/thread_ring.h"

#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/base/config.h"
#ifdef ABSL_HAVE_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace braid {
namespace {

std::atomic<bool> disabled{false};

// The kernel may map a new ring where the ring of a thread that has ended was. liburing
// does so by system calls that ThreadSanitizer does not see; without being told here that
// all use of the old came before the new, it takes the two for one memory that both
// threads use.
#ifdef ABSL_HAVE_THREAD_SANITIZER
void NoteMapped() { __tsan_acquire(&disabled); }
void NoteAboutToUnmap() { __tsan_release(&disabled); }
#else
void NoteMapped() {}
void NoteAboutToUnmap() {}
#endif

// The ring is this process's own and its queues cannot overflow, so the kernel has no
// reason to refuse; what is in flight would otherwise never end.
[[noreturn]] void Die(const char* what, int error) {
  fprintf(stderr, "braid: io_uring: %s: %s\n", what, strerror(error));
  abort();
}

// EAGAIN, EBUSY: short of memory, or completions to be taken first; Drive comes again.
void CheckSubmitted(int result) {
  if (result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY) return;
  Die("cannot submit", -result);
}

}  // namespace

void ThreadRing::DisableForTest(bool disable) { disabled.store(disable); }

ThreadRing* ThreadRing::Get() {
  // The kernel's answer for this thread and process; asked once.
  struct Slot {
    std::unique_ptr<ThreadRing> ring;
    pid_t asked_by = 0;
  };
  thread_local Slot slot;
  if (disabled.load(std::memory_order_relaxed)) return nullptr;
  const pid_t self = getpid();
  if (slot.asked_by != self) {
    slot.asked_by = self;
    slot.ring = Make(self);
  }
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDelete): it takes the old ring for the new one.
  return slot.ring.get();
}

std::unique_ptr<ThreadRing> ThreadRing::Make(pid_t self) {
  io_uring queues{};
  if (io_uring_queue_init(kDepth, &queues, 0) != 0) return nullptr;
  NoteMapped();
  return std::unique_ptr<ThreadRing>(new ThreadRing(queues, self));
}

ThreadRing::ThreadRing(const io_uring& queues, pid_t owner) : ring_(queues), owner_(owner) {
  for (RingOp& op : ops_) free_.push_back(&op);
}

ThreadRing::~ThreadRing() {
  assert(owner_ != getpid() || free_.size() == kDepth);
  NoteAboutToUnmap();
  io_uring_queue_exit(&ring_);
}

RingOp& ThreadRing::Start(RingClient& client, DeviceIo& io, IoGroup& group) {
  while (free_.empty()) Drive();
  RingOp& op = *free_.back();
  free_.pop_back();
  op.step = 0;
  op.client_ = &client;
  op.io_ = &io;
  op.group_ = &group;
  group.AddDriven(*this);
  return op;
}

io_uring_sqe& ThreadRing::Sqe(RingOp& op) {
  // One entry an op and kDepth of each: there is always one.
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) Die("no submission entry", EBUSY);
  memset(sqe, 0, sizeof(*sqe));
  sqe->user_data = reinterpret_cast<uintptr_t>(&op);
  return *sqe;
}

void ThreadRing::Finish(RingOp& op, int error) {
  IoGroup* group = op.group_;
  op.io_->error = error;
  free_.push_back(&op);
  group->CompleteDriven();
}

void ThreadRing::Push() { CheckSubmitted(io_uring_submit(&ring_)); }

void ThreadRing::Drive() {
  CheckSubmitted(io_uring_submit_and_wait(&ring_, 1));
  TakeCompletions();
}

void ThreadRing::TakeCompletions() {
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
    auto* op = reinterpret_cast<RingOp*>(static_cast<uintptr_t>(cqe->user_data));
    const int result = cqe->res;
    // Before the owner goes on, which may drive this ring itself.
    io_uring_cqe_seen(&ring_, cqe);
    op->client_->RingDone(*this, *op, result);
  }
}

}  // namespace braid
