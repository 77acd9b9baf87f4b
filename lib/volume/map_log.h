// Carries the map journal of a thin volume to the authority: one thread, in order, in groups.
//
// Note() puts a change into the journal (attachment_journal.h), where the death of this
// process leaves it; the thread gathers what has been noted since and commits it in one
// call, so that the more there is to do the larger the groups are. Before it sends a
// change that frees space (unbind, move) it drains the request gate: the freed units may be
// another's as soon as they are committed. So whoever waits here for a commit must not be
// inside a pass of the gate, nor hold what one inside could wait for.
//
// A leg that fails is told to the authority, whose map may lack changes that are still in the
// journal, and a request inside a pass cannot wait for those. So MarkStale changes the journal
// itself: it then says of every such change that the leg missed a write, as do the changes
// that are noted later, and commits that were on their way without saying so it awaits (they
// have drained what they had to). Then the authority may be told: it marks what it has, and
// gets the rest so marked, from this process or from the next.
#ifndef BRAID_LIB_VOLUME_MAP_LOG_H_
#define BRAID_LIB_VOLUME_MAP_LOG_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"
#include "lib/mapping/map_change.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/map_authority.h"
#include "lib/volume/request_gate.h"

namespace braid {

// Thread-safe.
class MapLog {
 public:
  // Changes in one call of CommitMap at most: some 80 KiB of message, so that a flush does
  // not wait for a transaction of any size, and room in a full journal comes in pieces.
  static constexpr uint64_t kGroup = 1024;

  // Goes on from what the journal holds: changes above `applied` that an earlier process
  // noted are committed again. The journal has begun, and Past::ChangesAfter(applied) was
  // no error. `stopped` is called once, from the thread, when the authority refuses for good
  // or the process is shut down (Cancelled), with no lock held; it does not end the log. All
  // outlive the log.
  MapLog(AttachmentJournal* journal, MapAuthority* authority, RequestGate* gate, uint64_t applied,
         std::function<void(const absl::Status&)> stopped);
  // Ends the thread, after the call to the authority that is under way; what is not committed
  // stays in the journal. Nobody waits here any more.
  ~MapLog();
  MapLog(const MapLog&) = delete;
  MapLog& operator=(const MapLog&) = delete;

  // Waits until `count` changes can be noted, which takes a commit when the journal is full.
  // An error: the log has stopped, or the journal has not as many places. Hold nothing that
  // a request under way could wait for.
  absl::Status AwaitRoom(uint64_t count);
  bool HasRoom(uint64_t count) const;
  // From now on AwaitRoom returns `status`, an error, rather than wait: at a shutdown.
  void EndWaits(const absl::Status& status);
  // The change's number. Callers order themselves (Volume's map_mu_) and have asked HasRoom
  // under the same lock.
  uint64_t Note(const MapChange& change);

  uint64_t noted() const { return noted_.load(std::memory_order_acquire); }
  uint64_t committed() const { return committed_.load(std::memory_order_acquire); }
  // Until every change up to `sequence`, which is noted, is durable; an error: the log has
  // stopped. One load when it is so already.
  absl::Status AwaitCommitted(uint64_t sequence);

  // Device `device` missed a write. After this every change up to noted() is committed or has
  // its leg there stale, unless that is the last in sync of `legs`; changes noted later are
  // the caller's. Waits for the authority, never for a request: may be called inside a pass.
  // An error: the log has stopped.
  absl::Status MarkStale(DeviceIndex device, uint32_t legs);

 private:
  void Work();
  // The next changes to commit, at least one; empty: the log ends. Frees: space, so that the
  // gate has to be drained.
  struct Group {
    uint64_t first = 0;
    uint64_t count = 0;
    bool frees = false;
  };
  Group AwaitWork();
  // As the journal has them now. From here on they are on their way.
  absl::StatusOr<std::vector<MapChange>> Take(const Group& group);
  void Settle(const Group& group, const absl::Status& status);

  AttachmentJournal& journal_;
  MapAuthority& authority_;
  RequestGate& gate_;
  const std::function<void(const absl::Status&)> stopped_callback_;
  std::atomic<uint64_t> noted_;
  std::atomic<uint64_t> committed_;
  Mutex mu_;
  CondVar work_;     // noted_ or ending_; the thread waits
  CondVar settled_;  // committed_, stopped_ or waits_ended_
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status stopped_ ABSL_GUARDED_BY(mu_);
  absl::Status waits_ended_ ABSL_GUARDED_BY(mu_);
  // The last change that is on its way to the authority, or was.
  uint64_t sent_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_MAP_LOG_H_
