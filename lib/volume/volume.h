// A volume as its client sees it: the request path of the data plane.
//
// State: the page table (which leg of which extent lies where, and whether it is stale),
// the open devices, the ranges now being written. Every client request is split into
// pieces, each piece looked up once, pieces that follow each other on a device gathered
// into one vectored request, and all devices' requests submitted before any is waited for.
//
// Mirrored volumes keep four promises beyond that:
//
//   One order.   Writes (and zeroes, trims) that overlap run one after the other, so all
//                legs end with the same bytes.
//   No way back. A read returns only bytes that every in-sync leg has, so whichever leg
//                is asked next, or is left after the death of this process, cannot give
//                an older answer. Reads that meet no write take no lock: they look at the
//                count of writes begun before and after; the others wait in the range
//                lock.
//   Equal after  Every write is noted, while it is in flight, in a journal that outlives this
//   death.       process; the next one makes the legs equal there before it serves anybody.
//   Stale first. When a leg misses a write, the authority makes that staleness durable
//                before the write completes. An extent's last in-sync copy is never made
//                stale: its error goes to the client.
//
// A failed flush, or FUA write, means that the device may have dropped anything it had
// taken since the last good flush (and Linux says so only once). Its legs become stale;
// where they were the only copies, data is lost: the fault is reported and every later
// write and flush of this volume fails with EIO until it is attached again.
#ifndef BRAID_LIB_VOLUME_VOLUME_H_
#define BRAID_LIB_VOLUME_VOLUME_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/base/mutex.h"
#include "lib/blockdev/block_device.h"
#include "lib/mapping/map_run.h"
#include "lib/mapping/page_table.h"
#include "lib/mapping/split.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/io_plan.h"
#include "lib/volume/range_lock.h"

namespace braid {

// Who owns the durable state of legs: the control plane, seen from the data plane.
class LegAuthority {
 public:
  virtual ~LegAuthority() = default;

  // Device `device` of this volume missed a write. Returns once it is durable that the
  // device's copies are stale by the rule of map_run.h's MarkDeviceStale; the volume does
  // the same to its page table, so that both say the same. Waits as long as the authority
  // cannot be reached: the write that asks is not acknowledged before.
  // Any error, such as FailedPrecondition when this holder's epoch is over, stops the
  // volume. Thread-safe.
  virtual absl::Status MarkStale(DeviceIndex device, absl::string_view reason) = 0;

  // The only copy of something was lost, in words. Best effort; does not wait long.
  virtual void ReportFault(absl::string_view what) = 0;
};

// The padding keeps what writers count away from what readers look at.
class Volume {  // NOLINT(clang-analyzer-optin.performance.Padding)
 public:
  struct ZeroOptions {
    bool fua = false;
    bool may_trim = false;
    bool only_fast = false;  // fail rather than be slower than writing
  };

  // `runs` map every unit of every leg once; `devices` by DeviceIndex, a missing one
  // represented by MakeMissingDevice; `authority` and `journal` outlive the volume. Without
  // a journal (null) nothing is noted, and an unclean end must be settled by others.
  // InvalidArgument when the runs leave a gap, overlap, or reach past a device's end.
  static absl::StatusOr<std::unique_ptr<Volume>> Open(
      const Geometry& geometry, const std::vector<MapRun>& runs,
      std::vector<std::unique_ptr<BlockDevice>> devices, LegAuthority* authority,
      AttachmentJournal* journal, bool read_only);
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;

  // Settles what the holder before had in flight when its process died, before anything
  // is served: devices it had found wanting become stale, and where it was writing all
  // in-sync legs get the bytes of one of them. DataLoss when the notes cannot be this
  // volume's; an error leaves them as they are.
  absl::Status Settle(const AttachmentJournal::Past& past);

  const Geometry& geometry() const { return map_->geometry(); }
  bool read_only() const { return read_only_; }
  // Facts of all devices together: trims reach them; zeroing is faster than writing;
  // a seek costs time; what offsets and lengths must be multiples of.
  bool can_trim() const { return can_trim_; }
  bool can_zero_fast() const { return can_zero_fast_; }
  bool rotational() const { return rotational_; }
  uint32_t required_alignment() const { return required_alignment_; }

