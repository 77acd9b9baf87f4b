// What the plugin is told on nbdkit's command line.
#ifndef BRAID_NBDKIT_PLUGIN_CONFIG_H_
#define BRAID_NBDKIT_PLUGIN_CONFIG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace braid {

inline constexpr char kDefaultControl[] = "unix:/run/braid/braidd.sock";

struct PluginConfig {
  std::string volume;
  std::string control;  // as given; "" until CompleteConfig
  std::string target;   // the same for gRPC; set by CompleteConfig
  // How long to wait at the start for a control plane that does not answer.
  absl::Duration control_timeout = absl::Seconds(10);
  bool read_only = false;
};

// Takes one key=value. InvalidArgument says what is wrong and what would be right.
// Relative paths are taken from the current directory, which nbdkit leaves later.
absl::Status SetOption(PluginConfig& config, absl::string_view key, absl::string_view value);

// Fills in defaults: `environment_control` is BRAID_CONTROL, or null.
absl::Status CompleteConfig(PluginConfig& config, const char* environment_control);

// "unix:PATH" or "HOST:PORT" as gRPC names it: an absolute, percent-encoded unix: URI,
// or dns:///HOST:PORT.
absl::StatusOr<std::string> ControlTarget(absl::string_view control);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_CONFIG_H_
