// What a site knows, in memory and durably, and the one way to change it.
//
// Memory mirrors the MetadataStore. A Change gathers records, commits them as one batch
// that also raises the site's revision, and only then shows them in memory; so nothing is
// answered that a crash could take back, and a crash leaves the state before or after.
//
// Extents. A Change takes what it places out of the free space at once, so that no other
// change can get it, and gives it back when it is not committed. What a deleted volume had
// becomes free after the commit, never before: were it given away earlier, a crash could
// leave two owners. At start the free space is what no volume's runs and grants hold. What
// must be zeroed before it is committed leaves the change as a TakenSpace, which keeps it from
// others meanwhile, and comes back in another change.
//
// A thin volume's map changes with every first write, so it is not copied with its entry: all
// entries of the volume share one ThinMap, which shows what is committed.
//
// A commit that failed may still be found when the store is opened again: the log may
// have reached the disk although the sync did not say so. Memory therefore stays as it was
// and takes no further change until the process is restarted and reads what is so; going
// on could give extents to a second owner. Reading goes on.
//
// Locks, in this order: change_mu_, held by a Change from its first look to its end, also
// while it waits for the disk; then mu_, held for moments to look or to apply, never while
// waiting for anything. So readers wait for no disk. Entries are immutable and shared: a
// reader keeps what it found for as long as it likes.
#ifndef BRAID_CONTROLPLANE_CORE_SITE_STATE_H_
#define BRAID_CONTROLPLANE_CORE_SITE_STATE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "controlplane/core/host.h"
#include "controlplane/core/thin_map.h"
#include "lib/allocator/free_space.h"
#include "lib/allocator/grants.h"
#include "lib/allocator/placement.h"
#include "lib/format/records.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

using DevicePtr = std::shared_ptr<const DeviceRecord>;

struct VolumeEntry {
  VolumeRecord record;
  Geometry geometry;
  // Of a thick volume: normalized, and checked to cover every extent of every leg. Else null.
  std::shared_ptr<const std::vector<MapRun>> runs;
  // Of a thin volume; else null. Newer than the record, perhaps, but within a Change.
  std::shared_ptr<ThinMap> thin;
};
using VolumePtr = std::shared_ptr<const VolumeEntry>;

// The runs of either kind of volume, as they are now. Those of a thin one are copied, and the
// result is all that keeps the copy: name it before a loop over what it points to.
std::shared_ptr<const std::vector<MapRun>> RunsOf(const VolumeEntry& volume);
// Of a thin volume, the units that `reserve_bytes` of the record stands for.
uint64_t ReserveUnits(const VolumeRecord& record);

// A device and what its extents are used for: what is neither free nor reserved is in the
// maps of volumes.
struct DeviceUse {
  DevicePtr record;
  uint64_t capacity_bytes = 0;
  uint64_t free_bytes = 0;
  uint64_t largest_free_bytes = 0;
  // Granted to thin volumes and not bound, or taken and on its way into a record.
  uint64_t reserved_bytes = 0;
  uint64_t taken_bytes = 0;  // of these, the latter: no record has it
  // Volumes that name the device. A thin volume goes on naming one that it has nothing on any
  // more: the numbers in its map are places in its list of devices.
  uint64_t volume_count = 0;
};

class SiteState;

// Space that was taken out of the free space and is in no record yet: nobody else's, until it
// ends and gives it back, or a Change adopts it.
class TakenSpace {
 public:
  TakenSpace() = default;
  ~TakenSpace() { GiveBack(); }
  TakenSpace(TakenSpace&& other) noexcept;
  TakenSpace& operator=(TakenSpace&& other) noexcept;

 private:
  friend class Change;
  explicit TakenSpace(SiteState* state) : state_(state) {}
  void GiveBack();
  SiteState* state_ = nullptr;
  std::vector<std::pair<Uuid, UnitRun>> pieces_;  // by device
};

class SiteState {
 public:
  struct Options {
    std::string name;  // "": as the store has it
    std::string node;  // that this control plane runs on
  };

  // Reads the store, or initialises an empty one. FailedPrecondition when the store is
  // another site's; InvalidArgument when it is empty and no name is given; DataLoss,
  // naming the record, when records contradict each other. Both outlive the state.
  static absl::StatusOr<std::unique_ptr<SiteState>> Load(MetadataStore* store, Host* host,
                                                         const Options& options);

  const std::string& name() const { return name_; }
  const std::string& node() const { return node_; }
  const Uuid& id() const { return id_; }
  const Uuid& cluster() const { return cluster_; }
  Host& host() const { return host_; }
  // To look at. What is written there behind this state's back is seen at the next start.
  MetadataStore& store() const { return store_; }

  // The rest is thread-safe.
  Revision revision() const ABSL_LOCKS_EXCLUDED(mu_);
  // OK, or why no change is accepted any more.
  absl::Status health() const ABSL_LOCKS_EXCLUDED(mu_);

