// Help that teaches, and the manual page: both read off the tree of commands, so that
// neither can tell of an option that is not there.
#ifndef BRAID_TOOLS_CLI_HELP_H_
#define BRAID_TOOLS_CLI_HELP_H_

#include <string>

#include "CLI/App.hpp"

namespace braid::cli {

// Usage, what the command is for, its arguments and options, examples (the App's
// footer) and exit status.
class HelpFormatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// "braid volume create".
std::string CommandPath(const CLI::App& app);
// "braid volume create NAME --size SIZE [OPTIONS]".
std::string Usage(const CLI::App& app);

// braid(1), for man.
std::string ManualPage(const CLI::App& root);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_HELP_H_
