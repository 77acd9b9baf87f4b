#include "tools/cli/local_attach.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "lib/base/errno_status.h"
#include "lib/base/unique_fd.h"

namespace braid::cli {
namespace {

namespace fs = std::filesystem;
namespace json = google::protobuf::util;

// A report has a few hundred bytes; paths and error texts may be long.
constexpr size_t kMaxLineBytes = 64 << 10;

// Reads lines from a descriptor, each within a time.
class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}

  // Without its end. OutOfRange: the other side closed. DeadlineExceeded. Other errors
  // are the descriptor's, or a line above kMaxLineBytes.
  absl::StatusOr<std::string> Next(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    while (true) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      if (buffer_.size() > kMaxLineBytes) {
        return absl::DataLossError("braid-attach sends a line without an end");
      }
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError("no answer in time");
      // In steps, as poll counts milliseconds in an int.
      const int wait_ms =
          static_cast<int>(absl::ToInt64Milliseconds(std::min(left, absl::Minutes(1)))) + 1;
      pollfd ready{fd_, POLLIN, 0};
      const int count = poll(&ready, 1, wait_ms);
      if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
      if (count <= 0) continue;
      char chunk[4096];
      const ssize_t got = read(fd_, chunk, sizeof chunk);
      if (got > 0) {
        buffer_.append(chunk, static_cast<size_t>(got));
      } else if (got == 0) {
        return absl::OutOfRangeError("closed");
      } else if (errno != EINTR && errno != EAGAIN) {
        return ErrnoStatus(errno, "read");
      }
    }
  }

 private:
  const int fd_;
  std::string buffer_;
};

absl::StatusOr<UniqueFd> ConnectControl(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/ctl");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("the path ", path, " is too long for a Unix socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  // Non-blocking, so that one that hangs with a full queue is an error, not a wait.
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED || errno == ENOTDIR) {
      return absl::NotFoundError(absl::StrCat("nobody listens on ", path));
    }
    return ErrnoStatus(errno, absl::StrCat("cannot reach the attachment at ", path));
  }
  return fd;
}

absl::Status SendLine(int fd, absl::string_view line) {
  // A few bytes into an empty socket buffer: all or an error.
  const ssize_t sent = send(fd, line.data(), line.size(), MSG_NOSIGNAL);
  if (sent < 0) return ErrnoStatus(errno, "cannot ask the attachment");
  if (static_cast<size_t>(sent) != line.size()) {
    return absl::UnavailableError("cannot ask the attachment: its socket is full");
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::LocalAttachment> ParseReport(const std::string& line) {
  google::protobuf::Struct object;
  if (!json::JsonStringToMessage(line, &object).ok()) {
    return absl::DataLossError(
        "braid-attach reports something that is not JSON; is it of another "
        "version?");
  }
  if (const auto error = object.fields().find("error"); error != object.fields().end()) {
    return absl::FailedPreconditionError(error->second.string_value());
  }
  v1::LocalAttachment attachment;
  json::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // of a newer one
  if (!json::JsonStringToMessage(line, &attachment, options).ok()) {
    return absl::DataLossError("braid-attach's report cannot be read; is it of another version?");
  }
  return attachment;
}

bool IsProgram(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && access(path.c_str(), X_OK) == 0;
}

std::string FindInPath(const std::string& name) {
  const char* path = std::getenv("PATH");
  for (const absl::string_view directory : absl::StrSplit(path == nullptr ? "" : path, ':')) {
    const fs::path candidate = fs::path(std::string(directory.empty() ? "." : directory)) / name;
    if (IsProgram(candidate)) return candidate.string();
  }
  return "";
}

// Last line that is not empty of what the child wrote to its standard error.
std::string LastLine(int fd) {
  char text[4096];
  const off_t size = lseek(fd, 0, SEEK_END);
  const off_t from = std::max<off_t>(0, size - static_cast<off_t>(sizeof text));
  const ssize_t got = pread(fd, text, sizeof text, from);
  std::string last;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text, static_cast<size_t>(std::max<ssize_t>(got, 0))), '\n',
                      absl::SkipWhitespace())) {
    last = std::string(line);
  }
  return last;
}

}  // namespace

