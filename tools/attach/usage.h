// Who uses a file or block device on this machine: for a refusal that names them.
#ifndef BRAID_TOOLS_ATTACH_USAGE_H_
#define BRAID_TOOLS_ATTACH_USAGE_H_

#include <sys/types.h>

#include <string>

#include "absl/strings/string_view.h"

namespace braid::attach {

// "mounted at /mnt", "used by dm-0", "used as swap", "the backing file of /dev/loop3", "open
// in process 4711 (fio)"; "" when nothing was found. Never opens or stats `path` itself, as
// its server may be the very one that is dead. Reads /proc and /sys: what this process may
// not see, it does not find.
std::string UserOfFile(const std::string& path);
std::string UserOfBlockDevice(const std::string& path, dev_t number);

// "process 4711 (fio)".
std::string DescribeProcess(pid_t pid);

// True when something is mounted at exactly `path` (of any kind, dead or alive).
bool IsMountPoint(const std::string& path);

// A path as /proc/self/mountinfo writes it, decoded: "\040" is a space.
std::string DecodeMountPath(absl::string_view text);

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_USAGE_H_
