// What braidd is told: flags, then /etc/braid/braidd.yaml, then defaults.
#ifndef BRAID_CONTROLPLANE_SERVER_OPTIONS_H_
#define BRAID_CONTROLPLANE_SERVER_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace braid {

struct DaemonOptions {
  std::string data_dir = "/var/lib/braid";
  std::string site;  // "": as the store has it
  std::vector<std::string> listen;
  std::string run_dir = "/run/braid";
  std::string node;  // never "" once parsed
  // Of a pool's capacity, taken: 1 to 100, the first at most the second.
  uint32_t pool_low_percent = 80;
  uint32_t pool_critical_percent = 95;
  // For tests: how long each commit waits before it is made.
  uint32_t test_commit_delay_ms = 0;
};

// One place to listen on.
struct ListenAddress {
  bool is_unix = false;
  std::string path;       // of a Unix socket
  std::string host_port;  // of TCP, as gRPC takes it
  bool is_loopback = false;
};

struct ParsedOptions {
  DaemonOptions options;
  // Set when there is nothing to run: --help, --version, or a mistake. Already printed.
  bool finished = false;
  int exit_status = 0;
};

// Prints help and mistakes itself.
ParsedOptions ParseOptions(int argc, const char* const* argv);

// Sets what the text of a configuration file says, but for `given`, which flags said.
// InvalidArgument names the key that is unknown or wrong.
absl::Status ApplyConfig(const std::string& text, const std::vector<std::string>& given,
                         DaemonOptions& options);

// "unix:PATH" or "tcp:HOST:PORT". InvalidArgument says what is wrong.
absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_OPTIONS_H_
