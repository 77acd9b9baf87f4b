#include "tools/cli/completion.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace braid::cli {
namespace {

bool TakesValue(const CLI::Option& option) { return option.get_expected_max() > 0; }

// Of `app` or, as options fall through, of what stands above it.
const CLI::Option* FindOption(const CLI::App* app, const std::string& name) {
  for (; app != nullptr; app = app->get_parent()) {
    if (const CLI::Option* option = app->get_option_no_throw(name);
        option != nullptr && option->nonpositional()) {
      return option;
    }
  }
  return nullptr;
}

const CLI::App* FindCommand(const CLI::App& app, const std::string& name) {
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_name() == name) return command;
  }
  return nullptr;
}

// The words so far, understood.
struct Reading {
  const CLI::App* app = nullptr;
  std::vector<std::string> positionals;
  const CLI::Option* pending = nullptr;  // whose value comes next
  bool only_positionals = false;         // after "--"
  std::string control;
};

Reading Read(const CLI::App& root, const std::vector<std::string>& words) {
  Reading r;
  r.app = &root;
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    const std::string& word = words[i];
    if (r.pending != nullptr) {
      if (r.pending->check_lname("control")) r.control = word;
      r.pending = nullptr;
    } else if (!r.only_positionals && word == "--") {
      r.only_positionals = true;
    } else if (!r.only_positionals && absl::StartsWith(word, "-")) {
      const size_t equals = word.find('=');
      const CLI::Option* option = FindOption(r.app, word.substr(0, equals));
      if (option == nullptr || !TakesValue(*option)) continue;
      if (equals == std::string::npos) {
        r.pending = option;
      } else if (option->check_lname("control")) {
        r.control = word.substr(equals + 1);
      }
    } else if (const CLI::App* command = FindCommand(*r.app, word);
               command != nullptr && r.positionals.empty()) {
      r.app = command;
    } else {
      r.positionals.push_back(word);
    }
  }
  return r;
}

// Verbs below the words of `braid help WORD...`.
std::vector<std::string> CommandNames(const CLI::App& root, const std::vector<std::string>& path) {
  const CLI::App* app = &root;
  for (const std::string& name : path) {
    app = FindCommand(*app, name);
    if (app == nullptr) return {};
  }
  std::vector<std::string> names;
  for (const CLI::App* command : app->get_subcommands({})) names.push_back(command->get_name());
  return names;
}

std::vector<std::string> Values(const CLI::App& root, const CLI::Option& option,
                                const Reading& reading, const NameSource& names) {
  const std::string type = option.get_type_name();
  if (type == "PATH") return {kCompleteFiles};
  if (type == "COMMAND") return CommandNames(root, reading.positionals);
  if (type == "VOLUME" || type == "DEVICE" || type == "CLASS") return names(type, reading.control);
  if (absl::StrContains(type, "|")) return absl::StrSplit(type, '|');
  return {};
}

}  // namespace

std::vector<std::string> Complete(const CLI::App& root, const std::vector<std::string>& words,
                                  const NameSource& names) {
  const Reading reading = Read(root, words);
  std::string word = words.empty() ? "" : words.back();
  std::string before;  // of the word, already right: "--layout="
  std::vector<std::string> candidates;
  if (reading.pending != nullptr) {
    candidates = Values(root, *reading.pending, reading, names);
  } else if (const size_t equals = word.find('='); !reading.only_positionals &&
                                                   absl::StartsWith(word, "--") &&
                                                   equals != std::string::npos) {
    const CLI::Option* option = FindOption(reading.app, word.substr(0, equals));
    if (option != nullptr) candidates = Values(root, *option, reading, names);
    before = word.substr(0, equals + 1);
    word.erase(0, equals + 1);
  } else if (!reading.only_positionals && absl::StartsWith(word, "-")) {
    for (const CLI::App* app = reading.app; app != nullptr; app = app->get_parent()) {
      for (const CLI::Option* option : app->get_options({})) {
        for (const std::string& name : option->get_lnames()) {
          candidates.push_back(absl::StrCat("--", name));
        }
      }
    }
  } else if (const auto commands = reading.app->get_subcommands({}); !commands.empty()) {
    for (const CLI::App* command : commands) candidates.push_back(command->get_name());
  } else {
    std::vector<const CLI::Option*> positionals = reading.app->get_options(
        [](const CLI::Option* option) { return option->get_positional(); });
    // The last may take several words.
    if (!positionals.empty()) {
      const size_t index = std::min(reading.positionals.size(), positionals.size() - 1);
      const CLI::Option& positional = *positionals[index];
      if (index == reading.positionals.size() || positional.get_expected_max() > 1) {
        candidates = Values(root, positional, reading, names);
      }
    }
  }
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  std::vector<std::string> fitting;
  for (const std::string& candidate : candidates) {
    if (candidate == kCompleteFiles) return {candidate};
    // SITE/NAME is offered to those who type it so.
    if (absl::StrContains(candidate, "/") && !absl::StrContains(word, "/")) continue;
    if (absl::StartsWith(candidate, word)) fitting.push_back(before + candidate);
  }
  return fitting;
}

std::string CompletionScript(const std::string& shell) {
  if (shell == "bash") {
    // Bash breaks words at = and : by itself; the line is split anew at blanks, and what
    // bash takes for done is cut off the candidates.
    return R"(# braid completion for bash; put into your ~/.bashrc:
#   source <(braid completion bash)
_braid() {
  local line=${COMP_LINE:0:COMP_POINT} cur cut words
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  cur=${words[-1]}
  mapfile -t COMPREPLY < <("${words[0]}" complete-words "${words[@]:1}" 2>/dev/null)
  if [[ ${COMPREPLY[0]-} == :files ]]; then
    COMPREPLY=()
    compopt -o default
    return
  fi
  cut=${cur%"${cur##*[=:]}"}
  COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -F _braid braid
)";
  }
  if (shell == "zsh") {
    return R"(#compdef braid
# braid completion for zsh; put into your ~/.zshrc, after compinit:
#   source <(braid completion zsh)
_braid() {
  local -a candidates
  candidates=("${(@f)$("${words[1]}" complete-words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ ${candidates[1]-} == :files ]]; then
    _files
  elif [[ -n ${candidates[1]-} ]]; then
    compadd -- "${candidates[@]}"
  fi
}
compdef _braid braid
)";
  }
  if (shell == "fish") {
    return R"(# braid completion for fish; put into your ~/.config/fish/config.fish:
#   braid completion fish | source
function __braid_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l candidates ($words[1] complete-words $words[2..-1] 2>/dev/null)
  if test "$candidates[1]" = ":files"
    __fish_complete_path (commandline -ct)
  else
    printf '%s\n' $candidates
  end
end
complete -c braid -f -a '(__braid_complete)'
)";
  }
  return "";
}

}  // namespace braid::cli