  // "volume", "site/volume" or a UUID. NotFound.
  absl::StatusOr<VolumePtr> FindVolume(absl::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<VolumePtr> FindVolume(const Uuid& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // Those whose names come after `name`, in order, at most `limit`.
  std::vector<VolumePtr> VolumesAfter(absl::string_view name, size_t limit) const
      ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t volume_count() const ABSL_LOCKS_EXCLUDED(mu_);

  // A name or a UUID. NotFound.
  absl::StatusOr<DeviceUse> FindDevice(absl::string_view name) const ABSL_LOCKS_EXCLUDED(mu_);
  // Null when unknown.
  DevicePtr FindDevice(const Uuid& id) const ABSL_LOCKS_EXCLUDED(mu_);
  // By name.
  std::vector<DeviceUse> Devices() const ABSL_LOCKS_EXCLUDED(mu_);
  // All free runs of each device, by its name. Takes time and memory for all there are.
  struct FreeRuns {
    DeviceUse use;
    std::vector<UnitRun> runs;
  };
  std::vector<FreeRuns> AllFreeRuns() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class Change;
  friend class TakenSpace;
  struct DeviceSlot {
    DevicePtr record;
    FreeSpace space;
    uint64_t granted_units = 0;
    uint64_t taken_units = 0;
    uint64_t volume_count = 0;
  };

  SiteState(MetadataStore* store, Host* host) : store_(*store), host_(*host) {}
  absl::Status ReadOrInitialiseSite(const Options& options);
  absl::Status LoadDevice(const DeviceRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status LoadVolume(const VolumeRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::vector<MapRun>> LoadRuns(const VolumeRecord& record, const Geometry& geometry,
                                               absl::string_view what)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::vector<GrantRecord>> LoadGrants(const VolumeRecord& record,
                                                      const Geometry& geometry,
                                                      absl::string_view what)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The parts of a change, in memory.
  void ShowVolume(VolumePtr volume) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ShowMap(const VolumeEntry& volume, const ThinDelta& delta)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void HideVolume(const Uuid& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What was a device's own again. A device that is gone has no free space.
  void Free(const Uuid& device, UnitRun units) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Null when it is unknown.
  DeviceSlot* FindSlot(const Uuid& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static DeviceUse Use(const DeviceSlot& slot);

  // Constant after Load.
  MetadataStore& store_;
  Host& host_;
  std::string name_;
  std::string node_;
  Uuid id_;
  Uuid cluster_;

  absl::Mutex change_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  mutable absl::Mutex mu_;
  Revision revision_ ABSL_GUARDED_BY(mu_);
  absl::Status health_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Uuid, std::unique_ptr<DeviceSlot>> devices_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<std::string, DeviceSlot*> devices_by_name_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Uuid, VolumePtr> volumes_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<std::string, VolumePtr> volumes_by_name_ ABSL_GUARDED_BY(mu_);
};

// One change of a site. What is looked up while a Change lives stays so until it ends,
// for there is one at a time.
class Change {
 public:
  // Waits for the change before this one.
  explicit Change(SiteState& state);
  // Without a Commit that succeeded nothing has changed.
  ~Change() = default;
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

  // Unavailable when the site takes no more changes: the first thing to ask.
  absl::Status Ready() const;

  // As Place(), on the devices for which `usable` returns true.
  absl::StatusOr<Placement> TakeExtents(const PlacementRequest& request,
                                        absl::FunctionRef<bool(const Uuid&)> usable);
  // As ChooseGrants(), likewise. Legs name devices by their place in `devices`, a volume's list,
  // to which those that are new are added.
  absl::StatusOr<std::vector<Grant>> TakeGrants(
      const GrantRequest& request, std::vector<Uuid>& devices,
      absl::FunctionRef<bool(const DeviceRecord&)> usable);
  // What this change took, to be zeroed without it; it would go back with it.
  TakenSpace HoldTaken() { return std::exchange(taken_, TakenSpace(&state_)); }
  // As if this change had taken it. Unavailable: one of its devices has left the pool since.
  absl::Status Adopt(TakenSpace taken);

  // What is taken belongs to the records put below once they are committed; all of it.
  // Records get this change's revision. At most one of each device or volume.
  // A new device, all free.
  void AddDevice(DeviceRecord record);
  void DeleteDevice(const Uuid& id);
  // A new volume, with the runs that TakeExtents gave.
  void AddVolume(VolumeRecord record, const Geometry& geometry, std::vector<MapRun> runs);
  // Another record for a volume that exists; its runs stay.
  void PutVolume(const VolumeEntry& before, VolumeRecord record);
  // Likewise, with other runs that hold the same extents, but for what was taken and what
  // FreeUnits names; and perhaps of another size.
  void PutVolume(const VolumeEntry& before, VolumeRecord record, std::vector<MapRun> runs);
  void PutVolume(const VolumeEntry& before, VolumeRecord record, const Geometry& geometry,
                 std::vector<MapRun> runs);
  // A new thin volume with an empty map and what was taken for it.
  void AddThinVolume(VolumeRecord record, const Geometry& geometry,
                     const std::vector<GrantRecord>& grants);
  // Another record, and what an edit of the volume's map came to. Devices may be added behind
  // those there are.
  void PutThin(const VolumeEntry& before, VolumeRecord record, ThinDelta delta);
  void PutThin(const VolumeEntry& before, VolumeRecord record, const Geometry& geometry,
               ThinDelta delta);
  void DeleteVolume(const VolumeEntry& volume);
  // What a record had and has no more; free after the commit. Deleted volumes and edits see to
  // it themselves.
  void FreeUnits(const Uuid& device, UnitRun units);

  // Durable and visible when OK. Once, at the end.
  absl::Status Commit();

 private:
  // Devices to choose from, and what was chosen.
  std::vector<PlacementDevice> Offer(absl::FunctionRef<bool(const DeviceRecord&)> usable) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu_);
  void NoteTaken(const Uuid& device, UnitRun units) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu_);
  void Put(VolumeEntry entry);

  SiteState& state_;
  absl::MutexLock lock_;
  const Revision revision_;
  MetadataBatch batch_;
  std::vector<VolumePtr> put_volumes_;
  std::vector<std::pair<VolumePtr, ThinDelta>> put_maps_;
  std::vector<Uuid> deleted_volumes_;
  std::vector<DevicePtr> added_devices_;
  std::vector<Uuid> deleted_devices_;
  std::vector<std::pair<Uuid, UnitRun>> freed_;
  TakenSpace taken_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_SITE_STATE_H_
