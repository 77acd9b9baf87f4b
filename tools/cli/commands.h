// The tree of commands. Each function hangs one noun, with its verbs, options, help and
// examples, under `root`; what the chosen command does lands in `context.action`.
//
// Help, the manual page and shell completion are all read off this tree: an option's
// type name says what completes it (VOLUME, DEVICE, CLASS, PATH, COMMAND, or a|b|c).
#ifndef BRAID_TOOLS_CLI_COMMANDS_H_
#define BRAID_TOOLS_CLI_COMMANDS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "tools/cli/context.h"

namespace braid::cli {

// The whole tree, under a root that has the global options. `context` outlives it.
std::unique_ptr<CLI::App> BuildCommandTree(Context& context);

void AddDeviceCommands(CLI::App& root, Context& context);
void AddPoolCommands(CLI::App& root, Context& context);
void AddVolumeCommands(CLI::App& root, Context& context);
void AddVolumeCreateCommand(CLI::App& volume, Context& context);
void AddVolumeResizeCommand(CLI::App& volume, Context& context);
void AddVolumeReclaimCommand(CLI::App& volume, Context& context);
void AddSiteCommands(CLI::App& root, Context& context);  // and `status`
void AddExplainCommand(CLI::App& root, Context& context);
void AddAttachCommands(CLI::App& root, Context& context);  // and `detach`
void AddHelpCommands(CLI::App& root, Context& context);    // and `completion`

// A noun, which must be followed by a verb.
CLI::App* AddNoun(CLI::App& root, const std::string& name, const std::string& purpose);
// A command that does something. `purpose` is one sentence; `examples` are lines as
// typed, with comments after #.
CLI::App* AddVerb(CLI::App& parent, const std::string& name, const std::string& purpose,
                  const std::string& examples);

// Options of a kind. What cannot be read is the caller's misuse: exit status 2.
CLI::Option* AddSize(CLI::App& command, const std::string& name, uint64_t* bytes,
                     const std::string& description);
CLI::Option* AddChoice(CLI::App& command, const std::string& name, std::string* value,
                       const std::vector<std::string>& choices, const std::string& description);
// A whole number from 1.
CLI::Option* AddCount(CLI::App& command, const std::string& name, uint32_t* value,
                      const std::string& description);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_COMMANDS_H_
