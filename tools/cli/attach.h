// Attaching a volume to this machine, for `attach` and for what needs a holder for a while.
#ifndef BRAID_TOOLS_CLI_ATTACH_H_
#define BRAID_TOOLS_CLI_ATTACH_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.pb.h"
#include "braid/v1/volume.pb.h"
#include "tools/cli/context.h"

namespace braid::cli {

// An attachment that runs answers at once; one that does not is told of, not waited for.
inline constexpr absl::Duration kAskTimeout = absl::Seconds(2);

struct AttachArgs {
  std::string name;
  bool list = false;
  std::string via = "auto";
  std::string socket;
  bool read_only = false;
  uint32_t connections = 0;
  uint32_t threads = 0;
};

struct Attached {
  v1::LocalAttachment attachment;
  std::string directory;  // that DetachAttachment takes
  std::string via;
  std::string reason;  // why `auto` chose that; empty when it was asked for
};
// Starts a braid-attach for the volume. AlreadyExists: one runs here, and the message says
// where.
absl::StatusOr<Attached> AttachVolume(Context& context, const v1::Volume& volume,
                                      const AttachArgs& args);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_ATTACH_H_
