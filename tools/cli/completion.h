// Shell completion, read off the tree of commands each time a key is pressed: the
// scripts only ask this program what could follow.
#ifndef BRAID_TOOLS_CLI_COMPLETION_H_
#define BRAID_TOOLS_CLI_COMPLETION_H_

#include <functional>
#include <string>
#include <vector>

#include "CLI/App.hpp"

namespace braid::cli {

// Printed instead of candidates where the shell shall complete file names.
inline constexpr char kCompleteFiles[] = ":files";
// The hidden first argument: "braid complete-words WORD...", the last being typed.
inline constexpr char kCompleteCommand[] = "complete-words";

// What a site has: `type` is "VOLUME", "DEVICE" or "CLASS"; `control` is the value of
// --control among the words, or empty. No names on any error.
using NameSource =
    std::function<std::vector<std::string>(const std::string& type, const std::string& control)>;

// What the last of `words` (those after the program's name) could become.
std::vector<std::string> Complete(const CLI::App& root, const std::vector<std::string>& words,
                                  const NameSource& names);

// For "bash", "zsh" or "fish"; empty for others.
std::string CompletionScript(const std::string& shell);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_COMPLETION_H_
