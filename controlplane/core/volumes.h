// Building, finding and deleting volumes.
#ifndef BRAID_CONTROLPLANE_CORE_VOLUMES_H_
#define BRAID_CONTROLPLANE_CORE_VOLUMES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/preparer.h"
#include "controlplane/core/site_state.h"
#include "controlplane/core/volume_spec.h"

namespace braid {

enum class VolumeHealth { kGood, kDegraded, kFaulty };

// A volume, with what is computed about it.
struct VolumeStatus {
  VolumePtr volume;
  VolumeHealth health = VolumeHealth::kGood;
  uint64_t stale_bytes = 0;
  uint64_t prepared_bytes = 0;
  bool alive = false;  // its holder is running
  std::vector<std::string> device_names;
};

// What a volume takes of one device.
struct DeviceShare {
  DevicePtr device;
  uint64_t bytes = 0;
};

struct CreatedVolume {
  VolumeStatus status;
  std::vector<DeviceShare> chosen;  // by DeviceIndex
};

// Thread-safe.
class Volumes {
 public:
  // All outlive it.
  Volumes(SiteState* state, Preparer* preparer, Attachments* attachments)
      : state_(*state), preparer_(*preparer), attachments_(*attachments) {}

  // Commits the volume as PREPARING and begins to prepare it; or, on a dry run, says what
  // would be. Errors: see CreateVolume in volume.proto.
  absl::StatusOr<CreatedVolume> Create(const VolumeSpec& spec, bool dry_run);
  // Until the volume is ready, or will not be, or `cancelled` returns true. NotFound when
  // it was deleted meanwhile, Unavailable with its fault when it could not be prepared;
  // else the volume as it is then, which after `cancelled` may still be PREPARING.
  absl::StatusOr<VolumeStatus> AwaitReady(const Uuid& id,
                                          absl::FunctionRef<bool()> cancelled) const;

  absl::StatusOr<VolumeStatus> Get(absl::string_view name) const;
  // In the order of their names, those after `after`, at most `limit`.
  std::vector<VolumeStatus> List(absl::string_view after, size_t limit) const;
  // The volume as it was. Errors: see DeleteVolume in volume.proto.
  absl::StatusOr<VolumeStatus> Delete(absl::string_view name, bool dry_run);

  VolumeStatus Describe(const VolumePtr& volume) const;

 private:
  std::vector<DeviceShare> SharesOf(const VolumeEntry& volume) const;

  SiteState& state_;
  Preparer& preparer_;
  Attachments& attachments_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_VOLUMES_H_
