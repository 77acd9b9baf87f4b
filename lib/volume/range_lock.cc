#include "lib/volume/range_lock.h"

namespace braid {

bool RangeLock::Conflict(const Hold& a, const Hold& b) {
  return a.begin_ < b.end_ && b.begin_ < a.end_ &&
         (a.mode_ == Mode::kExclusive || b.mode_ == Mode::kExclusive);
}

RangeLock::Hold::Hold(RangeLock& lock, uint64_t offset, uint64_t length, Mode mode)
    : lock_(lock), begin_(offset), end_(offset + length), mode_(mode) {
  MutexLock l(&lock_.mu_);
  for (Hold* earlier = lock_.tail_; earlier != nullptr; earlier = earlier->previous_) {
    if (Conflict(*earlier, *this)) ++waits_for_;
  }
  previous_ = lock_.tail_;
  (lock_.tail_ == nullptr ? lock_.head_ : lock_.tail_->next_) = this;
  lock_.tail_ = this;
  while (waits_for_ > 0) free_.Wait(&lock_.mu_);
}

RangeLock::Hold::~Hold() {
  MutexLock l(&lock_.mu_);
  for (Hold* later = next_; later != nullptr; later = later->next_) {
    if (Conflict(*this, *later) && --later->waits_for_ == 0) later->free_.Signal();
  }
  (previous_ == nullptr ? lock_.head_ : previous_->next_) = next_;
  (next_ == nullptr ? lock_.tail_ : next_->previous_) = previous_;
}

}  // namespace braid
