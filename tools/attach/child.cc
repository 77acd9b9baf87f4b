#include "tools/attach/child.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/errno_status.h"

namespace braid::attach {

namespace {

constexpr int kListenFd = 3;  // SD_LISTEN_FDS_START
constexpr char kListenPid[] = "LISTEN_PID=";
constexpr size_t kListenPidBytes = 32;

// PATH is ours, so that an empty environment (a service manager's) works too. What is kept
// beside it names files, sanitizers and Braid's own settings, no secrets.
std::vector<std::string> CleanEnvironment() {
  std::vector<std::string> kept = {
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"};
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const absl::string_view value(*entry);
    for (const absl::string_view prefix :
         {"HOME=", "LANG=", "LC_ALL=", "TMPDIR=", "TZ=", "BRAID_", "GRPC_",
          "LD_PRELOAD=", "LD_LIBRARY_PATH=", "ASAN_OPTIONS=", "LSAN_OPTIONS=", "UBSAN_OPTIONS=",
          "TSAN_OPTIONS="}) {
      if (absl::StartsWith(value, prefix)) kept.emplace_back(value);
    }
  }
  return kept;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (std::string& s : strings) pointers.push_back(s.data());
  pointers.push_back(nullptr);
  return pointers;
}

struct Launch {
  char* const* argv;
  char* const* environment;
  char* listen_pid;  // buffer in environment for the child to write its own pid to
  int listen_fd;
  int output_fd;
  int failure_fd;
  pid_t parent;
  int death_signal;
};

// Between fork and exec. Returns only when something failed, with errno set.
void BecomeChild(const Launch& launch) {
  // Asked for first and checked after: a parent that died in between is noticed.
  if (prctl(PR_SET_PDEATHSIG, launch.death_signal) != 0 || getppid() != launch.parent) return;
  if (setpgid(0, 0) != 0) return;
  sigset_t none;
  sigemptyset(&none);
  if (sigprocmask(SIG_SETMASK, &none, nullptr) != 0) return;
  if (signal(SIGPIPE, SIG_DFL) == SIG_ERR || signal(SIGHUP, SIG_DFL) == SIG_ERR) return;

  const int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0) return;
  if (dup2(launch.output_fd, STDERR_FILENO) < 0) return;
  if (close_range(kListenFd, ~0U, CLOSE_RANGE_CLOEXEC) != 0) return;
  if (launch.listen_fd >= 0) {
    // dup2 clears close-on-exec, except where it does nothing. Start() keeps failure_fd
    // off this number.
    if (launch.listen_fd != kListenFd) {
      if (dup2(launch.listen_fd, kListenFd) < 0) return;
    } else if (fcntl(kListenFd, F_SETFD, 0) != 0) {
      return;
    }
    (void)snprintf(launch.listen_pid, kListenPidBytes, "%s%d", kListenPid, getpid());
  }
  execvpe(launch.argv[0], launch.argv, launch.environment);
}

absl::Status HowItEnded(int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  if (WIFSIGNALED(status)) {
    return absl::AbortedError(absl::StrCat("killed by signal ", WTERMSIG(status), " (",
                                           strsignal(WTERMSIG(status)), ")"));
  }
  return absl::UnknownError(absl::StrCat("exit status ", WEXITSTATUS(status)));
}

}  // namespace

Child::Child(EventLoop* loop, Log* log, std::string name, int death_signal)
    : loop_(loop), log_(log), name_(std::move(name)), death_signal_(death_signal) {}

