// Attachments on this machine: starting braid-attach, and talking to those that run.
//
// Each attachment has a directory <run_dir>/attach/<volume-uuid>; the braid-attach that
// owns it listens on the Unix socket `ctl` there, one request a connection, in lines:
//   "status"                      -> one line of JSON, a LocalAttachment
//   "detach" or "detach force"    -> "progress <text>" lines, then "ok" or "error <why>"
// A braid-attach that starts writes one line to the descriptor it was given, when the
// volume is usable: the LocalAttachment, or {"error": "<why>"}.
#ifndef BRAID_TOOLS_CLI_LOCAL_ATTACH_H_
#define BRAID_TOOLS_CLI_LOCAL_ATTACH_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.pb.h"

namespace braid::cli {

// What this machine can do, as far as choosing a way to attach needs it.
struct Machine {
  bool nbd = false;  // /dev/nbd0 is there and opens, and we may configure it
  bool fuse = false;
  // Why not, for people; empty when it can.
  std::string nbd_problem;
  std::string fuse_problem;

  // Looks; loads the nbd module when that is allowed and it is not there.
  static Machine Look();
};

struct ViaChoice {
  std::string via;     // "nbd", "fuse" or "socket"
  std::string reason;  // why `auto` chose it; empty when it was asked for
};
// `wanted` is "auto", "nbd", "fuse" or "socket". FailedPrecondition when this machine
// cannot do what is wanted.
absl::StatusOr<ViaChoice> ChooseVia(absl::string_view wanted, const Machine& machine);

std::string AttachDirectory(absl::string_view run_dir, absl::string_view volume_id);

// Makes the directory that those of the attachments lie in, for root alone; fine when it
// is there. FailedPrecondition when `run_dir` is not: the site runs on another machine.
absl::Status MakeAttachParent(const std::string& run_dir);

// BRAID_ATTACH_PROGRAM; braid-attach beside this program, or in ../attach as in a build
// directory; in PATH. NotFound says where it was looked for.
absl::StatusOr<std::string> FindAttachProgram();

// Starts `program` with `arguments` and "--ready-fd N", and waits until it reports. Its
// process goes on in the background. The error is its own, or says that it ended or did
// not report within `timeout`.
absl::StatusOr<v1::LocalAttachment> StartAttachment(const std::string& program,
                                                    const std::vector<std::string>& arguments,
                                                    absl::Duration timeout);

// What the owner of `directory` reports. NotFound: nobody owns it.
absl::StatusOr<v1::LocalAttachment> AskAttachment(const std::string& directory,
                                                  absl::Duration timeout);

// Of all attachments under `run_dir`, by name of their volumes. One that does not answer
// is listed with last_error set.
v1::LocalAttachments ListAttachments(const std::string& run_dir, absl::Duration timeout);

// NotFound: nobody owns `directory`. `progress` gets what is to be shown meanwhile.
// `timeout` is for each line.
absl::Status DetachAttachment(const std::string& directory, bool force, absl::Duration timeout,
                              const std::function<void(absl::string_view)>& progress);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_LOCAL_ATTACH_H_
