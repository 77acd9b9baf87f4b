#include "controlplane/server/options.h"

#include <arpa/inet.h>
#include <sys/un.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/errno_status.h"
#include "lib/format/names.h"

namespace braid {
namespace {

constexpr char kDefaultConfig[] = "/etc/braid/braidd.yaml";
constexpr char kDefaultListen[] = "unix:/run/braid/braidd.sock";

constexpr char kDescription[] =
    "braidd, the control plane of a Braid site: it knows the site's devices and volumes,\n"
    "decides where volumes lie and who may use them, and answers the braid command and the\n"
    "data planes over gRPC. It never touches the data of a volume, so it can be restarted at\n"
    "any time; what is attached goes on.\n";
constexpr char kFooter[] =
    "\nA first start names the site; later ones find the name in the data directory:\n"
    "  braidd --data-dir /srv/braid --site berlin --listen unix:/run/braid/braidd.sock\n"
    "  braid --control unix:/run/braid/braidd.sock device add /dev/sdb --class ssd\n"
    "\nEvery flag may stand in the configuration file, under its name without the dashes:\n"
    "  site: berlin\n"
    "  listen: [unix:/run/braid/braidd.sock, tcp:127.0.0.1:7411]\n"
    "\nExit status: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 misused.\n";

// The machine's name up to its first dot.
std::string ShortHostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return "";
  const std::string full(name);
  return full.substr(0, full.find('.'));
}

absl::StatusOr<std::string> ReadConfig(const std::string& path, bool must_exist) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    if (!must_exist && errno == ENOENT) return std::string();
    return ErrnoStatus(errno, path);
  }
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::Status Bad(absl::string_view key, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("'", key, "' must be ", wanted));
}

absl::Status CheckOptions(DaemonOptions& options) {
  if (options.listen.empty()) options.listen.push_back(kDefaultListen);
  for (const std::string& text : options.listen) {
    if (absl::Status status = ParseListenAddress(text).status(); !status.ok()) return status;
  }
  if (options.node.empty()) {
    options.node = ShortHostName();
    if (!CheckName("node name", options.node).ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the host name '", absl::CHexEscape(options.node),
                       "' does not do for a node; give one with --node"));
    }
  }
  if (absl::Status status = CheckName("node name", options.node); !status.ok()) return status;
  if (!options.site.empty()) {
    if (absl::Status status = CheckName("site name", options.site); !status.ok()) return status;
  }
  if (absl::Status status = CheckPath("--run-dir", options.run_dir); !status.ok()) return status;
  if (options.data_dir.empty()) return Bad("data-dir", "a directory");
  const uint32_t low = options.pool_low_percent;
  const uint32_t critical = options.pool_critical_percent;
  if (low < 1 || low > 100) return Bad("pool-low-percent", "from 1 to 100");
  if (critical < 1 || critical > 100) return Bad("pool-critical-percent", "from 1 to 100");
  if (low > critical) {
    return absl::InvalidArgumentError(absl::StrCat("'pool-low-percent' (", low,
                                                   ") must not be above 'pool-critical-percent' (",
                                                   critical, ")"));
  }
  return absl::OkStatus();
}

ParsedOptions Mistake(const absl::Status& status) {
  std::fprintf(stderr, "braidd: %s\n", std::string(status.message()).c_str());
  return {.options = {}, .finished = true, .exit_status = 2};
}

}  // namespace

absl::Status ApplyConfig(const std::string& text, const std::vector<std::string>& given,
                         DaemonOptions& options) try {
  const YAML::Node root = YAML::Load(text);
  if (root.IsNull()) return absl::OkStatus();
  if (!root.IsMap()) return absl::InvalidArgumentError("it must be lines of 'key: value'");
  for (const auto& entry : root) {
    const std::string key = entry.first.as<std::string>();
    const YAML::Node& value = entry.second;
    const bool flag_wins = std::find(given.begin(), given.end(), key) != given.end();
    if (key == "listen") {
      std::vector<std::string> all;
      if (value.IsScalar()) {
        all.push_back(value.as<std::string>());
      } else if (value.IsSequence()) {
        all = value.as<std::vector<std::string>>();
      } else {
        return Bad(key, "an address or a list of addresses");
      }
      if (!flag_wins) options.listen = all;
      continue;
    }
    uint32_t* percent = key == "pool-low-percent"        ? &options.pool_low_percent
                        : key == "pool-critical-percent" ? &options.pool_critical_percent
                                                         : nullptr;
    if (percent != nullptr) {
      uint32_t number = 0;
      if (!value.IsScalar() || !absl::SimpleAtoi(value.as<std::string>(), &number)) {
        return Bad(key, "a number from 1 to 100");
      }
      if (!flag_wins) *percent = number;
      continue;
    }
    std::string* target = key == "data-dir"  ? &options.data_dir
                          : key == "site"    ? &options.site
                          : key == "run-dir" ? &options.run_dir
                          : key == "node"    ? &options.node
                                             : nullptr;
    if (target == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown key '", absl::CHexEscape(key),
                       "'; use data-dir, site, listen, run-dir, node, pool-low-percent, "
                       "pool-critical-percent"));
    }
    if (!value.IsScalar()) return Bad(key, "one value");
    if (!flag_wins) *target = value.as<std::string>();
  }
  return absl::OkStatus();
} catch (const YAML::Exception& error) {
  return absl::InvalidArgumentError(error.what());
}

