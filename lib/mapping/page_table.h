// The map of one volume in memory: a page table, not a tree of ranges.
//
// One atomic 64-bit word per row (large extent of a column) and leg; the words of one
// row lie side by side. A word is one of
//
//   hole          0                      nothing is mapped; reads as zeros
//   large extent  device 16 | unit 40 | flags 8
//   table         address of 64 words, one per small extent | flags 8
//
// with flags in the low byte. Look-ups take no lock and, for a large extent, touch one
// cache line. The array is reserved, not filled, so an unmapped volume costs address
// space only (8 bytes per row and leg).
//
// Thread safety: look-ups from any thread at any time. Changes to different words may
// run at once; changes to one word are the caller's to order (lib/volume holds that part
// of the volume). A table that a word no longer points at is freed with the PageTable:
// a reader may still be inside it.
#ifndef BRAID_LIB_MAPPING_PAGE_TABLE_H_
#define BRAID_LIB_MAPPING_PAGE_TABLE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"

namespace braid {

// Limits that follow from the word's fields.
inline constexpr uint64_t kMaxDevices = uint64_t{1} << 16;
inline constexpr uint64_t kMaxDeviceUnits = uint64_t{1} << 40;  // 64 PiB of device

class MapWord {
 public:
  enum Flag : uint8_t {
    kMapped = 1,  // points at an extent
    kTable = 2,   // points at a table of small extents
    kStale = 4,   // this leg missed a write here: never read, never written
  };

  constexpr MapWord() = default;
  explicit constexpr MapWord(uint64_t raw) : raw_(raw) {}
  static constexpr MapWord Extent(DeviceIndex device, DeviceUnit unit, uint8_t more_flags = 0) {
    return MapWord(uint64_t{device.value()} << 48 | unit.value() << 8 | kMapped | more_flags);
  }

  constexpr bool is_hole() const { return (raw_ & (kMapped | kTable)) == 0; }
  constexpr bool is_table() const { return (raw_ & kTable) != 0; }
  constexpr bool is_stale() const { return (raw_ & kStale) != 0; }
  constexpr DeviceIndex device() const { return DeviceIndex(static_cast<uint16_t>(raw_ >> 48)); }
  constexpr DeviceUnit unit() const { return DeviceUnit((raw_ >> 8) & (kMaxDeviceUnits - 1)); }
  constexpr uint64_t raw() const { return raw_; }
  friend constexpr bool operator==(MapWord, MapWord) = default;

 private:
  uint64_t raw_ = 0;
};

// What one leg has at one byte.
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
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  const Geometry& geometry() const { return geometry_; }

  // The word of a row and leg, as it is at some moment during the call.
  // row < geometry().rows(), leg < geometry().legs().
  MapWord Word(uint64_t row, uint32_t leg) const {
    return MapWord(words_[row * legs_ + leg].load(std::memory_order_acquire));
  }

  // Where one leg keeps the byte at `place`, through a table of small extents when
  // there is one.
  LegPlace Look(ColumnPlace place, uint32_t leg) const {
    MapWord word = Word(geometry_.Row(place), leg);
    const uint64_t in_extent = place.offset & (kExtentBytes - 1);
    if (!word.is_table()) [[likely]] {
      return {!word.is_hole(), word.is_stale(), word.device(),
              word.unit().value() * kSmallExtentBytes + in_extent};
    }
    return LookInTable(word, in_extent);
  }

  // Changes. Each takes effect for look-ups that begin after it returns.
  // The extent's first byte lies at unit * 64 KiB on the device.
  void SetLarge(uint64_t row, uint32_t leg, MapWord word);
  // small < kSmallPerExtent. Makes the table if the row has none; the row is then a
  // hole or a table, never a large extent. The word may be a hole.
  void SetSmall(uint64_t row, uint32_t leg, uint32_t small, MapWord word);
  // Sets (or clears) kStale on a row's leg, and on all its small extents.
  void SetStale(uint64_t row, uint32_t leg, bool stale);

  // Enters whole runs; InvalidArgument when one lies outside the geometry, names a
  // device past `device_count`, or overlaps what is mapped already (nothing of that
  // run is entered then).
  absl::Status Enter(const MapRun& run, uint64_t device_count);

  // Bytes of memory that are really in use for words and tables, as counted here
  // (touched pages of the array are for the kernel to know).
  uint64_t table_bytes() const;

 private:
  struct SmallTable;
  PageTable(const Geometry& geometry, std::atomic<uint64_t>* words, uint64_t mapped_bytes);
  LegPlace LookInTable(MapWord word, uint64_t offset_in_extent) const;

  const Geometry geometry_;
  const uint32_t legs_;
  std::atomic<uint64_t>* const words_;
  const uint64_t reserved_bytes_;
  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<SmallTable>> tables_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_PAGE_TABLE_H_
