#include "tools/cli/help.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tools/cli/text.h"

namespace braid::cli {
namespace {

// Where descriptions begin.
constexpr size_t kColumn = 28;

constexpr absl::string_view kExitStatus[][2] = {
    {"0", "done"},
    {"1", "refused or failed; standard error says why, and what to do"},
    {"2", "the command line itself is wrong; nothing was asked of the site"},
};

std::vector<const CLI::App*> Subcommands(const CLI::App& app) { return app.get_subcommands({}); }

std::vector<const CLI::Option*> Positionals(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->get_positional(); });
}
std::vector<const CLI::Option*> Options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return option->nonpositional(); });
}

bool TakesValue(const CLI::Option& option) { return option.get_expected_max() > 0; }

// "--size SIZE", "-h, --help".
std::string OptionName(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back(absl::StrCat("-", name));
  for (const std::string& name : option.get_lnames()) names.push_back(absl::StrCat("--", name));
  std::string text = absl::StrJoin(names, ", ");
  if (TakesValue(option)) absl::StrAppend(&text, " ", option.get_type_name());
  return text;
}

// "NAME", "[NAME]", "[COMMAND]...".
std::string PositionalName(const CLI::Option& option) {
  std::string text = option.get_name(true);
  if (!option.get_required()) text = absl::StrCat("[", text, "]");
  if (option.get_expected_max() > 1) text += "...";
  return text;
}

std::string Indented(absl::string_view lines) {
  std::string out;
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    absl::StrAppend(&out, "  ", line, "\n");
  }
  return out;
}

std::string OptionLines(const std::vector<const CLI::Option*>& options) {
  std::string out;
  for (const CLI::Option* option : options) {
    out += Wrapped(absl::StrCat("  ", option->get_positional() ? PositionalName(*option)
                                                               : OptionName(*option)),
                   option->get_description(), kColumn);
  }
  return out;
}

const CLI::App& Root(const CLI::App& app) {
  const CLI::App* root = &app;
  while (root->get_parent() != nullptr) root = root->get_parent();
  return *root;
}

// ---- troff

// Text of a manual page: nothing in it is a request, a minus is a minus.
std::string Troff(absl::string_view text) {
  std::string out = absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}});
  if (absl::StartsWith(out, ".") || absl::StartsWith(out, "'")) out.insert(0, "\\&");
  return out;
}

std::string ManOptions(const std::vector<const CLI::Option*>& options) {
  std::string out;
  for (const CLI::Option* option : options) {
    absl::StrAppend(&out, ".TP\n.B ",
                    Troff(option->get_positional() ? PositionalName(*option) : OptionName(*option)),
                    "\n", Troff(option->get_description()), "\n");
  }
  return out;
}

std::string ManExamples(const CLI::App& app) {
  if (app.get_footer().empty()) return "";
  std::string out = ".PP\n.EX\n";
  for (const absl::string_view line : absl::StrSplit(app.get_footer(), '\n')) {
    absl::StrAppend(&out, Troff(line), "\n");
  }
  return out + ".EE\n";
}

// Every command that does something, depth first.
std::string ManCommands(const CLI::App& app) {
  std::string out;
  for (const CLI::App* command : Subcommands(app)) {
    if (!Subcommands(*command).empty()) {
      out += ManCommands(*command);
      continue;
    }
    // -h is told of once, for all.
    std::vector<const CLI::Option*> options = Options(*command);
    options.erase(std::remove(options.begin(), options.end(), command->get_help_ptr()),
                  options.end());
    absl::StrAppend(&out, ".SS ", Troff(Usage(*command)), "\n", Troff(command->get_description()),
                    "\n", ManOptions(Positionals(*command)), ManOptions(options),
                    ManExamples(*command));
  }
  return out;
}

}  // namespace

std::string CommandPath(const CLI::App& app) {
  if (app.get_parent() == nullptr) return app.get_name();
  return absl::StrCat(CommandPath(*app.get_parent()), " ", app.get_name());
}

