#include "nbdkit-plugin/config.h"

#include <sys/un.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace braid {
namespace {

// site/volume, each part at most 63 bytes; a UUID is shorter. The control plane knows the
// rules of names; here only what would make a mess of messages is refused.
constexpr size_t kMaxVolumeArgument = 127;
// A person at the terminal waits; longer waits belong to whoever supervises the server.
constexpr uint32_t kMaxControlTimeoutSeconds = 3600;

bool Printable(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c)) != 0;
  });
}

absl::StatusOr<bool> ParseBool(absl::string_view key, absl::string_view value) {
  for (absl::string_view yes : {"1", "true", "t", "yes", "y", "on"})
    if (absl::EqualsIgnoreCase(value, yes)) return true;
  for (absl::string_view no : {"0", "false", "f", "no", "n", "off"})
    if (absl::EqualsIgnoreCase(value, no)) return false;
  return absl::InvalidArgumentError(
      absl::StrCat(key, " is neither true nor false; give ", key, "=true or ", key, "=false"));
}

// gRPC reads targets as URIs and would stumble over blanks and read "%41" as "A".
std::string PercentEncode(absl::string_view path) {
  std::string out;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || absl::StrContains("/-._~", absl::string_view(&c, 1))) {
      out += c;
    } else {
      absl::StrAppendFormat(&out, "%%%02X", byte);
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> ControlTarget(absl::string_view control) {
  constexpr absl::string_view kUnix = "unix:";
  if (absl::StartsWith(control, kUnix)) {
    control.remove_prefix(kUnix.size());
    if (control.empty() || absl::StrContains(control, absl::string_view("\0", 1)))
      return absl::InvalidArgumentError("control names no socket; give control=unix:PATH");
    std::error_code error;
    const std::filesystem::path path =
        std::filesystem::absolute(std::filesystem::path(std::string(control)), error);
    if (error)
      return absl::InvalidArgumentError(
          absl::StrCat("control: the current directory is not known (", error.message(),
                       "); give an absolute path"));
    if (path.native().size() >= sizeof(sockaddr_un::sun_path))
      return absl::InvalidArgumentError(
          absl::StrCat("control: the path of the socket has ", path.native().size(),
                       " bytes, and the kernel takes ", sizeof(sockaddr_un::sun_path) - 1,
                       "; use a shorter path"));
    return absl::StrCat(kUnix, PercentEncode(path.native()));
  }
  const size_t colon = control.rfind(':');
  uint32_t port = 0;
  if (colon == absl::string_view::npos || colon == 0 || !Printable(control) ||
      absl::StrContains(control, '/') || !absl::SimpleAtoi(control.substr(colon + 1), &port) ||
      port == 0 || port > 65535)
    return absl::InvalidArgumentError(
        "control is neither a socket nor an address; give control=unix:PATH or "
        "control=HOST:PORT");
  return absl::StrCat("dns:///", control);
}

absl::Status SetOption(PluginConfig& config, absl::string_view key, absl::string_view value) {
  if (key == "volume") {
    if (value.empty() || value.size() > kMaxVolumeArgument || !Printable(value))
      return absl::InvalidArgumentError(
          "volume is no name of a volume; give volume=NAME, volume=SITE/NAME or its id");
    if (!config.volume.empty())
      return absl::InvalidArgumentError("volume was given twice; start one nbdkit for each volume");
    config.volume = std::string(value);
    return absl::OkStatus();
  }
  if (key == "control") {
    const absl::StatusOr<std::string> target = ControlTarget(value);
    if (!target.ok()) return target.status();
    config.control = std::string(value);
    config.target = *target;
    return absl::OkStatus();
  }
  if (key == "control-timeout") {
    uint32_t seconds = 0;
    if (!absl::SimpleAtoi(value, &seconds) || seconds > kMaxControlTimeoutSeconds)
      return absl::InvalidArgumentError(absl::StrCat(
          "control-timeout is no number of seconds; give 0 to ", kMaxControlTimeoutSeconds));
    config.control_timeout = absl::Seconds(seconds);
    return absl::OkStatus();
  }
  if (key == "readonly") {
    const absl::StatusOr<bool> read_only = ParseBool(key, value);
    if (!read_only.ok()) return read_only.status();
    config.read_only = *read_only;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown parameter ", key, "; there are volume, control, control-timeout and readonly"));
}

absl::Status CompleteConfig(PluginConfig& config, const char* environment_control) {
  if (config.volume.empty())
    return absl::InvalidArgumentError("which volume is not said; give volume=NAME");
  if (!config.target.empty()) return absl::OkStatus();
  if (environment_control == nullptr || *environment_control == '\0')
    return SetOption(config, "control", kDefaultControl);
  absl::Status status = SetOption(config, "control", environment_control);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("in BRAID_CONTROL: ", status.message()));
}

}  // namespace braid
