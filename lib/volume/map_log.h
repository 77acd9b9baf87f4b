// Carries the map journal of a thin volume to the authority: one thread, in order, in groups.
//
// Note() puts a change into the journal (attachment_journal.h), where the death of this
// process leaves it; the thread gathers what has been noted since and commits it in one
// call, so that the more there is to do the larger the groups are. Before it sends a
// change that frees space (unbind, move) it drains the request gate: the freed units may be
// another's as soon as they are committed.
#ifndef BRAID_LIB_VOLUME_MAP_LOG_H_
#define BRAID_LIB_VOLUME_MAP_LOG_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "lib/base/mutex.h"
#include "lib/mapping/map_change.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/map_authority.h"
#include "lib/volume/request_gate.h"

namespace braid {

// Thread-safe.
class MapLog {
 public:
  // Goes on from what the journal holds: changes above `applied` that an earlier process
  // noted are committed again. `stopped` is called once, from the thread, when the
  // authority refuses for good; all outlive the log.
  MapLog(AttachmentJournal* journal, MapAuthority* authority, RequestGate* gate, uint64_t applied,
         std::function<void(const absl::Status&)> stopped);
  // Ends the thread; what is not committed stays in the journal.
  ~MapLog();

  // Waits until `count` changes can be noted, which takes a commit when the journal is full.
  // An error: the log has stopped. Hold nothing that a request under way could wait for.
  absl::Status AwaitRoom(uint64_t count);
  bool HasRoom(uint64_t count) const;
  // The change's number. Callers order themselves (Volume's map_mu_) and have asked for room
  // under the same lock.
  uint64_t Note(const MapChange& change);

  uint64_t noted() const { return noted_.load(std::memory_order_acquire); }
  uint64_t committed() const { return committed_.load(std::memory_order_acquire); }
  // Until every change up to `sequence` is durable; an error: the log has stopped. One load
  // when it is so already.
  absl::Status AwaitCommitted(uint64_t sequence);

 private:
  void Work();

  AttachmentJournal& journal_;
  MapAuthority& authority_;
  RequestGate& gate_;
  const std::function<void(const absl::Status&)> stopped_callback_;
  std::atomic<uint64_t> noted_;
  std::atomic<uint64_t> committed_;
  mutable Mutex mu_;
  CondVar changed_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status stopped_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_MAP_LOG_H_
