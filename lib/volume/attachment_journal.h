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
//    16672     32  scratch: a granted row that is written to before it is bound; by leg its place
//                  as a word of the page table, then 0; leg 0 is stored last, and 0 is none
//    16704 524288  map changes: 8192 places of 64 bytes, the change numbered n in place n % 8192
//
// in the machine's own byte order, since no other machine reads it. The last three parts are
// there for thin volumes only (docs/ALLOCATION.md). A map change:
//
//        0      8  its number, from 1 on; 0 is no change
//        8      8  first unit
//       16      1  kind (MapChange::Kind)
//       17      1  column
//       18      2  zero
//       20      4  units
//       24     32  by leg: its place as a word of the page table, stale or not; 0 in an unbind
//       56      8  zero
//
// A kill between two stores leaves every slot with its old or its new value, or empty: a
// slot's offset is stored before its length, and its length is cleared before the slot is
// used again; of a map change the number likewise. (Other processors may see a thread's
// stores in another order than it made them, but a kill comes between two instructions, as
// a signal handler does, and all before it are carried out before anybody takes the lock.)
//
// Map changes are numbered without a gap, and one is overwritten only when it is known to be
// committed. So whatever moment the kill comes at, the places hold the longest run of numbers
// that ends with the highest, and older changes that a later run did not get to: those were
// committed. The file is input all the same. A place whose number is not its own, or whose
// rest no NoteChange wrote, is damage and counts as empty; should that, or a gap, concern a
// change that the authority does not have, nothing is replayed: an acknowledged write would
// be gone without a word (Past::ChangesAfter).
#ifndef BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_
#define BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
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
    // Map changes in the order of their numbers, without a gap, up to the highest number
    // there is; some or all of them may have been committed. first_change is the number of
    // the first.
    uint64_t first_change = 0;
    std::vector<MapChange> changes;
    // The highest number, as far as it can be told, of a change that cannot be read; 0 none.
    uint64_t damaged_change = 0;
    // kSmallPerExtent granted units that may not be zero; unless one of the changes, or the
    // authority, has bound them.
    std::optional<Grant> scratch;

    // What is to be committed again when the authority has every change up to `applied`;
    // the first is number applied + 1. DataLoss: one of them is missing or damaged.
    absl::StatusOr<absl::Span<const MapChange>> ChangesAfter(uint64_t applied) const;
  };

  // Map changes noted and not known to be committed: at most this many.
  static constexpr size_t kChanges = 8192;
  // The highest number of one; who takes a number from outside checks it against this.
  static constexpr uint64_t kMaxChange = uint64_t{1} << 62;

  // `fd` is the lock file, open for reading and writing, locked by this process; it may be
  // closed afterwards, the lock kept by another descriptor of the same open file. Changes
  // nothing that was noted. With `map_changes` there is room for those; without, a file that
  // has room for them is cut. Errors: of the file system.
  static absl::StatusOr<std::unique_ptr<AttachmentJournal>> Open(int fd, const Uuid& boot_id,
                                                                 bool map_changes);
  ~AttachmentJournal();
  AttachmentJournal(const AttachmentJournal&) = delete;
  AttachmentJournal& operator=(const AttachmentJournal&) = delete;

  // nullopt: nothing can be known, because the file is new, of another boot, or damaged.
  const std::optional<Past>& past() const { return past_; }

  // From now on the journal is `epoch`'s. With `keep_past` what was noted before stays noted,
  // writes and devices until ForgetPast, map changes until they are overwritten; else it
  // was settled otherwise and goes. Whether the past counts is for the authority to say:
  // it does when no epoch after the past one's has written. Call it once, when the epoch
  // has been granted and before the first write or map change.
  void Begin(Epoch epoch, bool keep_past);
  // The writes and devices that the holder before left have been settled.
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

  // Map changes, where there is room for them.

  // Of all changes there are, the holder's before among them; 0 none.
  uint64_t last_change() const { return last_change_.load(std::memory_order_acquire); }
  // `sequence` is at least 1 and one more than that of the call before; the change has passed
  // CheckMapChange. One caller at a time; the change numbered `sequence` - kChanges is known
  // to be committed.
  void NoteChange(uint64_t sequence, const MapChange& change);
  // The change with this number; it has been noted, and fewer than kChanges after it. Any
  // thread that knows so. nullopt: it is not there, or damaged.
  std::optional<MapChange> ReadChange(uint64_t sequence) const;
  // Makes the leg on `device` of a change stale, unless it has none there or that is the last
  // in sync of its `legs`. As for ReadChange; one caller at a time. A kill leaves it done
  // or not done.
  void MarkChangeStale(uint64_t sequence, DeviceIndex device, uint32_t legs);
  // A row that is about to be written to before it is bound, with as many legs as the volume
  // has; until ClearScratch, after the change that binds it is noted or the row is zero
  // again. One row, and one caller, at a time.
  void NoteScratch(const Grant& row);
  void ClearScratch();

  // A device failed; noted until it is recorded as stale. Thread-safe.
  void Doubt(DeviceIndex device);
  void Settled(DeviceIndex device);

 private:
  struct Slot {
    std::atomic<uint64_t> offset;
    std::atomic<uint64_t> length;
  };
  // What of a map change follows its number, as the table above has it.
  static constexpr size_t kChangeWords = 7;
  struct Place {
    std::atomic<uint64_t> number;
    std::array<std::atomic<uint64_t>, kChangeWords> words;
  };
  struct Layout {
    std::atomic<uint64_t> magic;
    std::array<uint8_t, Uuid::kBytes> boot_id;
    std::atomic<uint64_t> epoch;
    std::array<std::atomic<uint32_t>, kDoubts> doubts;
    std::array<Slot, kWrites> writes;
    // From here on for thin volumes only.
    std::array<std::atomic<uint64_t>, kMaxLegs> scratch;
    std::array<Place, kChanges> changes;
  };
  static constexpr size_t kBytesWithoutChanges = 288 + kWrites * 16;
  static_assert(offsetof(Layout, scratch) == kBytesWithoutChanges);
  static_assert(offsetof(Layout, changes) == 16704);
  static_assert(sizeof(Layout) == 16704 + kChanges * 64);
  static_assert(std::atomic<uint64_t>::is_always_lock_free);

  // `bytes` of `layout` are mapped: all of it, or kBytesWithoutChanges.
  AttachmentJournal(Layout* layout, size_t bytes, const Uuid& boot_id);
  std::optional<Past> ReadPast() const;
  void ReadPastChanges(Past& past) const;
  // False when there is one that NoteScratch did not write.
  bool ReadScratch(Past& past) const;
  static std::optional<MapChange> ReadBody(const Place& place);
  size_t TakeSlot();
  bool has_changes() const { return bytes_ == sizeof(Layout); }

  Layout* const layout_;
  const size_t bytes_;
  const Uuid boot_id_;
  std::optional<Past> past_;
  std::atomic<uint64_t> last_change_{0};
  // Slots in use by this process or still holding the past.
  std::array<std::atomic<bool>, kWrites> taken_{};
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_ATTACHMENT_JOURNAL_H_
