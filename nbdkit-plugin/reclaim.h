// Gives back the space in a thin volume that the file systems in it no longer use, while they
// may be mounted: finds it with lib/ext4, judges it by WriteWatch, has the volume release it.
//
// Online, of what a view calls free only extents are released that are settled
// (write_watch.h), asked again with their changes held; the commits in the view are made
// durable first, or a power cut could undo a deletion whose space is gone already. The rest is
// deferred: a later pass gets it, once the file system has committed twice more. One
// that is idle commits nothing, so what it freed last stays deferred.
//
// Offline, while no client that could write is connected, what the view calls free is free:
// nobody is there who could have taken it. A client that comes ends this; the rest of the pass
// is done as online.
#ifndef BRAID_NBDKIT_PLUGIN_RECLAIM_H_
#define BRAID_NBDKIT_PLUGIN_RECLAIM_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "lib/ext4/reclaim.h"
#include "nbdkit-plugin/client_count.h"
#include "nbdkit-plugin/write_watch.h"

namespace braid {

// What a reclaim needs of a volume; see Volume for each.
class ReclaimVolume {
 public:
  virtual ~ReclaimVolume() = default;
  virtual uint64_t size_bytes() const = 0;
  // A row of all columns: pieces are cut at its multiples, so that no unit lies in two.
  virtual uint64_t row_bytes() const = 0;
  virtual absl::Status Read(uint64_t offset, absl::Span<char> data) = 0;
  virtual absl::Status Flush() = 0;
  virtual uint64_t MappedBytes(uint64_t offset, uint64_t length) = 0;
  virtual absl::StatusOr<uint64_t> ReleaseIf(uint64_t offset, uint64_t length,
                                             absl::FunctionRef<bool()> still_free) = 0;
};

// One file system in it; see ext4::FileSystem for each.
class ReclaimFileSystem {
 public:
  virtual ~ReclaimFileSystem() = default;
  virtual const std::string& description() const = 0;
  virtual const std::vector<ext4::FileSystem::Extent>& journal() const = 0;
  virtual uint32_t block_bytes() const = 0;
  virtual uint32_t group_count() const = 0;
  virtual absl::StatusOr<ext4::FileSystem::View> Look(
      bool offline, absl::FunctionRef<void(uint32_t groups_done)> progress) = 0;
};

struct FoundFileSystems {
  std::vector<std::shared_ptr<ReclaimFileSystem>> usable;
  std::vector<absl::Status> refused;  // what is there and not understood
};
// Errors: of the reads; DataLoss, a partition table that cannot be.
using FindReclaimable =
    std::function<absl::StatusOr<FoundFileSystems>(const ext4::ReadVolume& read, uint64_t bytes)>;

// In bytes of the volume.
struct ReclaimCounts {
  std::string file_system;
  uint64_t groups_total = 0;
  uint64_t groups_done = 0;
  uint64_t groups_unchanged = 0;
  uint64_t free_bytes = 0;
  uint64_t released_bytes = 0;
  uint64_t deferred_bytes = 0;
};

// Not thread-safe, but for Stop.
class Reclaimer {
 public:
  // All outlive it. While file systems are known, Learn looks no more often than `relearn`: to
  // open one may mean to read many MiB of group descriptors.
  Reclaimer(ReclaimVolume* volume, FindReclaimable find, WriteWatch* watch,
            const ClientCount* clients, absl::Duration relearn = absl::Minutes(5));
  ~Reclaimer();
  Reclaimer(const Reclaimer&) = delete;
  Reclaimer& operator=(const Reclaimer&) = delete;

  // Looks which file systems there are, if anything was written since it last looked, and
  // watches their journals from then on: the earlier, the sooner space is settled.
  void Learn();

  // One pass. `report` is called now and then, a few times a second at most; false: nobody
  // wants the pass any more. `counts` are good after an error too. FailedPrecondition: a
  // file system that is not understood, or none; the others are done all the same.
  // Cancelled: `report` or Stop said so. Aborted: the log was always overwritten while it
  // was read.
  absl::Status Run(bool dry_run, absl::FunctionRef<bool(const ReclaimCounts&)> report,
                   ReclaimCounts& counts);

  // Ends a pass under way soon, and every later one. Thread-safe.
  void Stop() { stopped_ = true; }

 private:
  struct Known {
    std::shared_ptr<ReclaimFileSystem> file_system;
    uint64_t journal;  // as `watch_` numbers it
  };
  struct Pass;

  bool over() const { return stopped_ || unwanted_; }
  void Report(Pass& pass);
  absl::Status Refresh();
  void Watch(Known& known);
  absl::Status RunOne(Known& known, Pass& pass);
  absl::Status Release(const ext4::FileSystem::View& view, uint32_t tick, Pass& pass);
  absl::Status ReleasePiece(uint64_t offset, uint64_t length, uint32_t tick, Pass& pass);
  // After a view that is no older than commit `sequence`: makes the commits in it durable, and
  // gives the tick that extents must be stamped below; 0: nothing may be released.
  absl::StatusOr<uint32_t> Settle(Known& known, uint32_t sequence);

  ReclaimVolume& volume_;
  const FindReclaimable find_;
  WriteWatch& watch_;
  const ClientCount& clients_;
  const absl::Duration relearn_;
  const ext4::ReadVolume read_;
  std::atomic<bool> stopped_{false};
  std::atomic<bool> unwanted_{false};  // the pass under way
  std::vector<Known> known_;
  std::vector<absl::Status> refused_;
  bool look_again_ = true;  // at which file systems there are
  absl::Time looked_ = absl::InfinitePast();
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_RECLAIM_H_
