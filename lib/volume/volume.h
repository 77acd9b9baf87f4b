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
// A thin volume's units get space at their first write and lose it when they are trimmed, so
// that its map changes under its requests (docs/ALLOCATION.md; thin_state.h). Each request
// passes a gate before it looks at the map, and space is got outside of it: a request
// that finds a unit without space leaves, binds it (first_writes.h), and comes again. What
// such a request does beyond stands in thin_volume.cc; thick volumes have no gate, and
// none of it.
//
// Locks, in the order they are taken: a pass of the gate, a range, the lock on retiring
// devices, ThinState::mu. Space, room in the map log, commits and holds of the gate are
// waited for with none of them held.
//
// A failed flush, or FUA write, means that the device may have dropped anything it had
// taken since the last good flush (and Linux says so only once). Its legs become stale;
// where they were the only copies, data is lost: the fault is reported and every later
// write and flush of this volume fails with EIO until it is attached again.
#ifndef BRAID_LIB_VOLUME_VOLUME_H_
#define BRAID_LIB_VOLUME_VOLUME_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
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
#include "lib/volume/column_units.h"
#include "lib/volume/device_slots.h"
#include "lib/volume/first_writes.h"
#include "lib/volume/fold.h"
#include "lib/volume/io_plan.h"
#include "lib/volume/map_authority.h"
#include "lib/volume/range_lock.h"
#include "lib/volume/request_gate.h"
#include "lib/volume/thin_state.h"

namespace braid {

// The padding keeps what writers count away from what readers look at.
class Volume {  // NOLINT(clang-analyzer-optin.performance.Padding)
 public:
  struct ZeroOptions {
    bool fua = false;
    bool may_trim = false;
    bool only_fast = false;  // fail rather than be slower than writing
  };

  struct Options {
    bool read_only = false;
    // The rest is of thin volumes.
    bool thin = false;
    // The number of the last map change in `runs`, and what was granted and is not bound.
    uint64_t applied_sequence = 0;
    std::vector<Grant> grants;
    // Devices that are not there: nothing is bound on them.
    std::vector<DeviceIndex> missing;
    // What a first write does without space: FirstWrites::Options.
    WhenFull when_full = WhenFull::kWait;
    absl::Duration full_timeout = absl::InfiniteDuration();
    std::function<bool()> wanted;
  };

  // `runs` map every unit of every leg once, or, of a thin volume, all legs of a unit or none;
  // `devices` by DeviceIndex, a missing one represented by MakeMissingDevice; `authority` and
  // `journal` outlive the volume. Without a journal (null) nothing is noted, and an unclean
  // end must be settled by others; a thin volume has one unless it is read-only. It has
  // begun, and its past, where there is one, counts: map changes in it that the
  // authority does not have are applied, and committed again.
  // InvalidArgument when the runs leave a gap, overlap, or reach past a device's end;
  // DataLoss when the journal's past does not go with them.
  static absl::StatusOr<std::unique_ptr<Volume>> Open(
      const Geometry& geometry, const std::vector<MapRun>& runs,
      std::vector<std::unique_ptr<BlockDevice>> devices, MapAuthority* authority,
      AttachmentJournal* journal, const Options& options);
  // No request is under way. What is not committed stays in the journal.
  ~Volume();
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
  bool can_trim() const { return thin_ || slots_->can_trim(); }
  bool can_zero_fast() const { return slots_->can_zero_fast(); }
  bool rotational() const { return slots_->rotational(); }
  uint32_t required_alignment() const { return slots_->required_alignment(); }

  // Every call may come from any thread at any time. Ranges must lie within the volume
  // (OutOfRange) and keep required_alignment(). A length of 0 does nothing. After an
  // error the range holds old bytes, new bytes, or a mixture by sectors.
  absl::Status Read(uint64_t offset, absl::Span<char> data);
  absl::Status Write(uint64_t offset, absl::Span<const char> data, bool fua);
  // EOPNOTSUPP (Unimplemented) when only_fast and a device is known to have no fast way;
  // nothing has changed then. Of a thin volume whole units lose their space with may_trim,
  // and units without space stay so.
  absl::Status Zero(uint64_t offset, uint64_t length, const ZeroOptions& options);
  // Advice: where a device has no trim nothing happens and that is success. Of a thin volume
  // whole units lose their space, and the rest is zeroed where that is fast.
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

  // The rest is of thin volumes; FailedPrecondition of others.

