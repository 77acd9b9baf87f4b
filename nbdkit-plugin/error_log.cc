#include "nbdkit-plugin/error_log.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace braid {

std::optional<std::string> ErrorLog::Line(absl::string_view verb, int error,
                                          absl::string_view message, absl::Time now) {
  absl::MutexLock lock(&mu_);
  Kind& kind = kinds_[{std::string(verb), error}];
  if (now - kind.said < kInterval) {
    ++kind.left_out;
    return std::nullopt;
  }
  std::string line = OneLine(message);
  if (kind.left_out > 0)
    absl::StrAppend(&line, " (", kind.left_out, " more like it since the last such line)");
  kind.said = now;
  kind.left_out = 0;
  return line;
}

std::string OneLine(absl::string_view text) {
  // Long enough for any message of ours; a server that sends more fills no log with it.
  constexpr size_t kMaxBytes = 1000;
  std::string line(text.substr(0, kMaxBytes));
  for (char& c : line)
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  return line;
}

}  // namespace braid
