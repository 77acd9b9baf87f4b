// braid help, braid completion
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tools/cli/commands.h"
#include "tools/cli/completion.h"
#include "tools/cli/help.h"

namespace braid::cli {

void AddHelpCommands(CLI::App& root, Context& context) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = AddVerb(root, "completion",
                           "Print what teaches a shell to complete commands, options, and the "
                           "names of volumes and devices.",
                           "source <(braid completion bash)       # in ~/.bashrc\n"
                           "source <(braid completion zsh)        # in ~/.zshrc\n"
                           "braid completion fish | source        # in config.fish");
  AddChoice(*verb, "SHELL", shell.get(), {"bash", "zsh", "fish"}, "bash, zsh or fish.")->required();
  verb->callback([&context, shell] {
    context.action = [&context, shell] {
      context.out << CompletionScript(*shell);
      return absl::OkStatus();
    };
  });

  auto words = std::make_shared<std::vector<std::string>>();
  auto manual = std::make_shared<bool>(false);
  verb = AddVerb(root, "help", "Show what a command is for, its options and examples.",
                 "braid help volume create\n"
                 "braid help --man | man -l -             # all of it, as a manual page");
  verb->add_option("COMMAND", *words, "The noun and the verb.")->type_name("COMMAND");
  verb->add_flag("--man", *manual, "Print the manual page, as troff.");
  verb->callback([&context, &root, words, manual] {
    const CLI::App* app = &root;
    for (const std::string& word : *words) {
      const CLI::App* found = nullptr;
      for (const CLI::App* command : app->get_subcommands({})) {
        if (command->get_name() == word) found = command;
      }
      if (found == nullptr) {
        throw CLI::ValidationError(
            "help", absl::StrCat("there is no command '", absl::StrJoin(*words, " "), "'"));
      }
      app = found;
    }
    context.action = [&context, &root, app, manual] {
      context.out << (*manual ? ManualPage(root) : app->help());
      return absl::OkStatus();
    };
  });
}

}  // namespace braid::cli
