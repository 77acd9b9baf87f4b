// braid-attach: owns one attachment of a volume on this machine. See braid-attach(8).
#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/attachment.h"
#include "tools/attach/options.h"

namespace braid::attach {
namespace {

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // nobody waits for it any more
    text.remove_prefix(static_cast<size_t>(written));
  }
}

// Where the one line goes that says how attaching went.
class Ready {
 public:
  explicit Ready(UniqueFd fd) : fd_(std::move(fd)) {}
  void Say(const std::string& json) {
    if (!fd_.valid()) return;
    WriteAll(fd_.get(), json + "\n");
    fd_.Reset();
  }

 private:
  UniqueFd fd_;
};

// The process that was started waits here for the one that stays, and passes its line on.
int AwaitDaemon(UniqueFd from) {
  std::string line;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(from.get(), buffer, sizeof buffer)) != 0;) {
    if (got < 0 && errno != EINTR) break;
    if (got > 0) line.append(buffer, static_cast<size_t>(got));
  }
  if (line.empty()) line = ErrorJson("braid-attach ended without a word") + "\n";
  WriteAll(STDOUT_FILENO, line);
  return line.rfind("{\"error\":", 0) == 0 ? 1 : 0;
}

absl::Status LeaveTerminal() {
  if (setsid() < 0) return ErrnoStatus(errno, "setsid");
  const UniqueFd null_fd(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd.valid()) return ErrnoStatus(errno, "/dev/null");
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (dup2(null_fd.get(), fd) < 0) return ErrnoStatus(errno, "dup2");
  }
  return absl::OkStatus();
}

absl::Status Serve(const Options& options, Ready* ready) {
  // A folder that stays the working directory could not be unmounted for our whole life.
  if (chdir("/") != 0) return ErrnoStatus(errno, "/");
  umask(0077);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return ErrnoStatus(errno, "sigprocmask");
  if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || signal(SIGHUP, SIG_IGN) == SIG_ERR) {
    return ErrnoStatus(errno, "signal");
  }
  const UniqueFd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd.valid()) return ErrnoStatus(errno, "signalfd");

  absl::StatusOr<Directory> directory = Directory::Open(options.directory, options.volume);
  if (!directory.ok()) return directory.status();
  Log log;
  log.set_echo(options.foreground);
  if (absl::Status opened = log.Open(directory->File("log")); !opened.ok()) return opened;

  EventLoop loop;
  Attachment attachment(&loop, &log, options, std::move(*directory),
                        [ready](const Report& report) { ready->Say(ToJson(report)); });
  loop.Watch(signal_fd.get(), POLLIN, [&](short) {
    signalfd_siginfo info{};
    if (read(signal_fd.get(), &info, sizeof info) == sizeof info) attachment.Terminate();
  });
  if (absl::Status started = attachment.Start(); !started.ok()) return started;
  loop.Run();
  return attachment.failure();
}

int Main(int argc, char** argv) {
  absl::StatusOr<Options> options = ParseOptions(argc, argv);
  if (!options.ok()) {
    fprintf(stderr, "braid-attach: %s\n%s", std::string(options.status().message()).c_str(),
            kUsage);
    return 2;
  }
  UniqueFd ready_fd;
  UniqueFd from_daemon;
  if (options->ready_fd >= 0) {
    // Off 0, 1 and 2, which become /dev/null.
    ready_fd = UniqueFd(fcntl(options->ready_fd, F_DUPFD_CLOEXEC, 3));
    if (options->ready_fd > STDERR_FILENO) close(options->ready_fd);
  } else if (options->foreground) {
    ready_fd = UniqueFd(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  } else {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return 1;
    from_daemon = UniqueFd(ends[0]);
    ready_fd = UniqueFd(ends[1]);
  }
  Ready ready(std::move(ready_fd));

  if (!options->foreground) {
    const pid_t pid = fork();
    if (pid < 0) {
      ready.Say(ErrorJson(ErrnoStatus(errno, "fork").message()));
      return 1;
    }
    if (pid > 0) {
      ready = Ready(UniqueFd());
      return from_daemon.valid() ? AwaitDaemon(std::move(from_daemon)) : 0;
    }
    from_daemon.Reset();
    if (absl::Status left = LeaveTerminal(); !left.ok()) {
      ready.Say(ErrorJson(left.message()));
      return 1;
    }
  }
  const absl::Status ended = Serve(*options, &ready);
  if (ended.ok()) return 0;
  ready.Say(ErrorJson(ended.message()));
  return 1;
}

}  // namespace
}  // namespace braid::attach

int main(int argc, char** argv) { return braid::attach::Main(argc, argv); }
