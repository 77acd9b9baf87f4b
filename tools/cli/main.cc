// braid: the command. Reads the command line by the tree of commands, runs what it asks
// for, and turns the outcome into one line and an exit status.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tools/cli/commands.h"
#include "tools/cli/completion.h"
#include "tools/cli/help.h"
#include "tools/cli/text.h"

namespace braid::cli {
namespace {

constexpr int kDone = 0, kFailed = 1, kMisused = 2;

// Nobody waits for a key they pressed longer than this.
constexpr absl::Duration kCompletionTimeout = absl::Seconds(1);

// The innermost command that the line names.
const CLI::App& Innermost(const CLI::App& root) {
  const CLI::App* app = &root;
  while (!app->get_subcommands().empty()) app = app->get_subcommands().back();
  return *app;
}

// One line: what is wrong, and where help is.
std::string MisuseLine(const CLI::App& root, const CLI::ParseError& error) {
  const CLI::App& command = Innermost(root);
  std::string why = error.what();
  // CLI11 writes sentences; ours is the second part of one. Names stay as they are.
  if (why.size() > 1 && !absl::ascii_isupper(static_cast<unsigned char>(why[1]))) {
    why[0] = absl::ascii_tolower(static_cast<unsigned char>(why[0]));
  }
  if (!command.get_subcommands({}).empty()) {
    // It is a noun, and no verb of it follows.
    const std::vector<std::string> rest = root.remaining(/*recurse=*/true);
    std::string unknown;
    for (const std::string& word : rest) {
      if (unknown.empty() && !absl::StartsWith(word, "-")) unknown = word;
    }
    if (!unknown.empty()) {
      why = absl::StrCat("there is no command '", CommandPath(command), " ", unknown, "'");
    } else if (rest.empty()) {
      why = absl::StrCat("'", CommandPath(command), "' needs a command");
    }
  }
  return absl::StrCat("braid: ", Printable(why),
                      absl::StrContains(why, "; ") ? "; or see '" : "; see '", CommandPath(command),
                      " --help'");
}

// Names a site has, for completion; none when anything at all is wrong.
std::vector<std::string> NamesOfSite(const std::string& type, std::string control) {
  std::vector<std::string> names;
  const bool classes = type == "CLASS";
  if (classes) names = {"nvme", "ssd", "hdd-fast", "hdd-slow", "tape"};
  if (const char* set = std::getenv("BRAID_CONTROL"); control.empty() && set != nullptr) {
    control = set;
  }
  const auto address = ControlAddress::Parse(control.empty() ? kDefaultControl : control);
  if (!address.ok()) return names;
  SiteClient site(*address, kCompletionTimeout);
  if (type == "VOLUME") {
    const auto volumes = site.ListVolumes();
    if (!volumes.ok()) return names;
    for (const v1::Volume& volume : *volumes) {
      names.push_back(volume.name());
      names.push_back(absl::StrCat(volume.site(), "/", volume.name()));
    }
  } else {
    const auto devices = site.ListDevices();
    if (!devices.ok()) return names;
    for (const v1::Device& device : devices->devices()) {
      names.push_back(classes ? device.device_class() : device.name());
    }
  }
  return names;
}

int Run(int argc, char** argv) {
  Context context(std::cout, std::cerr);
  context.in_is_terminal = isatty(STDIN_FILENO) == 1;
  context.err_is_terminal = isatty(STDERR_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  context.color = isatty(STDOUT_FILENO) == 1 && (no_color == nullptr || *no_color == '\0');
  const std::unique_ptr<CLI::App> root = BuildCommandTree(context);

  if (argc > 1 && argv[1] == absl::string_view(kCompleteCommand)) {
    const std::vector<std::string> words(argv + 2, argv + argc);
    for (const std::string& candidate : Complete(*root, words, NamesOfSite)) {
      std::cout << Printable(candidate) << "\n";
    }
    return kDone;
  }
  try {
    root->parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::cout << Innermost(*root).help();
    return kDone;
  } catch (const CLI::CallForVersion&) {
    std::cout << root->version() << "\n";
    return kDone;
  } catch (const CLI::ParseError& error) {
    std::cerr << MisuseLine(*root, error) << "\n";
    return kMisused;
  }
  const absl::Status status = context.action();
  if (!status.ok()) {
    std::cout.flush();
    std::cerr << "braid: " << Printable(status.message()) << "\n";
    return kFailed;
  }
  std::cout.flush();
  if (!std::cout.good()) {
    std::cerr << "braid: the output could not be written; is the disk full?\n";
    return kFailed;
  }
  return kDone;
}

}  // namespace
}  // namespace braid::cli

int main(int argc, char** argv) {
  try {
    return braid::cli::Run(argc, argv);
  } catch (const std::exception& error) {
    // Of a library, as running out of memory; ours does not throw.
    std::cerr << "braid: " << error.what() << "\n";
    return 1;
  }
}
