// The map of one volume in memory: a page table, not a tree of ranges.
//
// One atomic 64-bit word per row (large extent of a column) and leg; the words of one
// row lie side by side. A word is one of
//
//   hole          0                      nothing is mapped; reads as zeros
//   large extent  flags 8 | unit 40 | device 16
//   table         flags 8 | address of 64 words, one per small extent
//
// from the highest bit down, with three of the flags taken. The order makes the way to a
// large extent short: the unit stands where its first byte does (a unit is 2^16 bytes), the
// device is a register's low half word, and the flag to test is the sign. Addresses of user
// space fit in 56 bits, and Linux hands out longer ones only to who asks for them.
//
// Look-ups take no lock and, for a large extent, touch one cache line; a small one adds the
// line of its table. Many at once wait for memory together, as many as fit into the
// processor's window, so that what counts then is the number of instructions
// (docs/PERFORMANCE.md). The array is reserved, not filled, so an unmapped volume costs
// address space only (8 bytes per row and leg); reserved_memory.h says when that is counted.
//
// Thread safety: look-ups from any thread at any time. Changes to different rows and legs may
// run at once; changes to one row and leg, small extents included, are the caller's to order
// (lib/volume holds that part of the volume). Changes that name no leg (Clear) are changes
// of all legs of their rows. ForEachRun, MarkDeviceStale and CountLive go over all rows and
// legs, and no change may run beside them.
//
// A table that a word no longer points at is retired, not freed: a look-up that began before
// may still be inside it. Whoever knows when those have ended (a grace period) hands it back:
//
//   RetiredTables old = table.TakeRetired();
//   ... wait until every look-up that had begun by now has ended ...
//   table.Recycle(std::move(old));
//
// What is never handed back is freed with the PageTable.
#ifndef BRAID_LIB_MAPPING_PAGE_TABLE_H_
#define BRAID_LIB_MAPPING_PAGE_TABLE_H_

#include <atomic>
#include <cassert>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"
#include "lib/mapping/reserved_memory.h"

namespace braid {

// Limits that follow from the word's fields.
inline constexpr uint64_t kMaxDevices = uint64_t{1} << 16;
inline constexpr uint64_t kMaxDeviceUnits = uint64_t{1} << 40;  // 64 PiB of device

class MapWord {
 public:
  // The flags. Points at an extent; never together with kTable.
  static constexpr uint64_t kMapped = uint64_t{1} << 63;
  // Points at a table of small extents.
  static constexpr uint64_t kTable = uint64_t{1} << 62;
  // This leg missed a write here: never read, never written.
  static constexpr uint64_t kStale = uint64_t{1} << 61;

  constexpr MapWord() = default;
  explicit constexpr MapWord(uint64_t raw) : raw_(raw) {}
  // unit < kMaxDeviceUnits.
  static constexpr MapWord Extent(DeviceIndex device, DeviceUnit unit, uint64_t more_flags = 0) {
    assert(unit.value() < kMaxDeviceUnits);
    return MapWord(kMapped | more_flags | unit.value() << kDeviceBits | device.value());
  }

  static MapWord Table(uint64_t* words) {
    const auto address = reinterpret_cast<uintptr_t>(words);
    assert((address & ~kAddressMask) == 0);
    return MapWord(address | kTable);
  }

  // Of these three one is true.
  constexpr bool is_hole() const { return (raw_ & (kMapped | kTable)) == 0; }
  constexpr bool is_extent() const { return (raw_ & kMapped) != 0; }
  constexpr bool is_table() const { return (raw_ & kTable) != 0; }
  constexpr bool is_stale() const { return (raw_ & kStale) != 0; }
  constexpr DeviceIndex device() const { return DeviceIndex(static_cast<uint16_t>(raw_)); }
  // Of the extent's first byte on its device: unit * 64 KiB, which needs no shift.
  constexpr uint64_t device_offset() const {
    static_assert(kSmallExtentBytes == uint64_t{1} << kDeviceBits);
    return raw_ & ((kMaxDeviceUnits - 1) << kDeviceBits);
  }
  constexpr DeviceUnit unit() const { return DeviceUnit(device_offset() >> kDeviceBits); }
  // Of a table only; elsewhere the bits mean something else.
  uint64_t* table() const { return reinterpret_cast<uint64_t*>(raw_ & kAddressMask); }
  constexpr MapWord WithStale(bool stale) const {
    return MapWord(stale ? raw_ | kStale : raw_ & ~uint64_t{kStale});
  }
  constexpr uint64_t raw() const { return raw_; }
  friend constexpr bool operator==(MapWord, MapWord) = default;

