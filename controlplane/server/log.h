// One line for each event, on standard error, as key=value pairs that people read and
// programs parse:
//
//   time=2026-11-20T09:45:00.123Z level=info msg="volume created" volume=v0 bytes=1048576
//
// Values with anything but plain characters are quoted and escaped, so no input can forge a
// line. Never give it secrets.
#ifndef BRAID_CONTROLPLANE_SERVER_LOG_H_
#define BRAID_CONTROLPLANE_SERVER_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace braid {

enum class LogLevel { kInfo, kWarning, kError };

struct LogField {
  template <typename T>
  LogField(absl::string_view k, const T& v) : key(k), value(absl::StrCat(v)) {}
  absl::string_view key;
  std::string value;
};

// Thread-safe; each event is one write(2).
void Log(LogLevel level, absl::string_view message, std::initializer_list<LogField> fields = {});

// The line without its time, with its newline: for tests.
std::string FormatLogLine(LogLevel level, absl::string_view message,
                          std::initializer_list<LogField> fields);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_LOG_H_
