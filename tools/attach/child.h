// A child process: started with nothing of ours but what it needs, watched to its end.
#ifndef BRAID_TOOLS_ATTACH_CHILD_H_
#define BRAID_TOOLS_ATTACH_CHILD_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/log.h"

namespace braid::attach {

// At most one process at a time; the object may start another after the first ended.
// The destructor kills what still runs, and waits for it.
class Child {
 public:
  // `why` is OK for exit status 0, Aborted when a signal killed it, Unknown for any other
  // exit status. The child is gone by then, and Start may be called again.
  using Ended = std::function<void(absl::Status why)>;

  // `name` stands before the child's lines in the log; `death_signal` is what the child gets
  // when we die.
  Child(EventLoop* loop, Log* log, std::string name, int death_signal);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // argv[0] is looked up in PATH. The child is in its own process group, has a clean
  // environment, /dev/null as standard input and output, a pipe to the
  // log as standard error, and no other descriptor; `listen_fd`, unless negative, is passed
  // as systemd's socket activation does.
  // Fails when it could not be started; `ended` is called only after an OK.
  absl::Status Start(const std::vector<std::string>& argv, int listen_fd, Ended ended);

  void Signal(int number);
  bool running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }  // 0 when none runs
  int pidfd() const { return pidfd_.get(); }
  // What the user should see of what the child wrote since it was started: its last line
  // that has "error" in it, else its last line, else "".
  const std::string& complaint() const { return last_error_.empty() ? last_line_ : last_error_; }

 private:
  void ReadOutput();
  void TakeLine(absl::string_view line);
  void OnExit();

  EventLoop* const loop_;
  Log* const log_;
  const std::string name_;
  const int death_signal_;
  pid_t pid_ = 0;
  UniqueFd pidfd_;
  UniqueFd output_;
  Ended ended_;
  std::string partial_;
  std::string last_line_;
  std::string last_error_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_CHILD_H_
