#include "tools/attach/options.h"

#include <fcntl.h>
#include <getopt.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/uuid.h"
#include "tools/attach/threads.h"

namespace braid::attach {

const char kUsage[] =
    "usage: braid-attach serve --volume SITE/NAME --volume-id UUID --control C --dir DIR\n"
    "           --via socket|fuse|nbd [--socket PATH] [--mount-path PATH] [--read-only]\n"
    "           [--thin] [--connections N] [--threads N] [--request-timeout SECONDS]\n"
    "           [--dead-timeout SECONDS] [--plugin PATH] [--ready-fd N] [--foreground]\n"
    "           [-- PLUGIN-ARGUMENT ...]\n"
    "\"braid attach\" starts it; see braid-attach(8).\n";

namespace {

namespace fs = std::filesystem;

enum Flag {
  kVolume = 256,
  kVolumeId,
  kControl,
  kDir,
  kVia,
  kSocket,
  kMountPath,
  kReadOnly,
  kThin,
  kConnections,
  kThreads,
  kRequestTimeout,
  kDeadTimeout,
  kPlugin,
  kReadyFd,
  kForeground,
};

constexpr option kFlags[] = {
    {"volume", required_argument, nullptr, kVolume},
    {"volume-id", required_argument, nullptr, kVolumeId},
    {"control", required_argument, nullptr, kControl},
    {"dir", required_argument, nullptr, kDir},
    {"via", required_argument, nullptr, kVia},
    {"socket", required_argument, nullptr, kSocket},
    {"mount-path", required_argument, nullptr, kMountPath},
    {"read-only", no_argument, nullptr, kReadOnly},
    {"thin", no_argument, nullptr, kThin},
    {"connections", required_argument, nullptr, kConnections},
    {"threads", required_argument, nullptr, kThreads},
    {"request-timeout", required_argument, nullptr, kRequestTimeout},
    {"dead-timeout", required_argument, nullptr, kDeadTimeout},
    {"plugin", required_argument, nullptr, kPlugin},
    {"ready-fd", required_argument, nullptr, kReadyFd},
    {"foreground", no_argument, nullptr, kForeground},
    {nullptr, 0, nullptr, 0},
};

absl::Status ParseNumber(absl::string_view flag, absl::string_view text, int lowest, int highest,
                         int* value) {
  if (!absl::SimpleAtoi(text, value) || *value < lowest || *value > highest) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is a number from ", lowest, " to ", highest, ", not ", text));
  }
  return absl::OkStatus();
}

std::string Absolute(const std::string& path) {
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  if (error) return path;
  std::string normal = absolute.lexically_normal().string();
  while (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

absl::Status CheckVolume(const std::string& volume) {
  const std::string name = volume.substr(volume.rfind('/') + 1);
  bool printable = true;
  for (const char c : volume) printable &= static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  // The name becomes a file's.
  if (!absl::StrContains(volume, '/') || name.empty() || name == "." || name == ".." ||
      name.size() > 255 || volume.size() > 512 || !printable) {
    return absl::InvalidArgumentError("--volume is SITE/NAME");
  }
  return absl::OkStatus();
}

std::string FindPlugin() {
  if (const char* named = getenv("BRAID_PLUGIN"); named != nullptr && *named != '\0') return named;
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path built =
        self.parent_path().parent_path().parent_path() / "nbdkit-plugin/nbdkit-braid-plugin.so";
    if (fs::exists(built, error)) return built.string();
  }
  return "braid";
}

absl::Status TakeFlag(int flag, Options* options) {
  const std::string value = optarg == nullptr ? "" : optarg;
  int seconds = 0;
  absl::Status status;
  switch (flag) {
    case kVolume:
      options->volume = value;
      return CheckVolume(value);
    case kVolumeId: {
      const absl::StatusOr<Uuid> id = Uuid::Parse(value);
      if (!id.ok()) return absl::InvalidArgumentError("--volume-id is a UUID");
      options->volume_id = id->ToString();
      return absl::OkStatus();
    }
    case kControl:
      options->control = value;
      return absl::OkStatus();
    case kDir:
      options->directory = value;
      return absl::OkStatus();
    case kVia:
      if (value == "socket") {
        options->via = Via::kSocket;
      } else if (value == "fuse") {
        options->via = Via::kFuse;
      } else if (value == "nbd") {
        options->via = Via::kNbd;
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat("--via is socket, fuse or nbd, not ", value));
      }
      return absl::OkStatus();
    case kSocket:
      options->socket_path = value;
      return absl::OkStatus();
    case kMountPath:
      options->mount_path = value;
      return absl::OkStatus();
    case kReadOnly:
      options->read_only = true;
      return absl::OkStatus();
    case kThin:
      options->thin = true;
      return absl::OkStatus();
    case kConnections:
      return ParseNumber("--connections", value, 1, kMaxConnections, &options->connections);
    case kThreads:
      return ParseNumber("--threads", value, 1, kMaxThreads, &options->threads);
    case kRequestTimeout:
      // 0 means something else to the kernel: it then loses links that live.
      status = ParseNumber("--request-timeout", value, 1, 86400, &seconds);
      options->request_timeout = absl::Seconds(seconds);
      return status;
    case kDeadTimeout:
      status = ParseNumber("--dead-timeout", value, 1, 30 * 86400, &seconds);
      options->dead_timeout = absl::Seconds(seconds);
      return status;
    case kPlugin:
      options->plugin = value;
      return absl::OkStatus();
    case kReadyFd:
      status = ParseNumber("--ready-fd", value, 0, 1 << 20, &options->ready_fd);
      if (status.ok() && fcntl(options->ready_fd, F_SETFD, FD_CLOEXEC) != 0) {
        options->ready_fd = -1;
        return absl::InvalidArgumentError("--ready-fd is not open");
      }
      return status;
    case kForeground:
      options->foreground = true;
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError("unknown option, or one without its value");
  }
}

absl::Status Complete(Options* options) {
  const bool own_plugin_arguments = !options->plugin_arguments.empty();
  for (const auto& [flag, value] :
       {std::pair<const char*, const std::string&>{"--volume", options->volume},
        {"--volume-id", options->volume_id},
        {"--dir", options->directory}}) {
    if (value.empty()) return absl::InvalidArgumentError(absl::StrCat(flag, " is missing"));
  }
  if (options->control.empty() && !own_plugin_arguments) {
    return absl::InvalidArgumentError("--control is missing");
  }
  if (!options->mount_path.empty() && options->via != Via::kFuse) {
    return absl::InvalidArgumentError("--mount-path goes with --via fuse");
  }
  options->directory = Absolute(options->directory);
  options->socket_path = options->socket_path.empty() ? options->directory + "/server.sock"
                                                      : Absolute(options->socket_path);
  if (!options->mount_path.empty()) options->mount_path = Absolute(options->mount_path);
  if (options->plugin.empty()) options->plugin = FindPlugin();
  if (absl::StrContains(options->plugin, '/')) options->plugin = Absolute(options->plugin);
  absl::string_view control = options->control;
  if (absl::ConsumePrefix(&control, "unix:") && !control.empty()) {
    options->control = absl::StrCat("unix:", Absolute(std::string(control)));
  }
  if (!own_plugin_arguments) {
    options->plugin_arguments = {absl::StrCat("volume=", options->volume_id),
                                 absl::StrCat("control=", options->control)};
    // nbdkit tells a plugin of --readonly only with its first connection, too late for an
    // attachment that shall never be able to write.
    if (options->read_only) options->plugin_arguments.emplace_back("readonly=true");
  }
  // Through the socket the client decides; one connection is what most tools open.
  if (options->connections == 0) {
    options->connections =
        options->via == Via::kSocket
            ? 1
            : ChooseConnections(static_cast<int>(std::thread::hardware_concurrency()));
  }
  if (options->threads == 0) {
    // First writes of a thin volume wait for space when the pool is full, and must not keep
    // waiting the trim that frees some.
    const bool may_hold = options->thin && !options->read_only;
    options->threads =
        ChooseThreads(may_hold ? DeviceKind::kSlow : DeviceKind::kPageCache, options->connections);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Options> ParseOptions(int argc, char** argv) {
  if (argc < 2 || absl::string_view(argv[1]) != "serve") {
    return absl::InvalidArgumentError("the only command is serve");
  }
  Options options;
  opterr = 0;
  optind = 2;
  for (int flag = 0; (flag = getopt_long(argc, argv, "+", kFlags, nullptr)) != -1;) {
    if (absl::Status status = TakeFlag(flag, &options); !status.ok()) return status;
  }
  // getopt has stepped over "--" if that is what stopped it.
  if (optind < argc && absl::string_view(argv[optind - 1]) != "--") {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", argv[optind]));
  }
  options.plugin_arguments.assign(argv + optind, argv + argc);
  if (absl::Status status = Complete(&options); !status.ok()) return status;
  return options;
}

}  // namespace braid::attach