 private:
  static constexpr int kDeviceBits = 16;
  static constexpr uint64_t kAddressMask = (uint64_t{1} << 56) - 1;

  uint64_t raw_ = 0;
};

// What one leg has at one byte. Two words, so that it travels in registers.
class LegPlace {
 public:
  LegPlace() = default;  // a hole
  // `extent` has the byte `in_extent` bytes after its first.
  LegPlace(MapWord extent, uint64_t in_extent) : word_(extent), in_extent_(in_extent) {}

  bool mapped() const { return word_.is_extent(); }
  // The rest says something only where mapped() is true; else it is false or 0.
  bool stale() const { return word_.is_stale(); }
  DeviceIndex device() const { return word_.device(); }
  // Bytes from the device's first byte.
  uint64_t device_offset() const { return word_.device_offset() + in_extent_; }

 private:
  MapWord word_;  // an extent or a hole
  uint64_t in_extent_ = 0;
};

// Tables that look-ups may still be inside, on their way from TakeRetired to Recycle.
class RetiredTables {
 public:
  size_t size() const { return tables_.size(); }
  bool empty() const { return tables_.empty(); }

 private:
  friend class PageTable;
  std::vector<uint64_t*> tables_;
};

class PageTable {
 public:
  // All holes. ResourceExhausted where the address space cannot be had.
  static absl::StatusOr<std::unique_ptr<PageTable>> Create(const Geometry& geometry);
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Answers look-ups: the table's shape and address, by value. Good while the table lives,
  // and sees every change. Callers with many look-ups to do keep a copy in a local
  // variable: a compiler then holds it in registers, where what it reaches through a
  // pointer it must load again after each word (another thread may have changed it, as far
  // as an acquiring load can tell).
  class Reader {
   public:
    const Geometry& geometry() const { return geometry_; }

    // The word of a row and leg, as it is at some moment during the call.
    // row < geometry().rows(), leg < geometry().legs().
    MapWord Word(uint64_t row, uint32_t leg) const { return Load(WordAt(row, leg)); }

    // Where one leg keeps the byte at `place`, through a table of small extents when
    // there is one.
    ABSL_ATTRIBUTE_ALWAYS_INLINE LegPlace Look(ColumnPlace place, uint32_t leg) const {
      // Locate has asked plain() too, and compilers join the two: no look-up in a plain
      // volume multiplies. What stands before the question is then done on either way,
      // which leaves fewer values to carry past where they meet.
      const uint64_t extent = place.offset / kExtentBytes;
      const uint64_t in_extent = place.offset % kExtentBytes;
      const uint64_t copy =
          geometry_.plain() ? extent : geometry_.Row(place) * geometry_.legs() + leg;
      const MapWord word = Load(words_[copy]);
      // One test on the common way: it tells extents from both tables and holes.
      if (word.is_extent()) [[likely]]
        return {word, in_extent};
      return LookInTable(word, in_extent);
    }

   private:
    friend class PageTable;
    Reader(const Geometry& geometry, uint64_t* words) : geometry_(geometry), words_(words) {}

    uint64_t& WordAt(uint64_t row, uint32_t leg) const {
      return words_[row * geometry_.legs() + leg];
    }
    // `word` is a table or a hole. Never inline: the registers belong to large extents.
    ABSL_ATTRIBUTE_NOINLINE static LegPlace LookInTable(MapWord word, uint64_t in_extent);

    Geometry geometry_;
    uint64_t* words_;
  };

  Reader reader() const { return reader_; }
  const Geometry& geometry() const { return reader_.geometry(); }
  // As the reader's.
  MapWord Word(uint64_t row, uint32_t leg) const { return reader_.Word(row, leg); }
  ABSL_ATTRIBUTE_ALWAYS_INLINE LegPlace Look(ColumnPlace place, uint32_t leg) const {
    return reader_.Look(place, leg);
  }

  // Changes. Each takes effect for look-ups that begin after it returns.
  // The extent's first byte lies at unit * 64 KiB on the device.
  // The word may be a hole; it takes the place of a table whole, which is then retired.
  void SetLarge(uint64_t row, uint32_t leg, MapWord word);
  // small < kSmallPerExtent. Makes the table if the row has none; the row is then a
  // hole or a table, never a large extent. The word may be a hole. ResourceExhausted,
  // and nothing changed, when there is no memory for the table.
  absl::Status SetSmall(uint64_t row, uint32_t leg, uint32_t small, MapWord word);
  // Sets (or clears) kStale on a row's leg, and on all its small extents. A hole stays
  // one: it holds no copy that could be stale.
  void SetStale(uint64_t row, uint32_t leg, bool stale);

