// braidd: see --help, and docs/ARCHITECTURE.md.
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controlplane/server/daemon.h"
#include "controlplane/server/log.h"
#include "controlplane/server/machine_host.h"
#include "controlplane/server/options.h"
#include "lib/base/unique_fd.h"

namespace {

// As sd_notify(3), of which we need one datagram.
void NotifySystemd(const char* text) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || std::strlen(path) < 2 || std::strlen(path) >= sizeof(address.sun_path)) {
    return;
  }
  std::memcpy(address.sun_path, path, std::strlen(path));
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract socket
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path));
  const braid::UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return;
  // A manager that does not hear it will say so itself.
  [[maybe_unused]] const ssize_t sent = sendto(fd.get(), text, std::strlen(text), MSG_NOSIGNAL,
                                               reinterpret_cast<const sockaddr*>(&address), length);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "braidd: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

// What is thrown below ends the process, as it should: nothing here could go on with it.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  const braid::ParsedOptions parsed = braid::ParseOptions(argc, argv);
  if (parsed.finished) return parsed.exit_status;
  // Nobody but the owner reaches what this process makes.
  umask(077);
  // Before any thread is started, so that all threads leave these to sigwait below.
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  signal(SIGPIPE, SIG_IGN);

  absl::StatusOr<std::unique_ptr<braid::MachineHost>> host = braid::MachineHost::Create();
  if (!host.ok()) return Fail(host.status());
  absl::StatusOr<std::unique_ptr<braid::Daemon>> daemon =
      braid::Daemon::Start(parsed.options, host->get());
  if (!daemon.ok()) return Fail(daemon.status());

  const std::string where = absl::StrJoin((*daemon)->addresses(), " ");
  std::fprintf(stdout, "braidd: ready, site %s on %s\n", (*daemon)->state().name().c_str(),
               where.c_str());
  std::fflush(stdout);
  braid::Log(braid::LogLevel::kInfo, "ready",
             {{"site", (*daemon)->state().name()},
              {"listen", where},
              {"data_dir", parsed.options.data_dir},
              {"revision", (*daemon)->state().revision().value()},
              {"version", BRAID_VERSION}});
  NotifySystemd("READY=1");

  constexpr timespec kHealthInterval{.tv_sec = 1, .tv_nsec = 0};
  int signal_number = -1;
  while (signal_number < 0) {
    signal_number = sigtimedwait(&stop, nullptr, &kHealthInterval);
    (*daemon)->UpdateHealth();
  }
  NotifySystemd("STOPPING=1");
  braid::Log(braid::LogLevel::kInfo, "stopping", {{"signal", signal_number}});
  daemon->reset();
  return 0;
}
