// The map of one volume in memory: a page table, not a tree of ranges.
//
// One atomic 64-bit word per row (large extent of a column) and leg; the words of one
// row lie side by side. A word is one of
//
//   hole          0                      nothing is mapped; reads as zeros
//   large extent  device 16 | unit 40 | flags 8
//   table         address of 64 words, one per small extent | flags 8
//
// with flags in the low byte, of which three are taken; tables lie at multiples of their
// 512 bytes, so their addresses leave that byte free. Look-ups take no lock and, for a
// large extent, touch one cache line; a small one adds the line of its table. The array is
// reserved, not filled, so an unmapped volume costs address space only (8 bytes per row
// and leg); reserved_memory.h says when that is counted.
//
// Thread safety: look-ups from any thread at any time. Changes to different words may
// run at once; changes to one word, and to small extents of one row and leg, are the
// caller's to order (lib/volume holds that part of the volume). A table that a word no
// longer points at is freed with the PageTable: a reader may still be inside it.
#ifndef BRAID_LIB_MAPPING_PAGE_TABLE_H_
#define BRAID_LIB_MAPPING_PAGE_TABLE_H_

#include <atomic>
#include <cassert>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/thread_annotations.h"
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
  enum Flag : uint8_t {
    kMapped = 1,  // points at an extent; never together with kTable
    kTable = 2,   // points at a table of small extents
    kStale = 4,   // this leg missed a write here: never read, never written
  };

  constexpr MapWord() = default;
  explicit constexpr MapWord(uint64_t raw) : raw_(raw) {}
  // unit < kMaxDeviceUnits.
  static constexpr MapWord Extent(DeviceIndex device, DeviceUnit unit, uint8_t more_flags = 0) {
    assert(unit.value() < kMaxDeviceUnits);
    return MapWord(uint64_t{device.value()} << 48 | unit.value() << 8 | kMapped | more_flags);
  }

  // `words` are kSmallPerExtent, aligned to their size.
  static MapWord Table(uint64_t* words) {
    return MapWord(reinterpret_cast<uintptr_t>(words) | kTable);
  }

  // Of these three one is true.
  constexpr bool is_hole() const { return (raw_ & (kMapped | kTable)) == 0; }
  constexpr bool is_extent() const { return (raw_ & kMapped) != 0; }
  constexpr bool is_table() const { return (raw_ & kTable) != 0; }
  constexpr bool is_stale() const { return (raw_ & kStale) != 0; }
  constexpr DeviceIndex device() const { return DeviceIndex(static_cast<uint16_t>(raw_ >> 48)); }
  // Of the extent's first byte on its device: unit * 64 KiB, in one shift.
  constexpr uint64_t device_offset() const {
    return (raw_ << 8) & ((kMaxDeviceUnits - 1) * kSmallExtentBytes);
  }
  constexpr DeviceUnit unit() const { return DeviceUnit((raw_ >> 8) & (kMaxDeviceUnits - 1)); }
  // Of a table only; elsewhere the bits mean something else.
  uint64_t* table() const { return reinterpret_cast<uint64_t*>(raw_ & ~uint64_t{0xff}); }
  constexpr MapWord WithStale(bool stale) const {
    return MapWord(stale ? raw_ | kStale : raw_ & ~uint64_t{kStale});
  }
  constexpr uint64_t raw() const { return raw_; }
  friend constexpr bool operator==(MapWord, MapWord) = default;

 private:
  uint64_t raw_ = 0;
};

// What one leg has at one byte. All but `mapped` is as constructed where it is false.
struct LegPlace {
  bool mapped = false;
  bool stale = false;
  DeviceIndex device;
  uint64_t device_offset = 0;  // bytes from the device's first byte
};

class PageTable {
 public:
  // All holes. ResourceExhausted where the address space cannot be had.
  static absl::StatusOr<std::unique_ptr<PageTable>> Create(const Geometry& geometry);
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  const Geometry& geometry() const { return geometry_; }

