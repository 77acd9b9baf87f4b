// What every command of `braid` has at hand: the options before and after the noun, the
// site, and where to write.
#ifndef BRAID_TOOLS_CLI_CONTEXT_H_
#define BRAID_TOOLS_CLI_CONTEXT_H_

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tools/cli/client.h"

namespace braid::cli {

inline constexpr char kDefaultControl[] = "unix:/run/braid/braidd.sock";
// Long enough for a busy site, short enough for a person to wait.
inline constexpr absl::Duration kDefaultTimeout = absl::Seconds(30);

struct Context {
  Context(std::ostream& output, std::ostream& error) : out(output), err(error) {}

  std::ostream& out;
  std::ostream& err;
  bool in_is_terminal = false;
  bool err_is_terminal = false;
  bool color = false;  // on `out`

  ControlAddress control;
  bool json = false;
  absl::Duration timeout = kDefaultTimeout;
  bool timeout_given = false;

  // What the command line asks for: set while it is parsed, run after. Its status
  // becomes the program's exit status and its message.
  std::function<absl::Status()> action;

  // The site at `control`.
  SiteClient& site() {
    if (site_ == nullptr) site_ = std::make_unique<SiteClient>(control, timeout);
    return *site_;
  }

 private:
  std::unique_ptr<SiteClient> site_;
};

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_CONTEXT_H_
