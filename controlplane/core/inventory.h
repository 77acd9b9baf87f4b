// Which devices a site has: taking them in, looking after them, letting them go.
//
// Power may fail between the label and the record. A device is labelled first and
// recorded after, and un-recorded first and wiped after: so whatever is recorded has its
// label, and a crash leaves at worst a device that nothing refers to with a label of this
// cluster. Nothing on such a device tells "never used" from "used by a store that was lost
// since" (from which devices are to bring the map back, one day); so taking it in again
// needs `force`, and the message says so.
#ifndef BRAID_CONTROLPLANE_CORE_INVENTORY_H_
#define BRAID_CONTROLPLANE_CORE_INVENTORY_H_

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "controlplane/core/site_state.h"
#include "lib/format/label.h"

namespace braid {

struct DeviceSpec {
  std::string path;
  std::string device_class;
  std::string name;  // "": the last part of the path
  std::string node;  // "": the control plane's
  bool force = false;
};

struct DeviceStatus {
  DeviceUse use;
  // Why it is missing; "" while it is online.
  std::string problem;
};

// "" when the device of this record is there, else why it is missing. Touches the device.
std::string DeviceProblem(const SiteState& state, const DeviceRecord& record);

// Thread-safe. Devices are touched without any lock of the state held, so one that hangs
// holds up only what needs it, and other AddDevice and RemoveDevice.
class Inventory {
 public:
  explicit Inventory(SiteState* state) : state_(*state) {}

  // Errors: see AddDevice in inventory.proto. On any error nothing was taken in.
  absl::StatusOr<DeviceStatus> AddDevice(const DeviceSpec& spec) ABSL_LOCKS_EXCLUDED(mu_);
  // By name.
  std::vector<DeviceStatus> ListDevices() const;
  // The device as it was. `problem` says so when its label could not be wiped.
  absl::StatusOr<DeviceStatus> RemoveDevice(absl::string_view name, bool dry_run)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Each check of AddDevice that may refuse.
  absl::Status CheckSpec(const DeviceSpec& spec) const;
  absl::Status CheckNotInPool(const DeviceSpec& spec) const;
  absl::Status CheckFoundLabel(const DeviceSpec& spec, BlockDevice& device) const;
  absl::Status CheckNoData(const DeviceSpec& spec) const;

  SiteState& state_;
  // One device comes or goes at a time. Taken before the locks of the state.
  absl::Mutex mu_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_INVENTORY_H_
