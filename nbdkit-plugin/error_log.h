// Says each kind of error once in a while, so that a dead device under load leaves a
// trace in the log rather than filling the disk that the log is on.
#ifndef BRAID_NBDKIT_PLUGIN_ERROR_LOG_H_
#define BRAID_NBDKIT_PLUGIN_ERROR_LOG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace braid {

class ErrorLog {
 public:
  // Of one kind, a line in this long.
  static constexpr absl::Duration kInterval = absl::Seconds(10);

  // An error of the kind (verb, error) came at `now`. Returns the line to log: the
  // message, and how many of its kind were left out since the last one; or nothing.
  // Thread-safe. Kinds are few: verbs of this plugin times errno.
  std::optional<std::string> Line(absl::string_view verb, int error, absl::string_view message,
                                  absl::Time now);

 private:
  struct Kind {
    absl::Time said = absl::InfinitePast();
    uint64_t left_out = 0;
  };
  absl::Mutex mu_;
  absl::flat_hash_map<std::pair<std::string, int>, Kind> kinds_ ABSL_GUARDED_BY(mu_);
};

// Without line ends and other control characters: messages of other processes, put into
// one line of a log.
std::string OneLine(absl::string_view text);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ERROR_LOG_H_
