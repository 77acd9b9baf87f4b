#include <cstdlib>

// App.hpp declares what these define.
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/help.h"
#include "tools/cli/text.h"

namespace braid::cli {
namespace {

// What the operator typed is wrong: CLI11's way to say so.
CLI::ValidationError Misuse(const std::string& name, absl::string_view why) {
  return CLI::ValidationError(name, std::string(why));
}

// "5", "1.5", "500ms", "2m".
absl::Duration ParseTimeout(const std::string& text) {
  double seconds = 0;
  absl::Duration timeout;
  if (absl::SimpleAtod(text, &seconds)) {
    timeout = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &timeout)) {
    throw Misuse("--timeout",
                 absl::StrCat("'", text, "' is no time; write it like 5, 500ms or 2m"));
  }
  // A day bounds the arithmetic on deadlines; it also refuses what is not a number.
  if (!(timeout > absl::ZeroDuration() && timeout <= absl::Hours(24))) {
    throw Misuse("--timeout", absl::StrCat("'", text, "' is not above 0 and up to 24h"));
  }
  return timeout;
}

// Which site: what was typed, else the environment's, else the default.
void ChooseControl(Context& context, const std::string& typed) {
  const char* set = std::getenv("BRAID_CONTROL");
  const bool from_environment = typed.empty() && set != nullptr && *set != '\0';
  const std::string text = from_environment ? set : typed.empty() ? kDefaultControl : typed;
  absl::StatusOr<ControlAddress> address = ControlAddress::Parse(text);
  if (!address.ok()) {
    throw Misuse(from_environment ? "BRAID_CONTROL" : "--control", address.status().message());
  }
  context.control = *std::move(address);
}

}  // namespace

CLI::App* AddNoun(CLI::App& root, const std::string& name, const std::string& purpose) {
  CLI::App* noun = root.add_subcommand(name, purpose);
  noun->footer("");
  noun->require_subcommand(1);
  return noun;
}

CLI::App* AddVerb(CLI::App& parent, const std::string& name, const std::string& purpose,
                  const std::string& examples) {
  CLI::App* verb = parent.add_subcommand(name, purpose);
  verb->footer(examples);
  verb->require_subcommand(0);
  return verb;
}

CLI::Option* AddSize(CLI::App& command, const std::string& name, uint64_t* bytes,
                     const std::string& description) {
  return command
      .add_option_function<std::string>(
          name,
          [name, bytes](const std::string& text) {
            const absl::StatusOr<uint64_t> size = ParseSize(text);
            if (!size.ok()) throw Misuse(name, std::string(size.status().message()));
            *bytes = *size;
          },
          description)
      ->type_name("SIZE");
}

CLI::Option* AddChoice(CLI::App& command, const std::string& name, std::string* value,
                       const std::vector<std::string>& choices, const std::string& description) {
  return command
      .add_option_function<std::string>(
          name,
          [name, value, choices](const std::string& text) {
            for (const std::string& choice : choices) {
              if (text == choice) {
                *value = text;
                return;
              }
            }
            throw Misuse(name,
                         absl::StrCat("'", text, "' is none of ", absl::StrJoin(choices, ", ")));
          },
          description)
      ->type_name(absl::StrJoin(choices, "|"));
}

CLI::Option* AddCount(CLI::App& command, const std::string& name, uint32_t* value,
                      const std::string& description) {
  return command
      .add_option_function<std::string>(
          name,
          [name, value](const std::string& text) {
            if (!absl::SimpleAtoi(text, value) || *value == 0) {
              throw Misuse(name, absl::StrCat("'", text, "' is not a whole number from 1"));
            }
          },
          description)
      ->type_name("N");
}

std::unique_ptr<CLI::App> BuildCommandTree(Context& context) {
  auto root = std::make_unique<CLI::App>(
      "Braid weaves the disks that servers already have into volumes that attach anywhere "
      "as block devices.",
      "braid");
  // Before the first subcommand: they take these settings over.
  root->formatter(std::make_shared<HelpFormatter>());
  root->set_help_flag("-h,--help", "Show this help, and do nothing else.");
  // Global options may stand behind the noun and the verb too.
  root->fallthrough();
  root->require_subcommand(1);

  root->set_version_flag("--version", "braid " BRAID_VERSION, "Show the version.");
  auto control = std::make_shared<std::string>();
  root->add_option("--control", *control,
                   absl::StrCat("The site to ask: unix:PATH, HOST:PORT or dns:///NAME:PORT. "
                                "Without it, the environment's BRAID_CONTROL, then ",
                                kDefaultControl, "."))
      ->type_name("ADDRESS");
  // After the options of all commands, and after --help, which works whatever they are.
  root->callback([&context, control] { ChooseControl(context, *control); });
  root->add_flag("--json", context.json,
                 "Print the API's messages as JSON, field names as in the .proto files.");
  root->add_option_function<std::string>(
          "--timeout",
          [&context](const std::string& text) {
            context.timeout = ParseTimeout(text);
            context.timeout_given = true;
          },
          "Wait this long for each answer: 5, 500ms, 2m. Default: 30s.")
      ->type_name("TIME");

  AddDeviceCommands(*root, context);
  AddPoolCommands(*root, context);
  AddVolumeCommands(*root, context);
  AddAttachCommands(*root, context);
  AddSiteCommands(*root, context);
  AddExplainCommand(*root, context);
  AddHelpCommands(*root, context);

  root->footer(
      "braid device add /dev/sdb --class ssd     # lend a disk to the site\n"
      "braid volume create db --size 10G --copies 2\n"
      "braid attach db                           # makes /dev/nbdX, or a file\n"
      "braid status                              # everything on one screen\n"
      "braid volume create --help                # what a command does, with examples");
  return root;
}

}  // namespace braid::cli
