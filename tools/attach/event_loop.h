// One thread that waits on descriptors and timers and calls back. Everything
// braid-attach does hangs on it, so nothing called from it may block: children are
// watched through pidfds, handshakes are fed as bytes come in.
//
// Not thread-safe; the object outlives whatever registered with it. A callback may add
// or remove any watch or timer, its own included, and destroy the object it belongs to.
#ifndef BRAID_TOOLS_ATTACH_EVENT_LOOP_H_
#define BRAID_TOOLS_ATTACH_EVENT_LOOP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/time/time.h"

namespace braid::attach {

class EventLoop {
 public:
  using TimerId = uint64_t;  // 0 is never a timer
  using FdCallback = std::function<void(short revents)>;
  using Callback = std::function<void()>;

  // Calls back while poll(2) reports any of `events` (or an error) on `fd`, which stays
  // the caller's and must be unwatched before it is closed. Replaces an earlier watch.
  void Watch(int fd, short events, FdCallback callback);
  void Unwatch(int fd);

  // Calls back once, `delay` from now on the monotonic clock.
  TimerId After(absl::Duration delay, Callback callback);
  // Nothing happens for 0 and for timers that have fired.
  void Cancel(TimerId id);

  // Until Stop() is called from a callback.
  void Run();
  void Stop() { stop_ = true; }

  // Time since boot, not touched by clock changes.
  static absl::Duration Now();

 private:
  struct Watcher {
    uint64_t generation;  // tells a watch from a later one on the same number
    short events;
    std::shared_ptr<FdCallback> callback;
  };
  struct Timer {
    TimerId id;
    Callback callback;
  };

  int TimeoutMilliseconds() const;
  void FireTimers();

  std::map<int, Watcher> watchers_;
  std::multimap<absl::Duration, Timer> timers_;  // by due time
  uint64_t next_generation_ = 1;
  TimerId next_timer_ = 1;
  bool stop_ = false;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_EVENT_LOOP_H_