  // Every call may come from any thread at any time. Ranges must lie within the volume
  // (OutOfRange) and keep required_alignment(). A length of 0 does nothing. After an
  // error the range holds old bytes, new bytes, or a mixture by sectors.
  absl::Status Read(uint64_t offset, absl::Span<char> data);
  absl::Status Write(uint64_t offset, absl::Span<const char> data, bool fua);
  // EOPNOTSUPP (Unimplemented) when only_fast and a device is known to have no fast way;
  // nothing has changed then.
  absl::Status Zero(uint64_t offset, uint64_t length, const ZeroOptions& options);
  // Advice: where a device has no trim nothing happens and that is success.
  absl::Status Trim(uint64_t offset, uint64_t length, bool fua);
  // Everything acknowledged before the call is durable on every in-sync leg after it. After
  // a success with no request in flight, all in-sync legs hold the same bytes: the moment
  // for a clean end.
  absl::Status Flush();
  // Advice: reads of the range come soon.
  absl::Status Cache(uint64_t offset, uint64_t length);
  // fn(offset, length, is_hole) over the range, in order, until fn returns false. Holes
  // read as zeros; may say data where there is a hole.
  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn);

 private:
  struct Slot {
    std::unique_ptr<BlockDevice> device;
    // Answered with an error: reads prefer other legs. A hint, never a decision.
    std::atomic<bool> suspect{false};
    // Units of all legs in sync here; 0 takes the device out of every flush.
    std::atomic<uint64_t> live_units{0};
  };

  Volume(std::unique_ptr<PageTable> map, std::vector<std::unique_ptr<BlockDevice>> devices,
         LegAuthority* authority, AttachmentJournal* journal, bool read_only);

  bool mirrored() const { return map_->geometry().legs() > 1; }
  absl::Status CheckRange(uint64_t offset, uint64_t length) const;
  absl::Status CheckWritable() const;

  // The in-sync place to read a piece from: legs take turns by volume offset, those on
  // suspect devices last. `skip` is a bit set of legs not to take. nullopt: none left.
  struct Source {
    uint32_t leg;
    LegPlace place;
  };
  std::optional<Source> ChooseSource(const Piece& piece, uint32_t skip) const;

  absl::Status ReadOnce(uint64_t offset, absl::Span<char> data);
  absl::Status ReadPiece(const Piece& piece, char* buffer, uint32_t tried);
  // Writes, zeroes and trims: one request on every in-sync leg of every piece.
  absl::Status Change(const DeviceIo& request, uint64_t offset, absl::Span<const char> data);
  absl::Status ChangeHeld(const DeviceIo& request, uint64_t offset, absl::Span<const char> data);
  // After failures on `devices`: makes them stale where others hold the data.
  absl::Status RetireDevice(DeviceIndex device, int error);
  void CountLive();
  void LoseData(DeviceIndex device, absl::string_view what, int error);

  const std::unique_ptr<PageTable> map_;
  std::vector<Slot> slots_;  // by DeviceIndex; constant after Open
  LegAuthority* const authority_;
  AttachmentJournal* const journal_;  // of mirrored volumes; else null
  const bool read_only_;
  bool can_trim_ = true;
  bool can_zero_fast_ = true;
  bool rotational_ = false;
  uint32_t required_alignment_ = 1;

  // An only copy failed to become durable: no write or flush succeeds any more.
  std::atomic<bool> lost_data_{false};
  // The epoch is over, or legs may differ and it could not be recorded: no I/O at all.
  std::atomic<bool> stopped_{false};

  // Mirrored volumes only. A write counts as begun before its first byte can reach a leg
  // and as ended after its last leg has it or is durably stale.
  alignas(64) std::atomic<uint64_t> writes_begun_{0};
  alignas(64) std::atomic<uint64_t> writes_ended_{0};
  alignas(64) RangeLock ranges_;

  // Failing requests only. Taken while a range is held; never the other way round.
  Mutex retire_mu_;
  std::vector<bool> retired_ ABSL_GUARDED_BY(retire_mu_);  // by DeviceIndex
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_VOLUME_H_
