// Ctrl-C, for commands that have something to say or to undo first.
#ifndef BRAID_TOOLS_CLI_INTERRUPT_H_
#define BRAID_TOOLS_CLI_INTERRUPT_H_

#include <atomic>
#include <csignal>

namespace braid::cli {

// While it lives SIGINT and SIGTERM are noted instead of ending the process. One at a time.
class InterruptGuard {
 public:
  InterruptGuard() {
    interrupted_.store(false);
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted_.store(true); };
    sigaction(SIGINT, &action, &before_int_);
    sigaction(SIGTERM, &action, &before_term_);
  }
  ~InterruptGuard() {
    sigaction(SIGINT, &before_int_, nullptr);
    sigaction(SIGTERM, &before_term_, nullptr);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool interrupted() const { return interrupted_.load(); }

 private:
  inline static std::atomic<bool> interrupted_{false};
  static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler sets it
  struct sigaction before_int_ {};
  struct sigaction before_term_ {};
};

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_INTERRUPT_H_
