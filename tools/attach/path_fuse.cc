#include "tools/attach/path_fuse.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "tools/attach/usage.h"

namespace braid::attach {

namespace {
// nbdfuse connects, mounts, and is done; a machine under load takes its time to start it.
constexpr absl::Duration kMountLimit = absl::Seconds(30);
// After the unmount nbdfuse only has to hang up.
constexpr absl::Duration kLeaveLimit = absl::Seconds(10);
}  // namespace

FusePath::FusePath(EventLoop* loop, Log* log, Options options, Done broken)
    : loop_(loop),
      log_(log),
      options_(std::move(options)),
      broken_(std::move(broken)),
      // At SIGTERM it unmounts before it ends.
      nbdfuse_(loop, log, "nbdfuse", SIGTERM),
      fusermount_(loop, log, "fusermount3", SIGTERM) {}

FusePath::~FusePath() {
  loop_->Cancel(deadline_);
  if (mounts_.valid()) loop_->Unwatch(mounts_.get());
  if (made_file_) (void)unlink(options_.file.c_str());
  if (!options_.own_folder.empty()) (void)rmdir(options_.own_folder.c_str());
}

absl::Status FusePath::Prepare() {
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    return ErrnoStatus(errno, "cannot use /dev/fuse; load the fuse module or attach --via socket");
  }
  // The lock says that this mount's braid-attach is gone, and nbdfuse went with it.
  if (!options_.own_folder.empty() && IsMountPoint(mount_point()) &&
      umount2(mount_point().c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot remove the dead mount at ", mount_point()));
  }
  if (IsMountPoint(mount_point())) {
    return absl::FailedPreconditionError(absl::StrCat("something is mounted at ", mount_point(),
                                                      "; unmount it or choose another path"));
  }
  mounts_ = UniqueFd(open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  if (!mounts_.valid()) return ErrnoStatus(errno, "/proc/self/mountinfo");
  if (!options_.own_folder.empty()) {
    if (mkdir(options_.own_folder.c_str(), 0700) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, absl::StrCat("cannot make ", options_.own_folder));
    }
    return absl::OkStatus();
  }
  const UniqueFd made(
      open(options_.file.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  made_file_ = made.valid();
  if (made_file_) return absl::OkStatus();
  if (errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("cannot make ", options_.file));
  struct stat info {};
  if (lstat(options_.file.c_str(), &info) != 0) return ErrnoStatus(errno, options_.file);
  if (!S_ISREG(info.st_mode) || info.st_size != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.file, " exists and is not an empty file; choose another path"));
  }
  return absl::OkStatus();
}

void FusePath::SetDeadline(absl::Duration limit, EventLoop::Callback late) {
  loop_->Cancel(deadline_);
  deadline_ = loop_->After(limit, std::move(late));
}

void FusePath::Up(Done done) {
  up_done_ = std::move(done);
  if (state_ == State::kIdle) {
    StartNbdfuse();
  } else {
    up_wanted_ = true;  // the old mount is on its way out
  }
}

void FusePath::StartNbdfuse() {
  std::vector<std::string> argv = {"nbdfuse", "-C", absl::StrCat(options_.connections)};
  if (options_.read_only) argv.emplace_back("-r");
  argv.insert(argv.end(), {options_.file, "--unix", options_.socket_path});
  absl::Status started =
      nbdfuse_.Start(argv, -1, [this](const absl::Status& how) { OnNbdfuseEnded(how); });
  if (!started.ok()) return std::exchange(up_done_, nullptr)(std::move(started));
  state_ = State::kStarting;
  failure_.clear();
  loop_->Watch(mounts_.get(), POLLPRI, [this](short) { OnMountsChanged(); });
  SetDeadline(kMountLimit, [this] {
    deadline_ = 0;
    failure_ = absl::StrCat("nbdfuse did not mount within ", absl::FormatDuration(kMountLimit));
    nbdfuse_.Signal(SIGKILL);
  });
}

void FusePath::OnMountsChanged() {
  if (state_ != State::kStarting || !IsMountPoint(mount_point())) return;
  loop_->Unwatch(mounts_.get());
  loop_->Cancel(std::exchange(deadline_, 0));
  state_ = State::kMounted;
  std::exchange(up_done_, nullptr)(absl::OkStatus());
}

void FusePath::OnNbdfuseEnded(const absl::Status& how) {
  if (state_ == State::kLeaving) return Detached();
  if (state_ == State::kUnmounting) return;  // fusermount3 is about to end too
  if (failure_.empty()) {
    failure_ = !nbdfuse_.complaint().empty()
                   ? nbdfuse_.complaint()
                   : absl::StrCat("nbdfuse ended: ", how.ok() ? "exit status 0" : how.message());
  }
  const bool unasked = state_ == State::kMounted;
  state_ = State::kClearing;
  loop_->Unwatch(mounts_.get());
  loop_->Cancel(std::exchange(deadline_, 0));
  // Only now: a mount whose nbdfuse lives would be removed under requests it could serve.
  if (IsMountPoint(mount_point())) {
    Unmount(/*lazy=*/true);
  } else {
    Idle();
  }
  if (unasked) broken_(absl::UnavailableError(failure_));
}

void FusePath::ServerLost() {
  up_done_ = nullptr;
  up_wanted_ = false;
  server_lost_ = state_ == State::kUnmounting;
  if (state_ != State::kStarting && state_ != State::kMounted) return;
  state_ = State::kClearing;
  failure_ = "the server ended";
  nbdfuse_.Signal(SIGKILL);
}

void FusePath::Down(Urgency urgency, Done done) {
  up_done_ = nullptr;
  up_wanted_ = false;
  down_done_ = std::move(done);
  if (state_ == State::kIdle) return Detached();
  if (state_ == State::kStarting) {
    state_ = State::kClearing;
    nbdfuse_.Signal(SIGKILL);
  }
  if (state_ != State::kMounted) return;  // what is under way ends in Idle()
  state_ = State::kUnmounting;
  server_lost_ = false;
  Unmount(urgency != Urgency::kAsk);
}

void FusePath::Unmount(bool lazy) {
  // As a child: umount(2) can block on a file system that does not answer.
  std::vector<std::string> argv = {"fusermount3", "-u"};
  if (lazy) argv.emplace_back("-z");
  argv.insert(argv.end(), {"--", mount_point()});
  absl::Status started = fusermount_.Start(
      argv, -1, [this, lazy](const absl::Status& how) { OnUnmounted(lazy, how); });
  if (!started.ok()) OnUnmounted(lazy, started);
}

void FusePath::OnUnmounted(bool lazy, const absl::Status& how) {
  if (state_ == State::kClearing) {
    if (!how.ok()) log_->Line("attach", absl::StrCat("dead mount: ", fusermount_.complaint()));
    return Idle();
  }
  if (!how.ok() && IsMountPoint(mount_point())) {
    if (!nbdfuse_.running()) {  // it died meanwhile; nobody is served by staying
      state_ = State::kClearing;
      return lazy ? Idle() : Unmount(true);
    }
    state_ = State::kMounted;
    if (server_lost_) ServerLost();
    const std::string user = UserOfFile(options_.file);
    return std::exchange(down_done_, nullptr)(absl::FailedPreconditionError(absl::StrCat(
        options_.file, " is in use",
        user.empty() ? absl::StrCat(" (", fusermount_.complaint(), ")") : absl::StrCat(": ", user),
        "; release it first, or detach with force")));
  }
  if (!nbdfuse_.running()) return Detached();
  state_ = State::kLeaving;
  // A lazy unmount leaves nbdfuse to those who still have the file open. They lose it now.
  if (lazy) nbdfuse_.Signal(SIGKILL);
  SetDeadline(kLeaveLimit, [this] {
    deadline_ = 0;
    nbdfuse_.Signal(SIGKILL);
  });
}

void FusePath::Detached() {
  loop_->Cancel(std::exchange(deadline_, 0));
  state_ = State::kIdle;
  if (down_done_ != nullptr) std::exchange(down_done_, nullptr)(absl::OkStatus());
}

void FusePath::Idle() {
  state_ = State::kIdle;
  if (down_done_ != nullptr) return Detached();
  if (std::exchange(up_wanted_, false)) return StartNbdfuse();
  if (up_done_ != nullptr) {
    std::exchange(up_done_, nullptr)(absl::UnavailableError(failure_));
  }
}

}  // namespace braid::attach
