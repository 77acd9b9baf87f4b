#include "tools/attach/server_guard.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "lib/base/errno_status.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/server_clients.h"

namespace braid::attach {

namespace {

constexpr int kHangUpEveryMilliseconds = 100;
// Enough for a flush to a slow disk; a new attachment waits for it.
constexpr int kHangUps = 100;

bool Ended(int pidfd, int timeout_milliseconds) {
  pollfd state{pidfd, POLLIN, 0};
  return poll(&state, 1, timeout_milliseconds) > 0;
}

[[noreturn]] void Guard(int parent_pidfd, int server_pidfd, pid_t server,
                        const std::string& socket_path) {
  (void)setsid();
  (void)prctl(PR_SET_NAME, "braid-guard");
  pollfd states[] = {{parent_pidfd, POLLIN, 0}, {server_pidfd, POLLIN, 0}};
  while (poll(states, 2, -1) < 0 && errno == EINTR) {
  }
  (void)syscall(SYS_pidfd_send_signal, server_pidfd, SIGTERM, nullptr, 0);
  for (int i = 0; i < kHangUps; ++i) {
    if (Ended(server_pidfd, kHangUpEveryMilliseconds)) _exit(0);
    HangUpOn(FindServerClients(server, server_pidfd, socket_path));
  }
  (void)syscall(SYS_pidfd_send_signal, server_pidfd, SIGKILL, nullptr, 0);
  _exit(0);
}

}  // namespace

absl::Status ServerGuard::Start(pid_t server, int server_pidfd, const std::string& socket_path) {
  Dismiss();
  // Of ourselves, made before the fork: it stays true whenever we end.
  const UniqueFd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!self.valid()) return ErrnoStatus(errno, "pidfd_open");
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) {
    // Nothing else of ours stays open, above all not the lock.
    const auto low = static_cast<unsigned>(std::min(self.get(), server_pidfd));
    const auto high = static_cast<unsigned>(std::max(self.get(), server_pidfd));
    if (low > 0) (void)close_range(0, low - 1, 0);
    if (high > low + 1) (void)close_range(low + 1, high - 1, 0);
    (void)close_range(high + 1, ~0U, 0);
    Guard(self.get(), server_pidfd, server, socket_path);
  }
  pid_ = pid;
  return absl::OkStatus();
}

void ServerGuard::Dismiss() {
  if (pid_ == 0) return;
  (void)kill(pid_, SIGKILL);  // ours and not waited for, so the number is still its own
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = 0;
}

}  // namespace braid::attach