absl::StatusOr<ListenAddress> ParseListenAddress(absl::string_view text) {
  ListenAddress address;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    address.is_unix = true;
    address.path = std::string(rest);
    if (absl::Status status = CheckPath("socket path", rest); !status.ok()) return status;
    if (rest.size() >= sizeof(sockaddr_un::sun_path)) {
      return absl::InvalidArgumentError(absl::StrCat("the socket path '", rest, "' is longer than ",
                                                     sizeof(sockaddr_un::sun_path) - 1,
                                                     " bytes; use a shorter directory"));
    }
    return address;
  }
  const size_t colon = rest.rfind(':');
  if (!absl::ConsumePrefix(&rest, "tcp:") || colon < 4) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen on '", absl::CHexEscape(text),
                                                   "'; give unix:PATH or tcp:HOST:PORT"));
  }
  const absl::string_view host = text.substr(4, colon - 4);
  uint32_t port = 0;
  if (host.empty() || !absl::SimpleAtoi(text.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on '", absl::CHexEscape(text),
                     "'; give tcp:HOST:PORT with a port up to 65535"));
  }
  address.host_port = std::string(rest);
  in_addr v4{};
  const std::string bare(absl::StripSuffix(absl::StripPrefix(host, "["), "]"));
  const bool v4_loopback =
      inet_pton(AF_INET, bare.c_str(), &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
  address.is_loopback = v4_loopback || bare == "::1" || bare == "localhost";
  return address;
}

ParsedOptions ParseOptions(int argc, const char* const* argv) {
  DaemonOptions options;
  std::string config = kDefaultConfig;
  CLI::App app(kDescription, "braidd");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("braidd ") + BRAID_VERSION);
  app.add_option("--data-dir", options.data_dir, "where the site's state is kept")
      ->capture_default_str();
  app.add_option("--site", options.site, "name of the site; needed at its first start only");
  app.add_option("--listen", options.listen,
                 absl::StrCat("unix:PATH or tcp:HOST:PORT; may be given again. TCP is neither "
                              "encrypted nor authenticated: keep it to loopback [",
                              kDefaultListen, "]"))
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--run-dir", options.run_dir, "for locks that end with the machine")
      ->capture_default_str();
  app.add_option("--node", options.node, "what this machine is called [its host name]");
  app.add_option("--pool-low-percent", options.pool_low_percent,
                 "warn when this much of a pool is taken")
      ->capture_default_str();
  app.add_option("--pool-critical-percent", options.pool_critical_percent,
                 "and again, louder, at this much")
      ->capture_default_str();
  // In no group, so in no help; braidd(8) has it.
  app.add_option("--test-commit-delay-ms", options.test_commit_delay_ms)
      ->check(CLI::Range(0, 60'000))
      ->group("");
  CLI::Option* config_option =
      app.add_option("--config", config, "configuration file; the default may be absent")
          ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool asked = error.get_exit_code() == 0;  // --help, --version
    if (asked) return {.options = {}, .finished = true, .exit_status = app.exit(error)};
    std::fprintf(stderr, "braidd: %s; braidd --help says how\n", error.what());
    return {.options = {}, .finished = true, .exit_status = 2};
  }
  std::vector<std::string> given;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) given.push_back(option->get_lnames().front());
  }
  absl::StatusOr<std::string> text = ReadConfig(config, config_option->count() > 0);
  if (!text.ok()) return Mistake(text.status());
  absl::Status status = ApplyConfig(*text, given, options);
  if (!status.ok()) {
    return Mistake(absl::InvalidArgumentError(absl::StrCat(config, ": ", status.message())));
  }
  status = CheckOptions(options);
  if (!status.ok()) return Mistake(status);
  return {.options = std::move(options)};
}

}  // namespace braid
