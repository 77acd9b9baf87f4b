#include "tools/attach/server.h"

#include <sys/socket.h>

#include <csignal>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid::attach {

Server::Server(EventLoop* loop, Log* log, std::vector<std::string> argv, Events events)
    : loop_(loop),
      log_(log),
      argv_(std::move(argv)),
      events_(std::move(events)),
      // Only until nbdkit sets its own; see server_guard.h.
      child_(loop, log, "server", SIGTERM) {}

Server::~Server() { loop_->Cancel(hang_up_); }

absl::Status Server::Listen(const std::string& socket_path) {
  absl::StatusOr<ListeningSocket> opened = ListeningSocket::Open(socket_path);
  if (!opened.ok()) return opened.status();
  listening_ = std::move(*opened);
  return absl::OkStatus();
}

absl::Status Server::Start() {
  absl::Status started =
      child_.Start(argv_, listening_.fd(), [this](const absl::Status& how) { OnEnded(how); });
  if (!started.ok()) return started;
  ready_ = false;
  probe_failure_ = guard_.Start(child_.pid(), child_.pidfd(), listening_.path());
  if (!probe_failure_.ok()) {
    Kill();  // and OnEnded says why
    return absl::OkStatus();
  }
  log_->Line("attach", absl::StrCat("server started, process ", child_.pid()));
  probe_ = std::make_unique<Dialer>(loop_, listening_.path());
  probe_->Dial(1, kReadyLimit, [this](absl::StatusOr<std::vector<Connection>> probed) {
    OnProbed(std::move(probed));
  });
  return absl::OkStatus();
}

void Server::OnProbed(absl::StatusOr<std::vector<Connection>> probed) {
  if (!probed.ok()) {
    // It accepted and refused, or never answered: whichever, it does not serve. Politely
    // first, as it may hold the volume; hard when it does not listen to that either.
    probe_failure_ = probed.status();
    log_->Line("attach", absl::StrCat("server is not usable: ", probe_failure_.message()));
    if (probe_failure_.code() == absl::StatusCode::kDeadlineExceeded) {
      Kill();
    } else {
      Terminate();
    }
    return;
  }
  const std::string goodbye = DisconnectRequest();
  (void)send(probed->front().fd.get(), goodbye.data(), goodbye.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  ready_ = true;
  events_.ready();
}

void Server::Terminate() {
  child_.Signal(SIGTERM);
  loop_->Cancel(hang_up_);
  hang_up_ = loop_->After(kHangUpAfter, [this] { HangUp(); });
}

void Server::HangUp() {
  HangUpOn(Clients());
  // Again, for those whom nbdkit accepted meanwhile.
  hang_up_ = loop_->After(kHangUpAfter, [this] { HangUp(); });
}

std::vector<ServerClient> Server::Clients() const {
  if (!child_.running()) return {};
  return FindServerClients(child_.pid(), child_.pidfd(), listening_.path());
}

void Server::Kill() { child_.Signal(SIGKILL); }

void Server::OnEnded(const absl::Status& how) {
  ready_ = false;
  loop_->Cancel(std::exchange(hang_up_, 0));
  guard_.Dismiss();
  if (probe_ != nullptr) probe_->Cancel();
  // What a server that gives up says explains more than how it ended. One that a signal
  // struck did not know; what it had said before explains nothing.
  const bool gave_up = !probe_failure_.ok() || how.code() == absl::StatusCode::kUnknown;
  absl::Status why;
  if (gave_up && !child_.complaint().empty()) {
    why = absl::UnavailableError(child_.complaint());
  } else if (!probe_failure_.ok()) {
    why = probe_failure_;
  } else {
    why = absl::UnavailableError(
        absl::StrCat("the server ended: ", how.ok() ? "exit status 0" : how.message()));
  }
  events_.ended(std::move(why));
}

}  // namespace braid::attach
