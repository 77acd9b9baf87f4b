#include "tools/attach/server_clients.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace braid::attach {

namespace {

namespace fs = std::filesystem;

// An accepted connection carries the listening socket's name.
bool IsConnectionTo(int fd, const std::string& socket_path) {
  int listening = 0;
  socklen_t length = sizeof listening;
  if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || listening != 0) {
    return false;
  }
  sockaddr_un name{};
  length = sizeof name;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0 ||
      name.sun_family != AF_UNIX || length <= offsetof(sockaddr_un, sun_path)) {
    return false;
  }
  const size_t bytes =
      std::min<size_t>(length - offsetof(sockaddr_un, sun_path), sizeof name.sun_path);
  absl::string_view path(name.sun_path, bytes);
  return path.substr(0, path.find('\0')) == socket_path;
}

bool HungUp(int fd) {
  pollfd state{fd, POLLRDHUP, 0};
  return poll(&state, 1, 0) > 0;
}

}  // namespace

std::vector<ServerClient> FindServerClients(pid_t pid, int pidfd, const std::string& socket_path) {
  std::vector<ServerClient> clients;
  std::error_code error;
  for (fs::directory_iterator it(absl::StrCat("/proc/", pid, "/fd"), error), end;
       !error && it != end; it.increment(error)) {
    int number = -1;
    std::error_code unreadable;
    if (!absl::StartsWith(fs::read_symlink(it->path(), unreadable).string(), "socket:") ||
        !absl::SimpleAtoi(it->path().filename().string(), &number)) {
      continue;
    }
    ServerClient client;
    client.fd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, number, 0)));
    if (!client.fd.valid() || !IsConnectionTo(client.fd.get(), socket_path) ||
        HungUp(client.fd.get())) {
      continue;
    }
    ucred peer{};
    socklen_t length = sizeof peer;
    if (getsockopt(client.fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0) {
      client.process = peer.pid;
    }
    clients.push_back(std::move(client));
  }
  return clients;
}

void HangUpOn(const std::vector<ServerClient>& clients) {
  for (const ServerClient& client : clients) (void)shutdown(client.fd.get(), SHUT_RD);
}

}  // namespace braid::attach
