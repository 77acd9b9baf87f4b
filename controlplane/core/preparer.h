// Makes new thick volumes ready: zeroes their extents, durably, before anyone can read them.
//
// A volume is committed as PREPARING together with its extents, then every run of every
// copy is zeroed and every device flushed, then it is committed as READY. A crash before
// the last commit leaves it PREPARING, and the next start zeroes it again from the
// beginning. So no READY volume has an extent that shows what was there before.
//
// The work is cut by device, so that copies are zeroed at once: a job is one volume, a part
// is what it has on one device. Workers take the parts in the order they came.
//
// An error (the device failed, or is missing) becomes the fault of the volume, which stays
// PREPARING: it can be deleted, and a restart tries again. Nothing is lost by that, since
// nothing was in it.
#ifndef BRAID_CONTROLPLANE_CORE_PREPARER_H_
#define BRAID_CONTROLPLANE_CORE_PREPARER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "controlplane/core/site_state.h"
#include "controlplane/core/zeroer.h"

namespace braid {

// Thread-safe.
class Preparer {
 public:
  // Begins with all volumes that are PREPARING.
  explicit Preparer(SiteState* state);
  // Ends at the next step of each part; what is not ready stays PREPARING.
  ~Preparer();
  Preparer(const Preparer&) = delete;
  Preparer& operator=(const Preparer&) = delete;

  // Begins to prepare a volume that is PREPARING. Not twice at once.
  void Start(const VolumePtr& volume);

  // Bytes zeroed so far, or 0 when nothing is under way.
  uint64_t PreparedBytes(const Uuid& volume) const;

  // Returns when nothing is under way for the volume any more, whatever came of it, or
  // `cancelled`, asked a few times a second, returns true.
  void Wait(const Uuid& volume, absl::FunctionRef<bool()> cancelled) const;

  // Ends the work on a volume at its next step and waits for that. Unavailable when a
  // device does not answer for `patience`; the work then ends when it does.
  absl::Status Stop(const Uuid& volume, absl::Duration patience);

 private:
  struct Job {
    VolumePtr volume;
    ZeroProgress progress;
    // Guarded by mu_.
    size_t parts_left = 0;
    absl::Status error;
  };
  using Part = std::pair<std::shared_ptr<Job>, DeviceIndex>;

  void Work();
  absl::Status ZeroPart(Job& job, DeviceIndex device);
  // Commits what came of it.
  void Finish(const Job& job, const absl::Status& error);

  SiteState& state_;
  mutable absl::Mutex mu_;  // taken after the locks of the state; nothing is taken after it
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Part> parts_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Uuid, std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> workers_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_PREPARER_H_
