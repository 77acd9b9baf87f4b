#include "lib/mapping/page_table.h"

#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid {

absl::StatusOr<std::unique_ptr<PageTable>> PageTable::Create(const Geometry& geometry) {
  // Fits: at most 2^41 + 64 rows of 4 words of 8 bytes.
  const uint64_t bytes = geometry.rows() * geometry.legs() * sizeof(uint64_t);
  absl::StatusOr<ReservedMemory> words = ReservedMemory::Allocate(bytes > 0 ? bytes : 1);
  if (!words.ok()) return words.status();
  return std::unique_ptr<PageTable>(new PageTable(geometry, *std::move(words)));
}

PageTable::PageTable(const Geometry& geometry, ReservedMemory words)
    : words_(std::move(words)), reader_(geometry, static_cast<uint64_t*>(words_.data())) {}

LegPlace PageTable::Reader::LookInTable(MapWord word, uint64_t in_extent) {
  if (!word.is_table()) return {};
  const MapWord small = Load(word.table()[in_extent / kSmallExtentBytes]);
  if (!small.is_extent()) return {};
  return {small.WithStale(small.is_stale() || word.is_stale()), in_extent % kSmallExtentBytes};
}

void PageTable::SetLarge(uint64_t row, uint32_t leg, MapWord word) {
  assert(row < geometry().rows() && leg < geometry().legs() && !word.is_table());
  Store(WordAt(row, leg), word);
}

absl::Status PageTable::SetSmall(uint64_t row, uint32_t leg, uint32_t small, MapWord word) {
  assert(row < geometry().rows() && leg < geometry().legs() && small < kSmallPerExtent &&
         !word.is_table());
  MapWord table = Word(row, leg);
  assert(table.is_table() || table.is_hole());
  if (!table.is_table()) {
    absl::StatusOr<uint64_t*> made = NewTable();
    if (!made.ok()) return made.status();
    table = MapWord::Table(*made);
    // Filled before it is pointed at: no look-up sees the row without this word in
    // between, nor the table before its zeros.
    Store((*made)[small], word);
    Store(WordAt(row, leg), table);
    return absl::OkStatus();
  }
  Store(table.table()[small], word);
  return absl::OkStatus();
}

void PageTable::SetStale(uint64_t row, uint32_t leg, bool stale) {
  assert(row < geometry().rows() && leg < geometry().legs());
  const MapWord word = Word(row, leg);
  if (word.is_hole()) return;
  // Look-ups take a small extent as stale when either word says so: the table's word goes
  // first on the way to stale and last on the way back, so that they turn as one.
  if (stale) Store(WordAt(row, leg), word.WithStale(true));
  if (word.is_table()) {
    for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
      uint64_t& at = word.table()[small];
      const MapWord was = Load(at);
      if (!was.is_hole()) Store(at, was.WithStale(stale));
    }
  }
  if (!stale) Store(WordAt(row, leg), word.WithStale(false));
}

absl::Status PageTable::Enter(const MapRun& run, uint64_t device_count) {
  if (absl::Status status = CheckRun(geometry(), run, device_count); !status.ok()) return status;
  const uint64_t stride = uint64_t{geometry().columns()} * geometry().legs();
  uint64_t* const begin = &WordAt(geometry().Row(run.column, run.first), run.leg);
  uint64_t raw = MapWord::Extent(run.device, run.unit, run.stale ? MapWord::kStale : 0).raw();
  constexpr uint64_t kNextExtent =
      MapWord::Extent(DeviceIndex(0), DeviceUnit(kSmallPerExtent)).raw() -
      MapWord::Extent(DeviceIndex(0), DeviceUnit(0)).raw();
  // One pass, taken back where it meets a word: looking first would touch every page of
  // the table twice, and the runs of a sound map never meet.
  for (uint64_t i = 0; i < run.count; ++i, raw += kNextExtent) {
    uint64_t& word = begin[i * stride];
    if (!Load(word).is_hole()) [[unlikely]] {
      for (uint64_t undo = 0; undo < i; ++undo) Store(begin[undo * stride], MapWord());
      return absl::InvalidArgumentError(
          absl::StrCat("extent ", run.first.value() + i, " of column ", run.column, ", leg ",
                       run.leg, " is mapped twice; the map is damaged, and none of that run's ",
                       run.count, " extents was entered"));
    }
    Store(word, MapWord(raw));
  }
  return absl::OkStatus();
}

uint64_t PageTable::table_bytes() const {
  const MutexLock lock(&mu_);
  return tables_made_ * kTableBytes;
}

absl::StatusOr<uint64_t*> PageTable::NewTable() {
  const MutexLock lock(&mu_);
  if (tables_made_ == slabs_.size() * kTablesPerSlab) {
    absl::StatusOr<ReservedMemory> slab = ReservedMemory::Allocate(kTablesPerSlab * kTableBytes);
    if (!slab.ok()) return slab.status();
    slabs_.push_back(*std::move(slab));
  }
  auto* const slab = static_cast<uint64_t*>(slabs_.back().data());
  return slab + (tables_made_++ % kTablesPerSlab) * kSmallPerExtent;
}

}  // namespace braid
