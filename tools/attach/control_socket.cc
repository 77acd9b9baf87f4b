#include "tools/attach/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace braid::attach {

ControlSocket::ControlSocket(EventLoop* loop, Commands commands)
    : loop_(loop), commands_(std::move(commands)) {}

absl::Status ControlSocket::Listen(const std::string& path) {
  absl::StatusOr<ListeningSocket> opened = ListeningSocket::Open(path);
  if (!opened.ok()) return opened.status();
  listening_ = std::move(*opened);
  (void)fcntl(listening_.fd(), F_SETFL, O_NONBLOCK);
  loop_->Watch(listening_.fd(), POLLIN, [this](short) { OnAccept(); });
  return absl::OkStatus();
}

void ControlSocket::StopListening() {
  if (listening_.fd() >= 0) loop_->Unwatch(listening_.fd());
  listening_.Close();
}

void ControlSocket::Close() {
  StopListening();
  while (!clients_.empty()) Drop(clients_.begin()->first);
}

void ControlSocket::OnAccept() {
  UniqueFd fd(accept4(listening_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd.valid()) return;
  if (clients_.size() >= kMaxClients) {
    // The one that has kept its place longest without asking for anything gives way; when all
    // wait for a detach, the newcomer does.
    const auto oldest = std::find_if(clients_.begin(), clients_.end(),
                                     [](const auto& entry) { return !entry.second.detaching; });
    if (oldest == clients_.end()) return;
    Drop(oldest->first);
  }
  const uint64_t id = next_id_++;
  const int number = fd.get();
  clients_[id].fd = std::move(fd);
  loop_->Watch(number, POLLIN, [this, id](short revents) { OnClient(id, revents); });
  RestartIdle(id);
}

void ControlSocket::RestartIdle(uint64_t id) {
  Client& client = clients_.at(id);
  loop_->Cancel(client.idle);
  client.idle = client.detaching ? 0 : loop_->After(kIdleLimit, [this, id] { Drop(id); });
}

void ControlSocket::Drop(uint64_t id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  loop_->Cancel(found->second.idle);
  loop_->Unwatch(found->second.fd.get());
  clients_.erase(found);
}

void ControlSocket::OnClient(uint64_t id, short revents) {
  if ((revents & POLLOUT) != 0) {
    Flush(id);
    if (clients_.count(id) == 0) return;
  }
  if ((revents & (POLLIN | POLLHUP | POLLERR)) == 0) return;
  char buffer[kMaxLineBytes];
  const ssize_t got = recv(clients_.at(id).fd.get(), buffer, sizeof buffer, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return Drop(id);
  clients_.at(id).input.append(buffer, static_cast<size_t>(got));
  // A command may drop the client, or end the whole socket.
  for (auto found = clients_.find(id); found != clients_.end(); found = clients_.find(id)) {
    std::string& input = found->second.input;
    const size_t end = input.find('\n');
    if (end == std::string::npos) {
      if (input.size() > kMaxLineBytes) Drop(id);
      return;
    }
    const std::string line = input.substr(0, end);
    input.erase(0, end + 1);
    RunLine(id, line);
  }
}

void ControlSocket::RunLine(uint64_t id, const std::string& line) {
  if (line == "status") {
    RestartIdle(id);
    Send(id, commands_.status());
  } else if (line == "detach" || line == "detach force") {
    clients_.at(id).detaching = true;
    RestartIdle(id);
    commands_.detach(line != "detach");
  } else {
    Send(id, "error unknown command; say status, detach or detach force");
  }
}

void ControlSocket::Send(uint64_t id, absl::string_view line) {
  Client& client = clients_.at(id);
  if (client.output.size() + line.size() >= kMaxPendingBytes) return Drop(id);
  absl::StrAppend(&client.output, line, "\n");
  Flush(id);
}

void ControlSocket::Flush(uint64_t id) {
  Client& client = clients_.at(id);
  while (!client.output.empty()) {
    const ssize_t sent = send(client.fd.get(), client.output.data(), client.output.size(),
                              MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return Drop(id);
    if (sent < 0) break;
    client.output.erase(0, static_cast<size_t>(sent));
  }
  const short events = client.output.empty() ? POLLIN : static_cast<short>(POLLIN | POLLOUT);
  loop_->Watch(client.fd.get(), events, [this, id](short revents) { OnClient(id, revents); });
}

void ControlSocket::Progress(absl::string_view text) {
  std::vector<uint64_t> ids;
  for (const auto& [id, client] : clients_) {
    if (client.detaching) ids.push_back(id);
  }
  for (const uint64_t id : ids) Send(id, absl::StrCat("progress ", text));
}

void ControlSocket::EndDetach(const absl::Status& status) {
  std::vector<uint64_t> ids;
  for (auto& [id, client] : clients_) {
    if (client.detaching) ids.push_back(id);
    client.detaching = false;
  }
  for (const uint64_t id : ids) {
    RestartIdle(id);
    Send(id, status.ok() ? "ok" : absl::StrCat("error ", status.message()));
  }
}

}  // namespace braid::attach