std::string Usage(const CLI::App& app) {
  std::string out = CommandPath(app);
  const bool noun = !Subcommands(app).empty();
  if (app.get_parent() == nullptr) absl::StrAppend(&out, " [OPTIONS]");
  if (noun) absl::StrAppend(&out, app.get_parent() == nullptr ? " NOUN VERB ..." : " VERB ...");
  for (const CLI::Option* option : Positionals(app)) {
    absl::StrAppend(&out, " ", PositionalName(*option));
  }
  bool optional = false;
  for (const CLI::Option* option : Options(app)) {
    if (option->get_required()) {
      absl::StrAppend(&out, " ", OptionName(*option));
    } else if (option != app.get_help_ptr()) {
      optional = true;
    }
  }
  if (optional && !noun) absl::StrAppend(&out, " [OPTIONS]");
  return out;
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string /*name*/,
                                     CLI::AppFormatMode /*mode*/) const {
  const CLI::App& root = Root(*app);
  std::string out =
      absl::StrCat("Usage: ", Usage(*app), "\n\n", Wrapped("", app->get_description(), 0));
  if (const auto commands = Subcommands(*app); !commands.empty()) {
    absl::StrAppend(&out, "\nCommands:\n");
    for (const CLI::App* command : commands) {
      if (Subcommands(*command).empty()) {
        out +=
            Wrapped(absl::StrCat("  ", CommandPath(*command)), command->get_description(), kColumn);
      }
      for (const CLI::App* verb : Subcommands(*command)) {
        out += Wrapped(absl::StrCat("  ", CommandPath(*verb)), verb->get_description(), kColumn);
      }
    }
  }
  if (const auto positionals = Positionals(*app); !positionals.empty()) {
    absl::StrAppend(&out, "\nArguments:\n", OptionLines(positionals));
  }
  if (app == &root) {
    absl::StrAppend(&out, "\nOptions of every command:\n", OptionLines(Options(root)));
  } else {
    absl::StrAppend(&out, "\nOptions:\n", OptionLines(Options(*app)));
    std::vector<std::string> global;
    for (const CLI::Option* option : Options(root)) {
      if (option != root.get_help_ptr()) global.push_back(OptionName(*option));
    }
    out +=
        Wrapped("  and of every command:", absl::StrCat(absl::StrJoin(global, ", "), "."), kColumn);
  }
  if (!app->get_footer().empty()) {
    absl::StrAppend(&out, "\nExamples:\n", Indented(app->get_footer()));
  }
  absl::StrAppend(&out, "\nExit status:\n");
  for (const auto& [status, meaning] : kExitStatus) {
    absl::StrAppend(&out, "  ", status, "  ", meaning, "\n");
  }
  return out;
}

std::string ManualPage(const CLI::App& root) {
  std::string out = absl::StrCat(
      ".\\\" Made by \"braid help --man\" from the program's own tree of commands.\n"
      ".TH BRAID 1 \"\" \"Braid ",
      BRAID_VERSION, "\" \"Braid\"\n.SH NAME\nbraid \\- everything an operator does with Braid\n",
      ".SH SYNOPSIS\n.nf\n");
  for (const CLI::App* command : Subcommands(root)) {
    if (Subcommands(*command).empty()) absl::StrAppend(&out, ".B ", Troff(Usage(*command)), "\n");
    for (const CLI::App* verb : Subcommands(*command)) {
      absl::StrAppend(&out, ".B ", Troff(Usage(*verb)), "\n");
    }
  }
  absl::StrAppend(
      &out, ".fi\n.SH DESCRIPTION\n", Troff(root.get_description()),
      "\n.PP\nA site is run by\n.BR braidd ;\n.B braid\n"
      "asks it over gRPC. A volume is named\n.I name\nor\n.IR site/name ,\n"
      "or by its UUID. Sizes are written like 512, 64K, 4M, 10G or 1T, in powers of 1024.\n"
      ".SH OPTIONS\nThey may stand before or after the command.\n",
      ManOptions(Options(root)), ManExamples(root), ".SH COMMANDS\n", ManCommands(root),
      ".SH ENVIRONMENT\n"
      ".TP\n.B BRAID_CONTROL\nThe site to ask where\n.B \\-\\-control\ndoes not say.\n"
      ".TP\n.B BRAID_ATTACH_PROGRAM\nThe\n.B braid\\-attach\nto start.\n"
      ".TP\n.B NO_COLOR\nWhen set and not empty, tables have no colour.\n"
      ".SH EXIT STATUS\n");
  for (const auto& [status, meaning] : kExitStatus) {
    absl::StrAppend(&out, ".TP\n.B ", status, "\n", meaning, "\n");
  }
  absl::StrAppend(&out,
                  ".SH FILES\n"
                  ".TP\n.I /run/braid/braidd.sock\nThe control plane's socket.\n"
                  ".SH SEE ALSO\n.BR nbdkit (1),\n.BR nbdfuse (1),\n.BR nbd (4)\n");
  return out;
}

}  // namespace braid::cli
