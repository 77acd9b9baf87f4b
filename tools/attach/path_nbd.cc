#include "tools/attach/path_nbd.h"

#include <fcntl.h>
#include <linux/nbd.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/errno_status.h"
#include "tools/attach/usage.h"

namespace braid::attach {

namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kDialLimit = absl::Seconds(30);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(20);
constexpr absl::Duration kLongestRetry = absl::Seconds(1);
// After NBD_CMD_DISCONNECT the kernel ends its threads: milliseconds; this is 10 s.
constexpr int kGoneTries = 200;
constexpr int kForcedGoneTries = 20;
constexpr absl::Duration kGonePause = absl::Milliseconds(50);

std::string DevicePath(uint32_t index) { return absl::StrCat("/dev/nbd", index); }
fs::path SysPath(uint32_t index) { return absl::StrCat("/sys/block/nbd", index); }

std::string FirstLine(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

bool Connected(uint32_t index) {
  std::error_code error;
  return fs::exists(SysPath(index) / "pid", error);
}

std::optional<uint32_t> FindBackend(const std::string& backend) {
  std::error_code error;
  for (fs::directory_iterator it("/sys/block", error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    absl::string_view number(name);
    uint32_t index = 0;
    if (absl::ConsumePrefix(&number, "nbd") && absl::SimpleAtoi(number, &index) &&
        FirstLine(it->path() / "backend") == backend && Connected(index)) {
      return index;
    }
  }
  return std::nullopt;
}

bool HungUp(int fd) {
  pollfd state{fd, POLLRDHUP, 0};
  return poll(&state, 1, 0) > 0;
}

}  // namespace

NbdPath::NbdPath(EventLoop* loop, Log* log, Options options, Done broken)
    : loop_(loop),
      log_(log),
      options_(std::move(options)),
      broken_(std::move(broken)),
      dialer_(loop, options_.socket_path) {}

NbdPath::~NbdPath() {
  loop_->Cancel(retry_);
  UnwatchLinks();
}

absl::Status NbdPath::Prepare() {
  absl::StatusOr<NbdNetlink> opened = NbdNetlink::Open();
  if (!opened.ok()) return opened.status();
  netlink_ = std::move(*opened);
  if ((index_ = FindBackend(options_.backend)).has_value()) {
    adopted_ = true;
    // In sectors of 512 bytes, always.
    uint64_t sectors = 0;
    if (!absl::SimpleAtoi(FirstLine(SysPath(*index_) / "size"), &sectors)) {
      return absl::InternalError(absl::StrCat("cannot read the size of ", DevicePath(*index_)));
    }
    size_bytes_ = sectors * 512;
    links_.resize(options_.connections);
    log_->Line("attach", absl::StrCat("adopting ", DevicePath(*index_)));
  }
  return absl::OkStatus();
}

std::string NbdPath::path() const { return index_.has_value() ? DevicePath(*index_) : ""; }

void NbdPath::Up(Done done) {
  up_done_ = std::move(done);
  server_alive_ = true;
  retry_delay_ = kFirstRetry;
  Repair();
}

void NbdPath::Repair() {
  size_t wanted = options_.connections;
  if (index_.has_value()) {
    for (UniqueFd& link : links_) {
      if (link.valid() && HungUp(link.get())) {
        loop_->Unwatch(link.get());
        link.Reset();
      }
    }
    wanted = static_cast<size_t>(std::count_if(links_.begin(), links_.end(),
                                               [](const UniqueFd& link) { return !link.valid(); }));
    if (wanted == 0) return Finish(absl::OkStatus());
  }
  dialer_.Dial(wanted, kDialLimit, [this](absl::StatusOr<std::vector<Connection>> dialled) {
    OnDialled(std::move(dialled));
  });
}

void NbdPath::OnDialled(absl::StatusOr<std::vector<Connection>> dialled) {
  if (!dialled.ok()) return Finish(dialled.status());
  if (!index_.has_value()) return Finish(Connect(std::move(*dialled)));
  const absl::StatusOr<bool> whole = Offer(std::move(*dialled));
  if (whole.ok() && !*whole) return RetryLater();
  Finish(whole.status());
}

absl::Status NbdPath::Connect(std::vector<Connection> connections) {
  const ExportInfo& info = connections.front().info;
  if (info.size_bytes == 0) return absl::FailedPreconditionError("the volume has no bytes");
  const uint32_t page_bytes = static_cast<uint32_t>(sysconf(_SC_PAGESIZE));
  const uint32_t block_bytes = std::max<uint32_t>(512, info.minimum_block_bytes);
  if (block_bytes > page_bytes || (block_bytes & (block_bytes - 1)) != 0 ||
      info.size_bytes % block_bytes != 0) {
    return absl::FailedPreconditionError(absl::StrCat("the kernel cannot make a device of ",
                                                      info.size_bytes, " bytes in blocks of ",
                                                      block_bytes, "; attach --via socket"));
  }
  NbdNetlink::Device device;
  device.size_bytes = info.size_bytes;
  device.block_bytes = block_bytes;
  device.server_flags = info.flags;
  device.request_timeout_seconds =
      static_cast<uint64_t>(absl::ToInt64Seconds(options_.request_timeout));
  device.dead_timeout_seconds = static_cast<uint64_t>(absl::ToInt64Seconds(options_.dead_timeout));
  device.backend = options_.backend;
  std::vector<int> sockets;
  sockets.reserve(connections.size());
  for (const Connection& connection : connections) sockets.push_back(connection.fd.get());
  const absl::StatusOr<uint32_t> index = netlink_->Connect(device, sockets);
  if (!index.ok()) return index.status();
  index_ = *index;
  size_bytes_ = info.size_bytes;
  links_.clear();
  for (Connection& connection : connections) links_.push_back(std::move(connection.fd));
  WatchLinks();
  struct stat node {};
  if (stat(DevicePath(*index).c_str(), &node) != 0 || !S_ISBLK(node.st_mode)) {
    absl::Status missing = absl::FailedPreconditionError(absl::StrCat(
        DevicePath(*index), " is missing though the kernel made the device; is /dev a devtmpfs?"));
    (void)netlink_->Disconnect(*index);
    index_.reset();
    return missing;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> NbdPath::Offer(std::vector<Connection> connections) {
  std::vector<int> sockets;
  for (const Connection& connection : connections) {
    // A device that became smaller would lose what lies behind its new end.
    if (connection.info.size_bytes < size_bytes_) {
      return absl::FailedPreconditionError(absl::StrCat("the server now offers ",
                                                        connection.info.size_bytes, " bytes where ",
                                                        path(), " has ", size_bytes_, "; detach"));
    }
    sockets.push_back(connection.fd.get());
  }
  absl::Status offered = netlink_->Reconfigure(*index_, options_.backend, sockets);
  if (ErrnoOf(offered) == EINVAL) {
    return absl::FailedPreconditionError(
        absl::StrCat(path(), " was disconnected by someone else; detach and attach again"));
  }
  if (!offered.ok()) return offered;
  for (Connection& connection : connections) {
    if (!NbdNetlink::Taken(connection.fd.get())) continue;
    const auto dead = std::find_if(links_.begin(), links_.end(),
                                   [](const UniqueFd& link) { return !link.valid(); });
    if (dead != links_.end()) *dead = std::move(connection.fd);
  }
  const auto is_dead = [](const UniqueFd& link) { return !link.valid(); };
  // How many links an adopted device was made with is the kernel's to know: those it took
  // when all were dead are all there are.
  if (adopted_ && !std::all_of(links_.begin(), links_.end(), is_dead)) {
    links_.erase(std::remove_if(links_.begin(), links_.end(), is_dead), links_.end());
    adopted_ = false;
  }
  WatchLinks();
  return std::none_of(links_.begin(), links_.end(), is_dead);
}

void NbdPath::RetryLater() {
  loop_->Cancel(retry_);
  retry_ = loop_->After(retry_delay_, [this] {
    retry_ = 0;
    Repair();
  });
  retry_delay_ = std::min(retry_delay_ * 2, kLongestRetry);
}

void NbdPath::WatchLinks() {
  for (const UniqueFd& link : links_) {
    if (!link.valid()) continue;
    // Never POLLIN: what arrives is the kernel's to read.
    loop_->Watch(link.get(), POLLRDHUP, [this](short) {
      UnwatchLinks();
      if (!server_alive_) return;
      log_->Line("attach", absl::StrCat(path(), ": a link died; making another"));
      retry_delay_ = kFirstRetry;
      RetryLater();
    });
  }
}

void NbdPath::UnwatchLinks() {
  for (const UniqueFd& link : links_) {
    if (link.valid()) loop_->Unwatch(link.get());
  }
}

void NbdPath::ServerLost() {
  server_alive_ = false;
  up_done_ = nullptr;
  dialer_.Cancel();
  loop_->Cancel(std::exchange(retry_, 0));
  UnwatchLinks();
}

void NbdPath::Finish(absl::Status status) {
  if (status.ok()) WatchLinks();
  if (up_done_ != nullptr) return std::exchange(up_done_, nullptr)(std::move(status));
  if (!status.ok()) broken_(std::move(status));
}

// The exclusive open refuses a device that is mounted, swapped on or under another device,
// also in another mount namespace, and while it is held nobody can start to. But opening a
// device may read from it, which waits while its server is dead; then the tables must do.
absl::Status NbdPath::Refusal(UniqueFd* exclusive) const {
  struct stat node {};
  if (stat(path().c_str(), &node) != 0) return absl::OkStatus();
  std::string user = UserOfBlockDevice(path(), node.st_rdev);
  if (user.empty() && server_alive_) {
    exclusive->Reset(open(path().c_str(), O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK));
    if (!exclusive->valid() && errno == EBUSY) user = "held by a mount or another device";
  }
  if (user.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path(), " is in use: ", user, "; release it first, or detach with force"));
}

void NbdPath::Down(Urgency urgency, Done done) {
  if (!index_.has_value()) {
    ServerLost();
    return done(absl::OkStatus());
  }
  UniqueFd exclusive;
  if (urgency != Urgency::kForce) {
    absl::Status refusal = Refusal(&exclusive);
    if (!refusal.ok()) return done(std::move(refusal));
  }
  UnwatchLinks();
  dialer_.Cancel();
  loop_->Cancel(std::exchange(retry_, 0));
  up_done_ = nullptr;
  absl::Status disconnected = netlink_->Disconnect(*index_);
  // EINVAL: it is not connected, which is what we want.
  if (!disconnected.ok() && ErrnoOf(disconnected) != EINVAL) {
    WatchLinks();
    return done(std::move(disconnected));
  }
  links_.clear();
  AwaitGone(std::move(done), urgency == Urgency::kForce ? kForcedGoneTries : kGoneTries,
            urgency == Urgency::kForce);
}

void NbdPath::AwaitGone(Done done, int tries_left, bool forced) {
  if (!Connected(*index_)) {
    index_.reset();
    return done(absl::OkStatus());
  }
  if (tries_left == 0 && forced) {
    // Cut off, and every request of its users fails; the kernel frees it at their last close.
    log_->Line("attach", absl::StrCat(path(), " is free when its last user lets go"));
    index_.reset();
    return done(absl::OkStatus());
  }
  if (tries_left == 0) {
    return done(absl::DeadlineExceededError(
        absl::StrCat("the kernel does not let go of ", path(), "; see dmesg")));
  }
  retry_ = loop_->After(kGonePause, [this, done = std::move(done), tries_left, forced]() mutable {
    retry_ = 0;
    AwaitGone(std::move(done), tries_left - 1, forced);
  });
}

}  // namespace braid::attach
