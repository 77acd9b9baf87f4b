// The map and the grants of one thin volume, in memory, and how they change.
//
// Runs stand in a tree by (column, leg, first unit) and grants in one by the place of their
// first leg. A unit of the volume has space on every leg or on none. Neighbours that
// continue each other are one run, or one grant; what is cut leaves its pieces. So a change
// touches a few entries of the trees, however large the map is, and the same entries in the
// store.
//
// A change is tried first and shown when it is durable. A ThinEdit makes its steps in the
// trees themselves, each on what the ones before left, and remembers what stood under every
// key it touched. At its end it puts that back: what remains is a ThinDelta, the entries that
// would differ. The Change of the site commits it together with the volume's record, and
// only then has the map show it, and the freed units go to the free space. Nobody sees the
// trees in between, for the edit holds their lock; it does no I/O.
#ifndef BRAID_CONTROLPLANE_CORE_THIN_MAP_H_
#define BRAID_CONTROLPLANE_CORE_THIN_MAP_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "lib/allocator/free_space.h"
#include "lib/format/records.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_change.h"
#include "lib/mapping/map_run.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

struct ThinCounts {
  // Units of the volume, each of which takes as many device units as there are legs.
  uint64_t mapped_units = 0;
  uint64_t granted_units = 0;    // handed out and set aside
  uint64_t set_aside_units = 0;  // of these
  // Device units, in stale copies.
  uint64_t stale_units = 0;
  // Entries.
  uint64_t runs = 0;
  uint64_t grants = 0;
  friend bool operator==(const ThinCounts&, const ThinCounts&) = default;
};

// Units on one of the volume's devices.
struct DeviceUnits {
  DeviceIndex device;
  UnitRun units;
  friend bool operator==(const DeviceUnits&, const DeviceUnits&) = default;
};

// What an edit would change: entries that come, go or are other ones than before.
class ThinDelta {
 public:
  bool empty() const { return runs_.empty() && grants_.empty(); }
  // The same for the store.
  void AddTo(const Uuid& volume, MetadataBatch& batch) const;
  // Units that are nobody's afterwards.
  const std::vector<DeviceUnits>& freed() const { return freed_; }
  // Calls fn with the units of each grant's leg that goes (false), then of each that comes
  // (true). A grant that was cut goes whole and comes in pieces.
  void ForEachGranted(absl::FunctionRef<void(const DeviceUnits&, bool comes)> fn) const;

 private:
  friend class ThinMap;
  friend class ThinEdit;
  // Of a tree: what stands under a key before and after.
  template <class Key, class Value>
  struct Entry {
    Key key;
    std::optional<Value> before, after;
  };
  using RunKey = std::pair<uint32_t, uint64_t>;  // (column * kMaxLegs + leg, first)
  struct RunValue {
    uint64_t count = 0;
    DeviceUnit unit;
    DeviceIndex device;
    bool stale = false;
    friend bool operator==(const RunValue&, const RunValue&) = default;
  };
  using GrantKey = std::pair<DeviceIndex, DeviceUnit>;
  static MapRun ToRun(const RunKey& key, const RunValue& value);

  std::vector<Entry<RunKey, RunValue>> runs_;
  std::vector<Entry<GrantKey, GrantRecord>> grants_;
  std::vector<DeviceUnits> freed_;
};

// Thread-safe. Edits of one map follow each other: whoever edits has the site's Change.
class ThinMap {
 public:
  // As a store has them: sound, and no two of them continue each other.
  explicit ThinMap(uint32_t legs, const std::vector<MapRun>& runs = {},
                   const std::vector<GrantRecord>& grants = {});
  ThinMap(const ThinMap&) = delete;
  ThinMap& operator=(const ThinMap&) = delete;

  ThinCounts counts() const ABSL_LOCKS_EXCLUDED(mu_);
  // Each takes time and memory for all there is.
  // Ordered by (column, leg, first), no two continue each other.
  std::vector<MapRun> Runs() const ABSL_LOCKS_EXCLUDED(mu_);
  // By their first legs' places.
  std::vector<GrantRecord> Grants() const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<Grant> HandedOut() const ABSL_LOCKS_EXCLUDED(mu_);
  // Of what is set aside up to `units`, the longest first, where every leg's device is usable.
  std::vector<Grant> SetAside(uint64_t units, absl::FunctionRef<bool(DeviceIndex)> usable) const
      ABSL_LOCKS_EXCLUDED(mu_);

  // The delta is of the last edit of this map, and durable.
  void Show(const ThinDelta& delta) ABSL_LOCKS_EXCLUDED(mu_);

  // While it lives, what is set aside is being zeroed with no lock held, and must not become
  // another volume's. Null when there is one already. Begun within a Change; whoever frees what
  // is set aside looks for it, within a Change.
  class Zeroing {
   public:
    ~Zeroing();
    Zeroing(const Zeroing&) = delete;
    Zeroing& operator=(const Zeroing&) = delete;