Machine Machine::Look() {
  Machine machine;
  const auto open_nbd = [] { return UniqueFd(open("/dev/nbd0", O_RDONLY | O_CLOEXEC)); };
  if (geteuid() != 0) {
    machine.nbd_problem = "only root may make /dev/nbdX";
  } else {
    UniqueFd nbd = open_nbd();
    if (!nbd.valid()) {
      const std::string modprobe = FindInPath("modprobe");
      const std::string program = modprobe.empty() ? "/sbin/modprobe" : modprobe;
      char name[] = "modprobe", quiet[] = "-q", module[] = "nbd";
      char* arguments[] = {name, quiet, module, nullptr};
      pid_t pid = 0;
      if (IsProgram(program) &&
          posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments, environ) == 0) {
        while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
        }
        nbd = open_nbd();
      }
    }
    machine.nbd = nbd.valid();
    if (!machine.nbd) machine.nbd_problem = "this kernel has no NBD client (/dev/nbd0)";
  }
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    machine.fuse_problem = absl::StrCat("/dev/fuse: ", std::strerror(errno));
  } else if (FindInPath("nbdfuse").empty()) {
    machine.fuse_problem = "nbdfuse is not installed (Debian's package nbdfuse)";
  } else {
    machine.fuse = true;
  }
  return machine;
}

absl::StatusOr<ViaChoice> ChooseVia(absl::string_view wanted, const Machine& machine) {
  if (wanted == "nbd" && !machine.nbd) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot attach by nbd: ", machine.nbd_problem, "; try --via fuse"));
  }
  if (wanted == "fuse" && !machine.fuse) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot attach by fuse: ", machine.fuse_problem, "; try --via socket"));
  }
  if (wanted != "auto") return ViaChoice{std::string(wanted), ""};
  if (machine.nbd) return ViaChoice{"nbd", "this kernel has an NBD client"};
  if (machine.fuse) return ViaChoice{"fuse", machine.nbd_problem};
  return ViaChoice{"socket", absl::StrCat(machine.nbd_problem, ", and ", machine.fuse_problem)};
}

std::string AttachDirectory(absl::string_view run_dir, absl::string_view volume_id) {
  return absl::StrCat(run_dir, "/attach/", volume_id);
}

absl::Status MakeAttachParent(const std::string& run_dir) {
  const std::string path = absl::StrCat(run_dir, "/attach");
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  if (errno == ENOENT) {
    return absl::FailedPreconditionError(
        absl::StrCat("the site's run directory ", run_dir,
                     " is not on this machine; attach the volume where braidd runs"));
  }
  return ErrnoStatus(errno, absl::StrCat("cannot make ", path));
}

absl::StatusOr<std::string> FindAttachProgram() {
  if (const char* named = std::getenv("BRAID_ATTACH_PROGRAM"); named != nullptr && *named != 0) {
    if (IsProgram(named)) return std::string(named);
    return absl::NotFoundError(absl::StrCat("BRAID_ATTACH_PROGRAM is '", named,
                                            "', which is no program; correct or unset it"));
  }
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    for (const char* place : {"braid-attach", "../attach/braid-attach"}) {
      const fs::path candidate = (self.parent_path() / place).lexically_normal();
      if (IsProgram(candidate)) return candidate.string();
    }
  }
  std::string found = FindInPath("braid-attach");
  if (!found.empty()) return found;
  return absl::NotFoundError(absl::StrCat("braid-attach is neither in ",
                                          self.parent_path().string(),
                                          " nor in PATH; install it, or name it in "
                                          "BRAID_ATTACH_PROGRAM"));
}

