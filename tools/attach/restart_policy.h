// When a server that died is started again: at once, then with growing patience.
#ifndef BRAID_TOOLS_ATTACH_RESTART_POLICY_H_
#define BRAID_TOOLS_ATTACH_RESTART_POLICY_H_

#include <algorithm>

#include "absl/time/time.h"

namespace braid::attach {

class RestartPolicy {
 public:
  static constexpr absl::Duration kFirst = absl::Milliseconds(100);
  static constexpr absl::Duration kLongest = absl::Seconds(5);
  // One that ran this long did not die of being started.
  static constexpr absl::Duration kSettled = absl::Seconds(10);

  // How long to wait before the next start, after a server that ran for `uptime`:
  // 0, 100 ms, 200 ms, 400 ms … 5 s; 0 again after one that had settled.
  absl::Duration NextDelay(absl::Duration uptime) {
    if (uptime >= kSettled) next_ = absl::ZeroDuration();
    const absl::Duration delay = next_;
    next_ = std::clamp(next_ * 2, kFirst, kLongest);
    return delay;
  }

 private:
  absl::Duration next_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_RESTART_POLICY_H_
