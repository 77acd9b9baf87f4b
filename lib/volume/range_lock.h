// Ranges of a volume that are being read or written, so that requests which overlap run
// one after the other, in the order they came.
#ifndef BRAID_LIB_VOLUME_RANGE_LOCK_H_
#define BRAID_LIB_VOLUME_RANGE_LOCK_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"

namespace braid {

// First come, first served among ranges that overlap: a request waits for every earlier
// one that overlaps it, unless both are shared. No starvation, no deadlock as long as a
// thread holds one range at a time. The list is as long as there are requests in flight
// (the clients' limit, 128 a connection), so it is searched from end to end.
class RangeLock {
 public:
  enum class Mode : uint8_t { kShared, kExclusive };

  class Hold {
   public:
    // Blocks until the range is free. length is at least 1.
    Hold(RangeLock& lock, uint64_t offset, uint64_t length, Mode mode);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    friend class RangeLock;
    RangeLock& lock_;
    const uint64_t begin_;
    const uint64_t end_;  // not in the range
    const Mode mode_;
    // Guarded by lock_.mu_: earlier holds that overlap and have not ended.
    uint32_t waits_for_ = 0;
    CondVar free_;
    Hold* previous_ = nullptr;
    Hold* next_ = nullptr;
  };

 private:
  static bool Conflict(const Hold& a, const Hold& b);

  Mutex mu_;
  Hold* head_ ABSL_GUARDED_BY(mu_) = nullptr;  // oldest
  Hold* tail_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_RANGE_LOCK_H_