Child::~Child() {
  if (output_.valid()) loop_->Unwatch(output_.get());
  if (!running()) return;
  loop_->Unwatch(pidfd_.get());
  Signal(SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::Status Child::Start(const std::vector<std::string>& argv, int listen_fd, Ended ended) {
  std::vector<std::string> arguments = argv;
  std::vector<std::string> environment = CleanEnvironment();
  if (listen_fd >= 0) {
    environment.emplace_back("LISTEN_FDS=1");
    environment.emplace_back(kListenPidBytes, '\0');
  }
  const std::vector<char*> argument_pointers = Pointers(arguments);
  const std::vector<char*> environment_pointers = Pointers(environment);

  int output[2];
  int failure[2];
  if (pipe2(output, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd read_end(output[0]);
  UniqueFd write_end(output[1]);
  if (pipe2(failure, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd failure_read(failure[0]);
  UniqueFd failure_write(failure[1]);
  // The child's dup2 to kListenFd must not land on the descriptor it reports failure with.
  failure_write = UniqueFd(fcntl(failure[1], F_DUPFD_CLOEXEC, kListenFd + 1));
  if (!failure_write.valid()) return ErrnoStatus(errno, "dup");

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) {
    BecomeChild(Launch{argument_pointers.data(), environment_pointers.data(),
                       listen_fd >= 0 ? environment.back().data() : nullptr, listen_fd,
                       write_end.get(), failure_write.get(), parent, death_signal_});
    const int error = errno;
    (void)!write(failure_write.get(), &error, sizeof error);
    _exit(127);
  }
  write_end.Reset();
  failure_write.Reset();

  int error = 0;
  ssize_t got = 0;
  do {  // ends at exec, which closes the pipe
    got = read(failure_read.get(), &error, sizeof error);
  } while (got < 0 && errno == EINTR);
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (got != 0 || !pidfd.valid()) {
    if (got == 0) error = errno;
    kill(pid, SIGKILL);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return ErrnoStatus(error == 0 ? EIO : error, absl::StrCat("cannot start ", argv[0]));
  }
  (void)fcntl(read_end.get(), F_SETFL, O_NONBLOCK);

  if (output_.valid()) loop_->Unwatch(output_.get());
  pid_ = pid;
  pidfd_ = std::move(pidfd);
  output_ = std::move(read_end);
  ended_ = std::move(ended);
  partial_.clear();
  last_line_.clear();
  last_error_.clear();
  loop_->Watch(output_.get(), POLLIN, [this](short) { ReadOutput(); });
  loop_->Watch(pidfd_.get(), POLLIN, [this](short) { OnExit(); });
  return absl::OkStatus();
}

void Child::Signal(int number) {
  // By pidfd: it can never hit another process that got the number.
  if (running()) (void)syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0);
}

void Child::ReadOutput() {
  char buffer[4096];
  const ssize_t got = read(output_.get(), buffer, sizeof buffer);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    if (!partial_.empty()) TakeLine(std::exchange(partial_, {}));
    loop_->Unwatch(output_.get());
    output_.Reset();
    return;
  }
  for (const char c : absl::string_view(buffer, static_cast<size_t>(got))) {
    if (c == '\n' || partial_.size() >= Log::kMaxLineBytes) TakeLine(std::exchange(partial_, {}));
    if (c != '\n') partial_.push_back(c);
  }
}

void Child::TakeLine(absl::string_view line) {
  if (line.empty()) return;
  log_->Line(name_, line);
  last_line_ = std::string(line);
  if (absl::StrContains(line, "error")) last_error_ = last_line_;
}

void Child::OnExit() {
  int status = 0;
  const pid_t waited = waitpid(pid_, &status, WNOHANG);
  if (waited == 0 || (waited < 0 && errno == EINTR)) return;
  // Its last words are in the pipe. At most a pipe's worth: something it left running may
  // hold the other end and go on writing.
  for (int i = 0; i < 16 && output_.valid(); ++i) ReadOutput();
  if (!partial_.empty()) TakeLine(std::exchange(partial_, {}));
  if (output_.valid()) loop_->Unwatch(output_.get());
  output_.Reset();
  loop_->Unwatch(pidfd_.get());
  pidfd_.Reset();
  pid_ = 0;
  const Ended ended = std::move(ended_);
  ended(HowItEnded(status));
}

}  // namespace braid::attach
