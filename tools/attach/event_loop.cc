#include "tools/attach/event_loop.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>
#include <vector>

namespace braid::attach {

absl::Duration EventLoop::Now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::DurationFromTimespec(now);
}

void EventLoop::Watch(int fd, short events, FdCallback callback) {
  watchers_[fd] =
      Watcher{next_generation_++, events, std::make_shared<FdCallback>(std::move(callback))};
}

void EventLoop::Unwatch(int fd) { watchers_.erase(fd); }

EventLoop::TimerId EventLoop::After(absl::Duration delay, Callback callback) {
  const TimerId id = next_timer_++;
  timers_.emplace(Now() + delay, Timer{id, std::move(callback)});
  return id;
}

void EventLoop::Cancel(TimerId id) {
  if (id == 0) return;
  const auto found = std::find_if(timers_.begin(), timers_.end(),
                                  [id](const auto& entry) { return entry.second.id == id; });
  if (found != timers_.end()) timers_.erase(found);
}

int EventLoop::TimeoutMilliseconds() const {
  if (timers_.empty()) return -1;
  const absl::Duration left = timers_.begin()->first - Now();
  if (left <= absl::ZeroDuration()) return 0;
  // Rounded up, or the last fraction of a millisecond would be spent spinning.
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, int64_t{60'000}));
}

void EventLoop::FireTimers() {
  // Only what is due now: a callback that sets a timer of zero must not starve descriptors.
  const absl::Duration now = Now();
  while (!timers_.empty() && timers_.begin()->first <= now && !stop_) {
    const Callback callback = std::move(timers_.begin()->second.callback);
    timers_.erase(timers_.begin());
    callback();
  }
}

void EventLoop::Run() {
  stop_ = false;
  std::vector<pollfd> polled;
  std::vector<uint64_t> generations;
  while (!stop_) {
    polled.clear();
    generations.clear();
    for (const auto& [fd, watcher] : watchers_) {
      polled.push_back(pollfd{fd, watcher.events, 0});
      generations.push_back(watcher.generation);
    }
    const int ready = poll(polled.data(), polled.size(), TimeoutMilliseconds());
    if (ready < 0 && errno != EINTR && errno != EAGAIN) return;
    FireTimers();
    for (size_t i = 0; ready > 0 && i < polled.size() && !stop_; ++i) {
      if (polled[i].revents == 0) continue;
      const auto found = watchers_.find(polled[i].fd);
      if (found == watchers_.end() || found->second.generation != generations[i]) continue;
      const std::shared_ptr<FdCallback> callback = found->second.callback;
      (*callback)(polled[i].revents);
    }
  }
}

}  // namespace braid::attach
