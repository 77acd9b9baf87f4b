// The free-space table of a site: what each class has, what is promised of it, how fast it
// goes, and when someone should know.
#ifndef BRAID_CONTROLPLANE_CORE_POOLS_H_
#define BRAID_CONTROLPLANE_CORE_POOLS_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "controlplane/core/site_state.h"

namespace braid {

enum class PoolState { kGood = 1, kLow = 2, kCritical = 3, kFull = 4 };

// Bytes, of all devices of one class; the fields are those of Pool in inventory.proto.
// capacity = allocated + reserved + free, always: taken in one look at the state.
struct PoolUsage {
  std::string device_class;
  uint64_t device_count = 0;
  uint64_t capacity = 0, allocated = 0, reserved = 0, free = 0, largest_free = 0;
  uint64_t promised = 0;
  double commitment_ratio = 0;
  uint64_t reclaimable = 0;
  double allocation_per_second = 0;
  uint64_t seconds_to_full = 0;
  PoolState state = PoolState::kGood;
};

struct PoolEvent {
  int64_t unix_seconds = 0;
  PoolState state = PoolState::kGood;  // that the pool has come to
  std::string what;
};

// Thread-safe.
class Pools {
 public:
  struct Thresholds {
    uint32_t low_percent = 80;  // of capacity, allocated and reserved; 1 to 100
    uint32_t critical_percent = 95;
  };

  // The state outlives it.
  Pools(SiteState* state, const Thresholds& thresholds);

  const Thresholds& thresholds() const { return thresholds_; }
  // By class.
  std::vector<PoolUsage> List();
  // Looks at the pools: notes what is allocated, for the rate, once a minute at most; makes an
  // event of each state a pool has come to, and warns the host of it. Call it after space was
  // taken or freed, and every few seconds. A state is left when what is used falls some percent
  // below its threshold, so that a pool at a threshold does not come to it again and again.
  void Look();
  // Somebody's first write found no space in this class ("": in any): full until as much as a
  // large extent has become free since.
  void NoteFull(absl::string_view device_class);
  // What a reclaim found unused in a volume, and has not released.
  void NoteReclaimable(const Uuid& volume, uint64_t bytes);
  struct Reclaimable {
    uint64_t bytes = 0;
    int64_t unix_seconds = 0;  // 0: never looked
  };
  Reclaimable ReclaimableOf(const Uuid& volume) const;
  // Newest last, at most 1000.
  std::vector<PoolEvent> Events() const;

 private:
  struct Sample {
    int64_t unix_seconds = 0;
    absl::btree_map<std::string, uint64_t> allocated;  // bytes, by class
  };
  // What a pool has come to.
  struct Watch {
    PoolState state = PoolState::kGood;
    bool full = false;
    uint64_t lowest_free = 0;  // since it was full, in bytes
  };
  using Usages = absl::btree_map<std::string, PoolUsage>;

  // Capacity, allocated, reserved and free of each class.
  Usages UsageOfDevices() const;
  // Takes in what is so now, and returns what there is to warn of.
  std::vector<std::string> Update(const Usages& usages, int64_t now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  PoolState StateOf(const PoolUsage& usage, PoolState before) const;
  void AddRate(int64_t now, PoolUsage& usage) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  SiteState& state_;
  const Thresholds thresholds_;
  mutable absl::Mutex mu_;                           // nothing of the state is taken after it
  std::deque<Sample> samples_ ABSL_GUARDED_BY(mu_);  // of the last hour, by time
  absl::btree_map<std::string, Watch> watched_ ABSL_GUARDED_BY(mu_);  // by class
  std::deque<PoolEvent> events_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Uuid, Reclaimable> reclaimable_ ABSL_GUARDED_BY(mu_);
};

// What walking the records found: CheckPoolsResponse in inventory.proto.
struct PoolCheck {
  std::vector<std::string> findings;
  uint64_t devices = 0, volumes = 0, runs = 0, grants = 0;
};
// Reads the store's records, at one moment between two changes, and compares what they hold
// with each other and with the state's free space.
absl::StatusOr<PoolCheck> CheckPools(SiteState& state);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_POOLS_H_