   private:
    friend class ThinMap;
    explicit Zeroing(std::shared_ptr<ThinMap> map) : map_(std::move(map)) {}
    const std::shared_ptr<ThinMap> map_;
  };
  static std::unique_ptr<Zeroing> BeginZeroing(const std::shared_ptr<ThinMap>& map);
  bool zeroing() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  friend class ThinEdit;
  using RunKey = ThinDelta::RunKey;
  using RunValue = ThinDelta::RunValue;
  using GrantKey = ThinDelta::GrantKey;

  // The only ways to change the trees: what stands under a key, or that nothing does. They keep
  // the counts.
  void PutRun(const RunKey& key, const std::optional<RunValue>& value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PutGrant(const GrantKey& key, const std::optional<GrantRecord>& value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint32_t legs_;
  mutable absl::Mutex mu_;  // nothing is taken after it
  absl::btree_map<RunKey, RunValue> runs_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<GrantKey, GrantRecord> grants_ ABSL_GUARDED_BY(mu_);
  ThinCounts counts_ ABSL_GUARDED_BY(mu_);
  bool zeroing_ ABSL_GUARDED_BY(mu_) = false;
};

// A change of a ThinMap in steps. After a step that failed the edit is good for nothing but
// its end. Holds the map's lock from beginning to end, so keep it short.
//
// What gives up space frees it, but for what the volume is to keep: while what is mapped and
// granted is less than `reserve_units`, units that would go free are set aside instead.
class ThinEdit {
 public:
  ThinEdit(ThinMap& map, uint64_t reserve_units);
  // The map is as it was.
  ~ThinEdit();
  ThinEdit(const ThinEdit&) = delete;
  ThinEdit& operator=(const ThinEdit&) = delete;

  // The change is as CheckMapChange wants it. InvalidArgument: it does not fit the map and the
  // grants as they are by now. Bind and move take their units from grants that were handed
  // out and hold them side by side on all legs; from any part of a grant.
  absl::Status Apply(const MapChange& change);
  // As an unbind of that many units.
  void Unbind(uint32_t column, ColumnUnit first, uint64_t count);

  // New space. InvalidArgument: granted already, in part.
  absl::Status AddGrant(const GrantRecord& grant);
  // What is set aside, or a part, has been zeroed for the holder. InvalidArgument: it is not.
  absl::Status HandOut(const Grant& grant);
  // The holder gives back what was handed out, or parts. InvalidArgument: it was not.
  absl::Status Return(const Grant& grant);
  void ReturnAll();
  // Frees what is set aside beyond the reserve.
  void FreeSurplus();
  // Other runs for the same units, that lie where they lay, as MarkDeviceStale and KeepOneLeg
  // leave them. Takes time for the whole map; what did not change is not in the delta.
  void Restate(const std::vector<MapRun>& runs);

  // Ends the edit.
  ThinDelta Finish();

 private:
  using RunKey = ThinDelta::RunKey;
  using RunValue = ThinDelta::RunValue;
  using GrantKey = ThinDelta::GrantKey;
  using RunIterator = absl::btree_map<RunKey, RunValue>::const_iterator;

  // As those of the map, noting what stood there.
  void PutRun(const RunKey& key, const std::optional<RunValue>& value);
  void PutGrant(const GrantKey& key, const std::optional<GrantRecord>& value);

  // The first run that ends after `first`, in tree order: of this leg, or of a later one.
  RunIterator FirstRun(uint32_t column, uint32_t leg, ColumnUnit first) const;
  bool AllMapped(uint32_t column, ColumnUnit first, uint64_t count) const;
  bool NoneMapped(uint32_t column, ColumnUnit first, uint64_t count) const;
  // Takes [first, first + count) of a leg out of the map; what was there, in order.
  std::vector<MapRun> CutRuns(uint32_t column, uint32_t leg, ColumnUnit first, uint64_t count);
  // Of all legs; what was there, in stretches over which no leg changes its run.
  std::vector<Grant> CutAllLegs(uint32_t column, ColumnUnit first, uint64_t count);
  // There is nothing there.
  void InsertRun(MapRun run);
  absl::Status CutGrants(const Grant& grant, bool handed_out);
  void InsertGrant(GrantRecord grant);
  // Units that are neither in the map nor granted any more: kept for the reserve, or freed.
  void Release(const Grant& grant);
  void Free(const Grant& grant);
  void Undo();

  ThinMap& map_;
  const uint64_t reserve_units_;
  std::optional<absl::MutexLock> lock_;
  // What stood under each key that was touched.
  absl::btree_map<RunKey, std::optional<RunValue>> runs_before_;
  absl::btree_map<GrantKey, std::optional<GrantRecord>> grants_before_;
  std::vector<DeviceUnits> freed_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_THIN_MAP_H_
