#include "tools/attach/attachment.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tools/attach/path_fuse.h"
#include "tools/attach/path_nbd.h"
#include "tools/attach/server_clients.h"
#include "tools/attach/usage.h"

namespace braid::attach {

Attachment::Attachment(EventLoop* loop, Log* log, Options options, Directory directory,
                       std::function<void(const Report&)> attached)
    : loop_(loop),
      log_(log),
      options_(std::move(options)),
      directory_(std::move(directory)),
      attached_(std::move(attached)),
      since_unix_seconds_(absl::ToUnixSeconds(absl::Now())),
      server_(loop, log, ServerCommand(),
              {[this] { OnServerReady(); },
               [this](absl::Status why) { OnServerEnded(std::move(why)); }}),
      control_(loop,
               {[this] { return ToJson(MakeReport()); }, [this](bool force) { Detach(force); }}) {}

std::vector<std::string> Attachment::ServerCommand() const {
  std::vector<std::string> argv = {"nbdkit", "--foreground", "--log=stderr", "--threads",
                                   absl::StrCat(options_.threads)};
  if (options_.read_only) argv.emplace_back("--readonly");
  argv.push_back(options_.plugin);
  argv.insert(argv.end(), options_.plugin_arguments.begin(), options_.plugin_arguments.end());
  return argv;
}

std::unique_ptr<ClientPath> Attachment::MakePath(absl::Status* status) {
  const auto broken = [this](const absl::Status& why) { OnPathBroken(why); };
  if (options_.via == Via::kFuse) {
    FusePath::Options fuse;
    fuse.socket_path = options_.socket_path;
    if (options_.mount_path.empty()) fuse.own_folder = directory_.File("fuse");
    fuse.file = options_.mount_path.empty()
                    ? absl::StrCat(fuse.own_folder, "/", options_.volume_name())
                    : options_.mount_path;
    fuse.read_only = options_.read_only;
    fuse.connections = options_.connections;
    auto path = std::make_unique<FusePath>(loop_, log_, std::move(fuse), broken);
    *status = path->Prepare();
    return path;
  }
  if (options_.via == Via::kNbd) {
    NbdPath::Options nbd;
    nbd.socket_path = options_.socket_path;
    nbd.backend = absl::StrCat("braid:", options_.volume_id);
    nbd.connections = static_cast<size_t>(options_.connections);
    nbd.request_timeout = options_.request_timeout;
    nbd.dead_timeout = options_.dead_timeout;
    auto path = std::make_unique<NbdPath>(loop_, log_, std::move(nbd), broken);
    *status = path->Prepare();
    return path;
  }
  return std::make_unique<SocketPath>([this]() -> std::string {
    const std::vector<ServerClient> clients = server_.Clients();
    if (clients.empty()) return "";
    return absl::StrCat("connected from ", DescribeProcess(clients.front().process));
  });
}

Report Attachment::MakeReport() const {
  Report report;
  report.volume = options_.volume;
  report.volume_id = options_.volume_id;
  report.via = options_.via_name();
  report.uri = SocketUri(options_.socket_path);
  report.path = path_->path();
  report.pid = getpid();
  report.server_pid = server_.ready() ? server_.pid() : 0;
  report.restarts = restarts_;
  report.since_unix_seconds = since_unix_seconds_;
  report.read_only = options_.read_only;
  report.last_error = last_error_;
  return report;
}

absl::Status Attachment::Start() {
  // Cheap refusals first: no server is started for a path that cannot be made.
  absl::Status status;
  path_ = MakePath(&status);
  if (status.ok()) status = server_.Listen(options_.socket_path);
  if (status.ok()) status = control_.Listen(directory_.File("ctl"));
  if (status.ok()) {
    server_started_ = EventLoop::Now();
    status = server_.Start();
  }
  if (!status.ok()) {
    control_.Close();
    server_.CloseSocket();
    path_.reset();
    directory_.Remove();
  }
  return status;
}

void Attachment::Note(absl::string_view what, const absl::Status& status) {
  last_error_ = std::string(status.message());
  log_->Line("attach", absl::StrCat(what, ": ", status.message()));
}

// ---- Up, and up again.

void Attachment::OnServerReady() {
  log_->Line("attach", "server answers");
  // Not under a detach: its refusal looks after this.
  if (phase_ == Phase::kAttaching || phase_ == Phase::kAttached) PathUp();
}

void Attachment::PathUp() {
  loop_->Cancel(std::exchange(path_retry_, 0));
  path_->Up([this](absl::Status status) { OnPathUp(std::move(status)); });
}

void Attachment::OnPathUp(absl::Status status) {
  if (!status.ok()) {
    if (phase_ == Phase::kAttaching) return Fail(std::move(status));
    return OnPathBroken(status);
  }
  path_came_up_ = EventLoop::Now();
  if (phase_ != Phase::kAttaching) return;
  phase_ = Phase::kAttached;
  const Report report = MakeReport();
  directory_.SetWhere(report.path.empty() ? report.uri : report.path);
  log_->Line("attach", absl::StrCat("attached ", options_.volume, " at ",
                                    report.path.empty() ? report.uri : report.path));
  attached_(report);
}

void Attachment::OnPathBroken(const absl::Status& why) {
  Note("path", why);
  if (phase_ != Phase::kAttached || !server_.ready()) return;  // comes with the next server
  const absl::Duration delay = path_policy_.NextDelay(EventLoop::Now() - path_came_up_);
  loop_->Cancel(path_retry_);
  path_retry_ = loop_->After(delay, [this] {
    path_retry_ = 0;
    if (phase_ == Phase::kAttached && server_.ready()) PathUp();
  });
}

void Attachment::OnServerEnded(absl::Status why) {
  if (phase_ == Phase::kStopping) {
    log_->Line("attach", "server ended");
    return End();
  }
  path_->ServerLost();
  loop_->Cancel(std::exchange(path_retry_, 0));
  if (phase_ == Phase::kAttaching) return Fail(std::move(why));
  if (exiting_) return;  // the path is on its way down; then there is no server to stop
  Note("server", why);
  const absl::Duration delay = server_policy_.NextDelay(EventLoop::Now() - server_started_);
  restart_ = loop_->After(delay, [this] { RestartServer(); });
}

void Attachment::RestartServer() {
  restart_ = 0;
  ++restarts_;
  server_started_ = EventLoop::Now();
  absl::Status started = server_.Start();
  if (!started.ok()) OnServerEnded(std::move(started));
}

void Attachment::Fail(absl::Status why) {
  failure_ = std::move(why);
  log_->Line("attach", absl::StrCat("cannot attach: ", failure_.message()));
  exiting_ = true;
  BeginDetach();
}

// ---- Down.

void Attachment::Terminate() {
  log_->Line("attach", "asked to end by a signal");
  exiting_ = true;
  if (phase_ == Phase::kAttaching) {
    failure_ = absl::CancelledError("ended by a signal while attaching");
  }
  if (phase_ == Phase::kAttaching || phase_ == Phase::kAttached) BeginDetach();
}

void Attachment::Detach(bool force) {
  force_ = force_ || force;
  switch (phase_) {
    case Phase::kAttaching:
      failure_ = absl::CancelledError("detached while attaching");
      exiting_ = true;
      return BeginDetach();
    case Phase::kAttached:
      return BeginDetach();
    case Phase::kStopping:
      // Asked again after the limit: a new one to wait for.
      if (stop_tick_ == 0) {
        stop_began_ = EventLoop::Now();
        StopTick();
      }
      return;
    case Phase::kDetaching:
    case Phase::kEnded:
      return;  // its end answers everybody
  }
}

void Attachment::BeginDetach() {
  phase_ = Phase::kDetaching;
  loop_->Cancel(std::exchange(path_retry_, 0));
  if (!path_->path().empty()) {
    control_.Progress(absl::StrCat("taking down ", path_->path()));
  }
  const Urgency urgency = force_ ? Urgency::kForce : exiting_ ? Urgency::kExit : Urgency::kAsk;
  path_->Down(urgency, [this](const absl::Status& status) { OnPathDown(status); });
}

void Attachment::OnPathDown(const absl::Status& status) {
  if (status.ok()) return StopServer();
  log_->Line("attach", absl::StrCat("detach: ", status.message()));
  if (exiting_) return StopServer();
  phase_ = Phase::kAttached;
  force_ = false;
  control_.EndDetach(status);
  if (server_.ready()) PathUp();  // whatever befell the server or its links meanwhile
}

void Attachment::StopServer() {
  phase_ = Phase::kStopping;
  loop_->Cancel(std::exchange(restart_, 0));
  if (!server_.running()) {
    // From the loop: the path, which End() destroys, may be what called us.
    (void)loop_->After(absl::ZeroDuration(), [this] { End(); });
    return;
  }
  server_.Terminate();
  stop_began_ = EventLoop::Now();
  StopTick();
}

void Attachment::StopTick() {
  stop_tick_ = 0;
  const absl::Duration waited = EventLoop::Now() - stop_began_;
  if (waited >= kStopLimit) {
    // The client's acknowledged writes are in the kernel; what is lost is the clean end.
    if (force_ || exiting_) return server_.Kill();
    return control_.EndDetach(absl::DeadlineExceededError(
        absl::StrCat("the server (process ", server_.pid(), ") has not ended within ",
                     absl::FormatDuration(kStopLimit), "; detach with force kills it")));
  }
  if (waited >= absl::Seconds(1)) {
    control_.Progress(
        absl::StrCat("waiting for the server to end (", absl::ToInt64Seconds(waited), " s)"));
  } else {
    control_.Progress("stopping the server");
  }
  stop_tick_ = loop_->After(absl::Seconds(1), [this] { StopTick(); });
}

void Attachment::End() {
  phase_ = Phase::kEnded;
  loop_->Cancel(std::exchange(stop_tick_, 0));
  // "ok" means that nothing is left, so it comes last.
  path_.reset();
  server_.CloseSocket();
  control_.StopListening();
  log_->Line("attach", "ended");
  directory_.Remove();
  control_.EndDetach(absl::OkStatus());
  loop_->Stop();
}

}  // namespace braid::attach
