// braid-attach's command line.
#ifndef BRAID_TOOLS_ATTACH_OPTIONS_H_
#define BRAID_TOOLS_ATTACH_OPTIONS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace braid::attach {

enum class Via { kSocket, kFuse, kNbd };

struct Options {
  std::string volume;     // "site/name"
  std::string volume_id;  // UUID, lower case
  std::string control;
  std::string directory;
  Via via = Via::kSocket;
  std::string socket_path;
  std::string mount_path;  // "" for one in the directory
  bool read_only = false;
  bool thin = false;    // the server may hold requests
  int connections = 0;  // chosen by ParseOptions where not given
  int threads = 0;
  absl::Duration request_timeout = absl::Seconds(30);
  absl::Duration dead_timeout = absl::Minutes(5);
  std::string plugin;
  int ready_fd = -1;
  bool foreground = false;
  // Of the plugin: volume=… control=…, or what stood after "--".
  std::vector<std::string> plugin_arguments;

  std::string via_name() const {
    return via == Via::kSocket ? "socket" : via == Via::kFuse ? "fuse" : "nbd";
  }
  // The part of `volume` after the site.
  std::string volume_name() const { return volume.substr(volume.rfind('/') + 1); }
};

// All paths absolute, all choices made. InvalidArgument, one line, for a wrong command line.
absl::StatusOr<Options> ParseOptions(int argc, char** argv);

extern const char kUsage[];

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_OPTIONS_H_
