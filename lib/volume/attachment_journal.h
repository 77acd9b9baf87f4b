// What an attachment has under way, in memory that outlives its process.
//
// When the process dies, killed or crashed, everything it had acknowledged is in the
// kernel's hands and so on every in-sync leg; the legs of a mirror can differ only where a
// write was in flight. This file says where that was. The next process makes the legs
// equal there and goes on with all of them, where otherwise one leg could be trusted and
// the others would have to be copied whole.
//
// It lives in the attachment's lock file, under /run: shared memory pages that the kernel
// keeps for the next holder, who has the lock and therefore is alone. Nothing here is ever
// synced to a disk, and after a restart of the machine it is worth nothing: a journal is
// stamped with the boot id, and with the epoch of its holder, and counts only when both are
// those that the control plane has on record.
//
//   offset  bytes
//        0      8  magic "BraidJnl", stored last: without it there is no journal
//        8     16  boot id
//       24      8  epoch
//       32    256  devices in doubt: 64 times device index + 1, or 0; 4 bytes each
//      288  16384  writes in flight: 1024 times (offset, length); length 0 is none
//    16672      8  map changes committed: the number of the last one known to be
//    16680     24  zero
//    16704 524288  map changes: 8192 places of 64 bytes, the change numbered n in place n % 8192
//
// A map change: its number (8 bytes, stored last, 0 while the place is being changed), first
// unit (8), kind, column, legs, a bit set of stale legs (1 each), units (4), then for
// each of 4 legs its place as a word of the page table (8), and 8 bytes of zero. The last two
// parts of the file are there for thin volumes only (docs/ALLOCATION.md).
//
// in the machine's own byte order, since no other machine reads it. A kill between two
// stores leaves every slot with its old or its new value: a slot's offset is stored before
// its length, and its length is cleared before the slot is used again.
#ifndef BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_
#define BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/mapping/map_change.h"

namespace braid {

class AttachmentJournal {
 public:
  // Writes in flight at once. nbdkit runs one request a thread, and is started with far
  // fewer; one more waits.
  static constexpr size_t kWrites = 1024;
  // Devices found wanting and not yet recorded by the control plane; one more is not
  // noted, which costs the note only.
  static constexpr size_t kDoubts = 64;

  struct Range {
    uint64_t offset = 0;
    uint64_t length = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };
  // What the holder before left.
  struct Past {
    Epoch epoch;
    std::vector<Range> writes;         // may or may not have reached each leg
    std::vector<DeviceIndex> doubted;  // had failed, and were not yet recorded as stale
    // Map changes in the order of their numbers, without a gap, from the oldest that is still
    // there; some of them may have been committed. first_change is the number of the first.
    uint64_t first_change = 0;
    std::vector<MapChange> changes;
  };

  // Map changes noted and not known to be committed: at most this many.
  static constexpr size_t kChanges = 8192;

  // `fd` is the lock file, open for reading and writing, locked by this process; it may be
  // closed afterwards, the lock kept by another descriptor of the same open file. Changes
  // nothing that was noted. With `map_changes` there is room for those. Errors: of the file
  // system.
  static absl::StatusOr<std::unique_ptr<AttachmentJournal>> Open(int fd, const Uuid& boot_id,
                                                                 bool map_changes);
  ~AttachmentJournal();
  AttachmentJournal(const AttachmentJournal&) = delete;
  AttachmentJournal& operator=(const AttachmentJournal&) = delete;

  // nullopt: nothing can be known, because the file is new, of another boot, or damaged.
  const std::optional<Past>& past() const { return past_; }

  // From now on the journal is `epoch`'s. What was noted by the epoch right before it stays
  // noted, until ForgetPast; anything older was settled otherwise and goes. Call it once,
  // when the epoch has been granted and before the first write.
  void Begin(Epoch epoch);
  // What the holder before left has been settled.
  void ForgetPast();

  // Notes a write for as long as it lives. Thread-safe; waits while kWrites are noted.
  class Write {
   public:
    // `journal` may be null: then nothing is noted.
    Write(AttachmentJournal* journal, uint64_t offset, uint64_t length);
    ~Write();
    Write(const Write&) = delete;
    Write& operator=(const Write&) = delete;
    // Leaves the note for the next holder: the legs may differ here for good.
    void Keep() { journal_ = nullptr; }

   private:
    AttachmentJournal* journal_;
    size_t slot_ = 0;
  };

  // Map changes, where there is room for them. One caller of NoteChange at a time; it has
  // made sure that the change numbered `sequence` - kChanges is committed. Sequences are
  // without a gap. Any thread may read.
  void NoteChange(uint64_t sequence, const MapChange& change);
  // The change with this number; it has been noted and fewer than kChanges after it.
  MapChange ReadChange(uint64_t sequence) const;
  // All changes up to this one are committed: an advice for the next holder, since the
  // authority knows better.
  void NoteCommitted(uint64_t sequence);

  // A device failed; noted until it is recorded as stale. Thread-safe.
  void Doubt(DeviceIndex device);
  void Settled(DeviceIndex device);

 private:
  struct Slot {
    std::atomic<uint64_t> offset;
    std::atomic<uint64_t> length;
  };
  struct Layout {
    std::atomic<uint64_t> magic;
    std::array<uint8_t, Uuid::kBytes> boot_id;
    std::atomic<uint64_t> epoch;
    std::array<std::atomic<uint32_t>, kDoubts> doubts;
    std::array<Slot, kWrites> writes;
  };
  static_assert(sizeof(Layout) == 288 + kWrites * 16);
  static_assert(std::atomic<uint64_t>::is_always_lock_free);

  AttachmentJournal(Layout* layout, const Uuid& boot_id);
  std::optional<Past> ReadPast() const;
  size_t TakeSlot();

  Layout* const layout_;
  const Uuid boot_id_;
  std::optional<Past> past_;
  // Slots in use by this process or still holding the past.
  std::array<std::atomic<bool>, kWrites> taken_{};
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_