  // Holds changes of the range, asks still_free, and if so takes away the space of every unit
  // that lies wholly in the range. The volume bytes that had space. For who knows that the
  // range is not used any more, if nobody has written to it since.
  absl::StatusOr<uint64_t> ReleaseIf(uint64_t offset, uint64_t length,
                                     absl::FunctionRef<bool()> still_free);
  // Volume bytes of the units that lie wholly in the range and have space.
  uint64_t MappedBytes(uint64_t offset, uint64_t length);
  // Requests that wait for space, or for room in the map log, fail with ESHUTDOWN, and so do
  // later ones that would.
  void EndWaits();
  // The clean end, with no request under way: everything durable and committed, what was
  // granted and not bound given back. Only reads may follow. Of a thick volume: a flush.
  absl::Status Finish();

 private:
  Volume(std::unique_ptr<PageTable> map, std::unique_ptr<DeviceSlots> slots,
         MapAuthority* authority, AttachmentJournal* journal, const Options& options);

  bool mirrored() const { return map_->geometry().legs() > 1; }
  absl::Status CheckRange(uint64_t offset, uint64_t length) const;
  absl::Status CheckWritable() const;

  // The in-sync place to read a piece from: legs take turns by volume offset, those on
  // suspect devices last. `skip` is a bit set of legs not to take. nullopt: none left.
  struct Source {
    uint32_t leg;
    LegPlace place;
  };
  // *hole: a leg has no space, so the unit has none, or is just being bound or unbound; its
  // bytes are zeros where there is no source.
  std::optional<Source> ChooseSource(const Piece& piece, uint32_t skip, bool* hole) const;
  // Pieces that one look-up each serves.
  template <class Fn>
  bool ForEachLookUp(uint64_t offset, uint64_t length, Fn&& fn) const;
  // For IoPlan::Run.
  auto DeviceOf() const {
    return [this](DeviceIndex d) -> BlockDevice& { return slots_->device(d); };
  }

  absl::Status ReadOnce(uint64_t offset, absl::Span<char> data);
  absl::Status ReadPiece(const Piece& piece, char* buffer, uint32_t tried);
  // Writes, zeroes and trims: one request on every in-sync leg of every piece. *lacks: units
  // that need space have none; nothing has changed.
  struct Request {
    DeviceIo io;
    uint64_t offset = 0;
    absl::Span<const char> data;
  };
  absl::Status Change(const Request& request);
  // Keeps out, of mirrored volumes, requests that overlap.
  absl::Status Exclusively(uint64_t offset, uint64_t length,
                           absl::FunctionRef<absl::Status()> change);
  // Inside that: notes the request for the next holder while it is under way.
  absl::Status ChangeNoted(const Request& request, bool* lacks);
  absl::Status ChangeHeld(const Request& request, bool* lacks);
  absl::Status CheckChange(uint64_t offset, uint64_t length) const;

  // thin_volume.cc
  absl::Status OpenThin(const std::vector<MapRun>& runs, AttachmentJournal* journal,
                        const Options& options);
  void Stopped(const absl::Status& why);
  absl::Status WriteThin(const Request& request);
  absl::Status ZeroThin(const DeviceIo& io, uint64_t offset, uint64_t length, bool with_edges);
  // Unbinds units that the edges of a zeroed range left with nothing but zeros.
  void UnbindZeroEdges(uint64_t offset, uint64_t length, const UnitRanges& whole);
  bool IsZero(const UnitRange& unit);
  absl::Status AwaitNoted(bool fua);

  // After failures on `devices`: makes them stale where others hold the data.
  absl::Status RetireDevice(DeviceIndex device, int error);
  void CountLive();
  absl::Status FlushFailed(DeviceIndex device, int error);
  void LoseData(DeviceIndex device, absl::string_view what, int error);

  const std::unique_ptr<PageTable> map_;
  const std::unique_ptr<DeviceSlots> slots_;
  MapAuthority* const authority_;
  AttachmentJournal* const journal_;  // of mirrored volumes; else null
  const bool read_only_;
  const bool thin_;

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
  absl::flat_hash_set<DeviceIndex> retired_ ABSL_GUARDED_BY(retire_mu_);

  // Why the map log, or the authority, refused; told to first_writes_ once that is there.
  // Before ThinState::mu.
  Mutex end_mu_;
  absl::Status ended_ ABSL_GUARDED_BY(end_mu_);
  FirstWrites* to_end_ ABSL_GUARDED_BY(end_mu_) = nullptr;

  // Of thin volumes open for writing; else null. In the order they are made; state_ and all
  // after it have threads, which end in the other order.
  std::unique_ptr<RequestGate> gate_;
  std::unique_ptr<ThinState> state_;
  std::unique_ptr<FirstWrites> first_writes_;
  std::unique_ptr<Folder> folder_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_VOLUME_H_
