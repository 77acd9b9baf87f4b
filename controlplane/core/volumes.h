// Building, finding, resizing and deleting volumes.
#ifndef BRAID_CONTROLPLANE_CORE_VOLUMES_H_
#define BRAID_CONTROLPLANE_CORE_VOLUMES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/preparer.h"
#include "controlplane/core/site_state.h"
#include "controlplane/core/volume_spec.h"
#include "controlplane/core/zeroer.h"

namespace braid {

enum class VolumeHealth { kGood, kDegraded, kFaulty };

// A volume, with what is computed about it.
struct VolumeStatus {
  VolumePtr volume;
  VolumeHealth health = VolumeHealth::kGood;
  // Device space in its map, all copies together; and of that, in stale ones.
  uint64_t allocated_bytes = 0;
  uint64_t stale_bytes = 0;
  // Of the volume's bytes, those that have space.
  uint64_t mapped_bytes = 0;
  // Device space granted to it and not in its map.
  uint64_t reserved_bytes = 0;
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

  // Commits the volume, a thick one as PREPARING, and begins to prepare it; or, on a dry run,
  // says what would be. Errors: see CreateVolume in volume.proto.
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

  // The volume as it is then, or would be. Errors: see ResizeVolume in volume.proto. After an
  // error the volume is as it was, but that what it was to lose may be lost.
  absl::StatusOr<VolumeStatus> Resize(absl::string_view name, uint64_t size_bytes,
                                      bool allow_data_loss, bool dry_run);

  VolumeStatus Describe(const VolumePtr& volume) const;

 private:
  // The devices that are there. Looked at before any lock is taken, for a device may take its
  // time; one that goes missing later is found when it is zeroed.
  struct Online {
    absl::flat_hash_set<Uuid> devices;
    std::vector<std::string> missing;  // names of the others
    bool Has(const Uuid& device) const { return devices.contains(device); }
    // A refusal, saying which devices were not counted.
    absl::Status Explain(const absl::Status& status) const;
  };
  Online LookForDevices() const;
  // Both within the change, which they fill. The volume as it is to be, with what it takes.
  absl::StatusOr<VolumePtr> PlaceThick(Change& change, const VolumePlan& plan, VolumeRecord record,
                                       const Online& online) const;
  absl::StatusOr<VolumePtr> PlaceThin(Change& change, const VolumePlan& plan, VolumeRecord record,
                                      const Online& online) const;
  std::vector<DeviceShare> SharesOf(const VolumeEntry& volume) const;

  // Another size of a volume, worked out.
  struct Resized {
    VolumeRecord record;
    Geometry geometry;
    std::vector<MapRun> runs;                       // of a thick volume
    std::vector<std::pair<Uuid, UnitRun>> grown;    // to be zeroed, and then its own
    std::vector<DeviceBytes> tails;                 // to be zeroed, and its own already
    std::vector<std::pair<Uuid, UnitRun>> cut_off;  // of a thick volume, to be freed
  };
  absl::StatusOr<VolumePtr> FindResizable(const Uuid& id) const;
  absl::StatusOr<Resized> PlanResize(Change& change, const VolumeEntry& volume, uint64_t size_bytes,
                                     bool allow_data_loss, const Online& online) const;
  absl::Status GrowThick(Change& change, const VolumeEntry& volume, const Online& online,
                         Resized& resized) const;
  absl::Status CommitResize(Change& change, const VolumeEntry& volume, Resized resized) const;

  SiteState& state_;
  Preparer& preparer_;
  Attachments& attachments_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_VOLUMES_H_
