// How many clients that may write are connected, and whether any has been meanwhile.
#ifndef BRAID_NBDKIT_PLUGIN_CLIENT_COUNT_H_
#define BRAID_NBDKIT_PLUGIN_CLIENT_COUNT_H_

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"

namespace braid {

// Thread-safe.
class ClientCount {
 public:
  // Before a client's first request, and after its last has ended.
  void Opened() {
    const MutexLock lock(&mu_);
    ++connected_;
    ++opened_;
  }
  void Closed() {
    const MutexLock lock(&mu_);
    --connected_;
  }
  // Where none is connected, a number that stays the same until one is.
  std::optional<uint64_t> Quiet() const {
    const MutexLock lock(&mu_);
    if (connected_ != 0) return std::nullopt;
    return opened_;
  }

 private:
  mutable Mutex mu_;
  uint64_t connected_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t opened_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_CLIENT_COUNT_H_