  // The word of a row and leg, as it is at some moment during the call.
  // row < geometry().rows(), leg < geometry().legs().
  MapWord Word(uint64_t row, uint32_t leg) const { return Load(WordAt(row, leg)); }

  // Where one leg keeps the byte at `place`, through a table of small extents when
  // there is one.
  ABSL_ATTRIBUTE_ALWAYS_INLINE LegPlace Look(ColumnPlace place, uint32_t leg) const {
    const MapWord word = Word(geometry_.Row(place), leg);
    const uint64_t in_extent = place.offset & (kExtentBytes - 1);
    // One test on the common way: it tells extents from both tables and holes.
    if (word.is_extent()) [[likely]]
      return PlaceOf(word, in_extent);
    return LookInTable(word, in_extent);
  }

  // Changes. Each takes effect for look-ups that begin after it returns.
  // The extent's first byte lies at unit * 64 KiB on the device.
  // The word may be a hole; it takes the place of a table whole.
  void SetLarge(uint64_t row, uint32_t leg, MapWord word);
  // small < kSmallPerExtent. Makes the table if the row has none; the row is then a
  // hole or a table, never a large extent. The word may be a hole. ResourceExhausted,
  // and nothing changed, when there is no memory for the table.
  absl::Status SetSmall(uint64_t row, uint32_t leg, uint32_t small, MapWord word);
  // Sets (or clears) kStale on a row's leg, and on all its small extents. A hole stays
  // one: it holds no copy that could be stale.
  void SetStale(uint64_t row, uint32_t leg, bool stale);

  // Enters whole runs; InvalidArgument when one lies outside the geometry, names a
  // device past `device_count`, or overlaps what is mapped already (nothing of that
  // run is entered when it returns; look-ups during the call may see some of it).
  absl::Status Enter(const MapRun& run, uint64_t device_count);

  // Bytes of the tables of small extents made so far (touched pages of the array of rows
  // are for the kernel to know).
  uint64_t table_bytes() const;

 private:
  static constexpr uint64_t kTableBytes = kSmallPerExtent * sizeof(uint64_t);
  // A slab is one huge page.
  static constexpr uint64_t kTablesPerSlab = kHugePageBytes / kTableBytes;
  static_assert(kTableBytes >= 256, "a table's address must leave the flags' byte free");

  PageTable(const Geometry& geometry, ReservedMemory words);

  // Words are plain integers in memory from the kernel, and atomic in every use.
  static MapWord Load(uint64_t& word) {
    return MapWord(std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire));
  }
  static void Store(uint64_t& word, MapWord value) {
    std::atomic_ref<uint64_t>(word).store(value.raw(), std::memory_order_release);
  }
  uint64_t& WordAt(uint64_t row, uint32_t leg) const { return words_[row * legs_ + leg]; }
  static LegPlace PlaceOf(MapWord extent, uint64_t in_extent) {
    return {true, extent.is_stale(), extent.device(), extent.device_offset() + in_extent};
  }
  // `word` is a table or a hole.
  static LegPlace LookInTable(MapWord word, uint64_t in_extent) {
    if (word.is_table()) {
      const MapWord small = Load(word.table()[in_extent / kSmallExtentBytes]);
      if (small.is_extent()) {
        return {true, small.is_stale() || word.is_stale(), small.device(),
                small.device_offset() + (in_extent & (kSmallExtentBytes - 1))};
      }
    }
    return {false, false, DeviceIndex(0), 0};
  }
  // All holes.
  absl::StatusOr<uint64_t*> NewTable();

  const Geometry geometry_;
  const uint64_t legs_;
  uint64_t* const words_;
  const ReservedMemory words_memory_;

  mutable Mutex mu_;
  std::vector<ReservedMemory> slabs_ ABSL_GUARDED_BY(mu_);
  uint64_t tables_made_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_PAGE_TABLE_H_
