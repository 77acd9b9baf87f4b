// What braid-attach says about its attachment: one line of JSON, the LocalAttachment of
// controlplane/proto/braid/v1/attachment.proto in protobuf's JSON mapping with the field
// names of the .proto file (64-bit numbers as strings). Written here, by hand, so that no
// protobuf lives in the process that must be small.
#ifndef BRAID_TOOLS_ATTACH_REPORT_H_
#define BRAID_TOOLS_ATTACH_REPORT_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace braid::attach {

struct Report {
  std::string volume;
  std::string volume_id;
  std::string via;
  std::string uri;
  std::string path;
  pid_t pid = 0;
  pid_t server_pid = 0;
  uint64_t restarts = 0;
  int64_t since_unix_seconds = 0;
  bool read_only = false;
  std::string last_error;
};

// No newline at the end, nor anywhere in it.
std::string ToJson(const Report& report);
// {"error":"…"}; line breaks in `message` become spaces.
std::string ErrorJson(absl::string_view message);

// In quotes. Valid JSON for any bytes: what is not UTF-8 becomes U+FFFD.
std::string JsonString(absl::string_view text);

// nbd+unix:///?socket=PATH, percent-encoded.
std::string SocketUri(absl::string_view socket_path);

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_REPORT_H_
