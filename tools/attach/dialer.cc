#include "tools/attach/dialer.h"

#include <fcntl.h>
#include <linux/nbd.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"
#include "tools/attach/unix_socket.h"

namespace braid::attach {

Dialer::Dialer(EventLoop* loop, std::string socket_path)
    : loop_(loop), socket_path_(std::move(socket_path)) {}

void Dialer::Dial(size_t count, absl::Duration limit, Done done) {
  Cancel();
  count_ = count;
  done_ = std::move(done);
  deadline_ = loop_->After(limit, [this, limit] {
    deadline_ = 0;
    Finish(absl::DeadlineExceededError(
        absl::StrCat("the server did not answer within ", absl::FormatDuration(limit))));
  });
  Next();
}

void Dialer::Cancel() {
  loop_->Cancel(deadline_);
  deadline_ = 0;
  if (fd_.valid()) loop_->Unwatch(fd_.get());
  fd_.Reset();
  made_.clear();
  done_ = nullptr;
}

void Dialer::Next() {
  absl::StatusOr<UniqueFd> connected = ConnectUnix(socket_path_);
  if (!connected.ok()) {
    // From the loop, as promised, not from within Dial().
    loop_->Cancel(deadline_);
    deadline_ = loop_->After(absl::ZeroDuration(), [this, why = connected.status()] {
      deadline_ = 0;
      Finish(why);
    });
    return;
  }
  fd_ = std::move(*connected);
  handshake_ = Handshake();
  loop_->Watch(fd_.get(), POLLIN, [this](short) { OnReadable(); });
}

void Dialer::OnReadable() {
  if (absl::Status status = Exchange(); !status.ok()) return Finish(std::move(status));
  if (!handshake_.done()) return;
  loop_->Unwatch(fd_.get());
  // It becomes the kernel's, which waits in its own threads.
  if (fcntl(fd_.get(), F_SETFL, 0) != 0) return Finish(ErrnoStatus(errno, "fcntl"));
  if ((handshake_.info().flags & NBD_FLAG_CAN_MULTI_CONN) == 0) count_ = 1;
  made_.push_back(Connection{std::move(fd_), handshake_.info()});
  if (made_.size() < count_) return Next();
  Finish(absl::OkStatus());
}

absl::Status Dialer::Exchange() {
  char buffer[512];
  const size_t wanted = std::min(handshake_.wanted_bytes(), sizeof buffer);
  const ssize_t got = recv(fd_.get(), buffer, wanted, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
  if (got < 0) return ErrnoStatus(errno, "reading from the server");
  if (got == 0) return absl::UnavailableError("the server hung up during the handshake");
  absl::Status status = handshake_.Take(absl::string_view(buffer, static_cast<size_t>(got)));
  if (!status.ok()) return status;
  const std::string output = handshake_.TakeOutput();
  if (output.empty()) return absl::OkStatus();
  // Some thirty bytes into an empty socket buffer: anything but all of it is a failure.
  if (send(fd_.get(), output.data(), output.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(output.size())) {
    return ErrnoStatus(errno == 0 ? EIO : errno, "writing to the server");
  }
  return absl::OkStatus();
}

void Dialer::Finish(absl::Status status) {
  const Done done = std::move(done_);
  std::vector<Connection> made = std::move(made_);
  Cancel();
  if (status.ok()) {
    done(std::move(made));
  } else {
    done(std::move(status));
  }
}

}  // namespace braid::attach