  // Makes a table of a large extent, its small extents where they were and as stale as it
  // was. Look-ups find the one or the other, never a hole. Does nothing to a table or a
  // hole. ResourceExhausted, and nothing changed, when there is no memory for the table.
  absl::Status Split(uint64_t row, uint32_t leg);

  // Enters a whole run: large extents where it covers whole rows, small ones at its ends.
  // InvalidArgument when it lies outside the geometry, names a device past `device_count`,
  // or overlaps what is mapped already; ResourceExhausted when there is no memory for
  // tables. After an error nothing of that run is entered; look-ups during the call may
  // see some of it.
  absl::Status Enter(const MapRun& run, uint64_t device_count);

  // Makes `count` units of a column holes, on all legs. Whole rows lose their tables; of a
  // large extent in part within the range the rest stays, as a table; a table left with
  // holes only becomes a hole. InvalidArgument when the range lies outside the column;
  // ResourceExhausted when there is no memory to split. After an error look-ups find
  // everything as it was.
  absl::Status Clear(uint32_t column, ColumnUnit first, uint64_t count);

  // After `device` missed a write: the rule of map_run.h's MarkDeviceStale, in place. Of
  // every unit the copies on this device become stale, but for the last in sync.
  // ResourceExhausted when a large extent could not be split where that concerns a part of
  // it; what lies behind that row is then as it was. May be repeated.
  absl::Status MarkDeviceStale(DeviceIndex device);

  // The whole map, ordered by (column, leg, first), each run as long as can be.
  void ForEachRun(absl::FunctionRef<void(const MapRun&)> fn) const;
  // Units of all legs in sync, by device; every device in the map is below device_count.
  std::vector<uint64_t> CountLive(uint64_t device_count) const;

  // The tables retired since the last call.
  RetiredTables TakeRetired();
  // Makes them the next ones to be used. No look-up is in them any more: all that began
  // before TakeRetired returned have ended.
  void Recycle(RetiredTables tables);

  // Bytes of the tables of small extents made so far, those in use, retired and to be used
  // again (touched pages of the array of rows are for the kernel to know).
  uint64_t table_bytes() const;

 private:
  static constexpr uint64_t kTableBytes = kSmallPerExtent * sizeof(uint64_t);
  // A slab is one huge page.
  static constexpr uint64_t kTablesPerSlab = kHugePageBytes / kTableBytes;

  PageTable(const Geometry& geometry, ReservedMemory words);

  // Words are plain integers in memory from the kernel, and atomic in every use.
  static MapWord Load(uint64_t& word) {
    return MapWord(std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire));
  }
  static void Store(uint64_t& word, MapWord value) {
    std::atomic_ref<uint64_t>(word).store(value.raw(), std::memory_order_release);
  }
  uint64_t& WordAt(uint64_t row, uint32_t leg) const { return reader_.WordAt(row, leg); }
  // Units [begin, end) of one row, the part of a range that lies in it.
  struct RowPart {
    uint64_t row;
    uint32_t begin;
    uint32_t end;
  };
  // A range of one column's units as the whole rows in it and the parts of rows at its ends,
  // lowest first.
  struct RowCut {
    ExtentIndex first_whole;
    uint64_t whole = 0;
    absl::InlinedVector<RowPart, 2> parts;
  };
  RowCut Cut(uint32_t column, ColumnUnit first, uint64_t count) const;

  // Whether any unit of the part is mapped.
  bool Meets(const RowPart& part, uint32_t leg) const;
  // Makes a table of a hole.
  absl::Status NeedTable(uint64_t row, uint32_t leg);
  // Makes a hole of a table with holes only.
  void DropEmptyTable(uint64_t row, uint32_t leg);
  // The words of the large extents of a run whose first row is `extent`'s; false, and none
  // entered, where one is no hole: *met is its index among them.
  bool EnterWhole(const MapRun& run, ExtentIndex extent, uint64_t count, uint64_t* met);

  // What a word says of one of its units, the staleness of a table included.
  static MapWord UnitWord(MapWord word, uint32_t small);
  absl::Status MarkRowStale(uint64_t row, DeviceIndex device);

  // All holes.
  absl::StatusOr<uint64_t*> NewTable();
  void Retire(MapWord table);

  const ReservedMemory words_;
  const Reader reader_;

  mutable Mutex mu_;
  std::vector<ReservedMemory> slabs_ ABSL_GUARDED_BY(mu_);
  uint64_t tables_made_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<uint64_t*> retired_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t*> free_ ABSL_GUARDED_BY(mu_);  // all holes
};

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_PAGE_TABLE_H_
