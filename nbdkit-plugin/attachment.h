// What a holder of a volume is granted, and what it needs of the process around it.
#ifndef BRAID_NBDKIT_PLUGIN_ATTACHMENT_H_
#define BRAID_NBDKIT_PLUGIN_ATTACHMENT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_change.h"

namespace braid {

struct Surroundings {
  // One line for people.
  std::function<void(absl::string_view line)> log;
  // Waits; false when there is no point in waiting any longer, because the process is
  // being shut down. Thread-safe.
  std::function<bool(absl::Duration)> sleep;
  // On the thread of a client's request: whether its client still waits for it. May be empty.
  std::function<bool()> request_is_wanted;
};

struct DeviceIdentity {
  Uuid id;  // what the label must say
  std::string name;
  std::string path;
  uint64_t size_bytes = 0;
};

// What was granted. Checked: every field within its bounds.
struct Attachment {
  std::string volume_id;
  std::string site;
  std::string name;
  Epoch epoch;
  Geometry geometry;
  std::vector<DeviceIdentity> devices;  // by DeviceIndex; of a thin volume, so far
  // The journal that was found tells what the last holder left; else it counts for nothing.
  bool takes_over = false;

  // Of thin volumes.
  bool thin = false;
  bool waits_when_full = false;
  absl::Duration full_timeout = absl::InfiniteDuration();  // of waits_when_full
  uint64_t applied_sequence = 0;  // the number of the last map change the site has applied
  std::vector<Grant> grants;      // that none of those has bound
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ATTACHMENT_H_