absl::StatusOr<v1::LocalAttachment> StartAttachment(const std::string& program,
                                                    const std::vector<std::string>& arguments,
                                                    absl::Duration timeout) {
  constexpr int kReadyFd = 3;  // in the child
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd ready(ends[0]);
  UniqueFd write_end(ends[1]);
  // Not our own standard error, which a pipe behind us would then wait on for as long as
  // the volume is attached.
  const UniqueFd errors(memfd_create("braid-attach-errors", MFD_CLOEXEC));
  if (!errors.valid()) return ErrnoStatus(errno, "memfd_create");

  std::vector<std::string> all = {program};
  all.insert(all.end(), arguments.begin(), arguments.end());
  all.push_back("--ready-fd");
  all.push_back(absl::StrCat(kReadyFd));
  std::vector<char*> argv;
  argv.reserve(all.size() + 1);
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);

  // dup2 of a descriptor on itself would leave it close-on-exec.
  if (write_end.get() == kReadyFd) write_end.Reset(fcntl(kReadyFd, F_DUPFD_CLOEXEC, kReadyFd + 1));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, errors.get(), STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), kReadyFd);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return ErrnoStatus(error, absl::StrCat("cannot start ", program));
  write_end.Reset();

  LineReader reader(ready.get());
  absl::StatusOr<std::string> line = reader.Next(timeout);
  // The child is the parent of the one that stays, and ends with its report; one that
  // reported nothing in time is asked to end.
  if (absl::IsDeadlineExceeded(line.status())) {
    kill(pid, SIGTERM);
    return absl::DeadlineExceededError(absl::StrCat(
        "braid-attach (pid ", pid, ") was not ready within ", absl::FormatDuration(timeout),
        "; see 'braid attach --list', or wait longer with --timeout"));
  }
  int wait_status = 0;
  if (!line.ok()) {
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    const std::string last = LastLine(errors.get());
    return absl::InternalError(absl::StrCat(
        program, " ended without a report",
        WIFSIGNALED(wait_status) ? absl::StrCat(" (", strsignal(WTERMSIG(wait_status)), ")")
                                 : absl::StrCat(" (exit status ", WEXITSTATUS(wait_status), ")"),
        last.empty() ? "" : ": ", last));
  }
  return ParseReport(*line);
}

absl::StatusOr<v1::LocalAttachment> AskAttachment(const std::string& directory,
                                                  absl::Duration timeout) {
  const absl::StatusOr<UniqueFd> control = ConnectControl(directory);
  if (!control.ok()) return control.status();
  if (absl::Status sent = SendLine(control->get(), "status\n"); !sent.ok()) return sent;
  LineReader reader(control->get());
  const absl::StatusOr<std::string> line = reader.Next(timeout);
  if (!line.ok()) {
    return absl::UnavailableError(absl::StrCat("the braid-attach at ", directory,
                                               " does not answer: ", line.status().message()));
  }
  return ParseReport(*line);
}

v1::LocalAttachments ListAttachments(const std::string& run_dir, absl::Duration timeout) {
  std::vector<v1::LocalAttachment> found;
  std::error_code error;
  for (fs::directory_iterator it(AttachDirectory(run_dir, ""), error), end; !error && it != end;
       it.increment(error)) {
    absl::StatusOr<v1::LocalAttachment> attachment = AskAttachment(it->path().string(), timeout);
    if (absl::IsNotFound(attachment.status())) continue;
    if (!attachment.ok()) {
      v1::LocalAttachment silent;
      silent.set_volume_id(it->path().filename().string());
      silent.set_last_error(std::string(attachment.status().message()));
      attachment = std::move(silent);
    }
    found.push_back(*std::move(attachment));
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::make_pair(a.volume(), a.volume_id()) < std::make_pair(b.volume(), b.volume_id());
  });
  v1::LocalAttachments list;
  for (v1::LocalAttachment& attachment : found) *list.add_attachments() = std::move(attachment);
  return list;
}

absl::Status DetachAttachment(const std::string& directory, bool force, absl::Duration timeout,
                              const std::function<void(absl::string_view)>& progress) {
  const absl::StatusOr<UniqueFd> control = ConnectControl(directory);
  if (!control.ok()) return control.status();
  absl::Status sent = SendLine(control->get(), force ? "detach force\n" : "detach\n");
  if (!sent.ok()) return sent;
  LineReader reader(control->get());
  while (true) {
    const absl::StatusOr<std::string> line = reader.Next(timeout);
    if (absl::IsDeadlineExceeded(line.status())) {
      return absl::DeadlineExceededError(
          absl::StrCat("braid-attach said nothing for ", absl::FormatDuration(timeout),
                       "; it goes on detaching: see 'braid attach --list'"));
    }
    if (!line.ok()) {
      return absl::InternalError(
          absl::StrCat("braid-attach ended before it had detached; see ", directory, "/log"));
    }
    absl::string_view text = *line;
    if (text == "ok") return absl::OkStatus();
    if (absl::ConsumePrefix(&text, "progress ")) {
      progress(text);
    } else if (absl::ConsumePrefix(&text, "error ")) {
      return absl::FailedPreconditionError(text);
    } else {
      return absl::InternalError(
          absl::StrCat("braid-attach answers '", text, "'; is it of another version?"));
    }
  }
}

}  // namespace braid::cli
