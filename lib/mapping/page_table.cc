#include "lib/mapping/page_table.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

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
  const MapWord before = Word(row, leg);
  Store(WordAt(row, leg), word);
  if (before.is_table()) Retire(before);
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

absl::Status PageTable::Split(uint64_t row, uint32_t leg) {
  assert(row < geometry().rows() && leg < geometry().legs());
  const MapWord word = Word(row, leg);
  if (!word.is_extent()) return absl::OkStatus();
  absl::StatusOr<uint64_t*> made = NewTable();
  if (!made.ok()) return made.status();
  // Staleness goes into the small words, so that a unit entered later in this row is not
  // born stale.
  for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
    Store((*made)[small], UnitWord(word, small));
  }
  Store(WordAt(row, leg), MapWord::Table(*made));
  return absl::OkStatus();
}

MapWord PageTable::UnitWord(MapWord word, uint32_t small) {
  if (word.is_extent()) {
    return MapWord::Extent(word.device(), word.unit() + small,
                           word.is_stale() ? MapWord::kStale : 0);
  }
  if (word.is_hole()) return {};
  const MapWord own = Load(word.table()[small]);
  return own.is_hole() ? MapWord() : own.WithStale(own.is_stale() || word.is_stale());
}

PageTable::RowCut PageTable::Cut(uint32_t column, ColumnUnit first, uint64_t count) const {
  RowCut cut;
  cut.first_whole = ExtentOf(first);
  const ColumnUnit end = first + count;
  if (const uint32_t begin = SmallOf(first); begin != 0 || count < kSmallPerExtent) {
    const uint64_t in_row = std::min<uint64_t>(count, kSmallPerExtent - begin);
    cut.parts.push_back(
        {geometry().Row(column, cut.first_whole), begin, static_cast<uint32_t>(begin + in_row)});
    ++cut.first_whole;
    if (in_row == count) return cut;
  }
  const ExtentIndex last = ExtentOf(end);  // the row that `end` lies in
  cut.whole = last - cut.first_whole;
  if (SmallOf(end) != 0) cut.parts.push_back({geometry().Row(column, last), 0, SmallOf(end)});
  return cut;
}

bool PageTable::Meets(const RowPart& part, uint32_t leg) const {
  const MapWord word = Word(part.row, leg);
  if (!word.is_table()) return !word.is_hole();
  for (uint32_t small = part.begin; small < part.end; ++small) {
    if (!Load(word.table()[small]).is_hole()) return true;
  }
  return false;
}

absl::Status PageTable::NeedTable(uint64_t row, uint32_t leg) {
  if (Word(row, leg).is_table()) return absl::OkStatus();
  absl::StatusOr<uint64_t*> made = NewTable();
  if (!made.ok()) return made.status();
  Store(WordAt(row, leg), MapWord::Table(*made));
  return absl::OkStatus();
}

void PageTable::DropEmptyTable(uint64_t row, uint32_t leg) {
  const MapWord word = Word(row, leg);
  if (!word.is_table() || Meets({row, 0, kSmallPerExtent}, leg)) return;
  Store(WordAt(row, leg), MapWord());
  Retire(word);
}

bool PageTable::EnterWhole(const MapRun& run, ExtentIndex extent, uint64_t count, uint64_t* met) {
  const uint64_t stride = uint64_t{geometry().columns()} * geometry().legs();
  uint64_t* const begin = &WordAt(geometry().Row(run.column, extent), run.leg);
  const DeviceUnit unit = run.unit + (FirstUnit(extent) - run.first);
  uint64_t raw = MapWord::Extent(run.device, unit, run.stale ? MapWord::kStale : 0).raw();
  constexpr uint64_t kNextExtent =
      MapWord::Extent(DeviceIndex(0), DeviceUnit(kSmallPerExtent)).raw() -
      MapWord::Extent(DeviceIndex(0), DeviceUnit(0)).raw();
  // One pass, taken back where it meets a word: looking first would touch every page of
  // the table twice, and the runs of a sound map never meet.
  for (uint64_t i = 0; i < count; ++i, raw += kNextExtent) {
    uint64_t& word = begin[i * stride];
    if (!Load(word).is_hole()) [[unlikely]] {
      for (uint64_t undo = 0; undo < i; ++undo) Store(begin[undo * stride], MapWord());
      *met = i;
      return false;
    }
    Store(word, MapWord(raw));
  }
  return true;
}

absl::Status PageTable::Enter(const MapRun& run, uint64_t device_count) {
  if (absl::Status status = CheckRun(geometry(), run, device_count); !status.ok()) return status;
  const auto twice = [&run](ExtentIndex extent) {
    return absl::InvalidArgumentError(
        absl::StrCat("extent ", extent.value(), " of column ", run.column, ", leg ", run.leg,
                     " is mapped twice; the map is damaged, and none of that run's ", run.count,
                     " units was entered"));
  };
  const RowCut cut = Cut(run.column, run.first, run.count);
  // The ends first, as far as that can fail: an empty table reads as the hole it was.
  absl::Status status;
  for (const RowPart& part : cut.parts) {
    if (Meets(part, run.leg)) return twice(ExtentIndex(part.row / geometry().columns()));
  }
  for (const RowPart& part : cut.parts) {
    if (status.ok()) status = NeedTable(part.row, run.leg);
  }
  uint64_t met = 0;
  if (status.ok() && cut.whole > 0 && !EnterWhole(run, cut.first_whole, cut.whole, &met)) {
    status = twice(cut.first_whole + met);
  }
  if (!status.ok()) {
    for (const RowPart& part : cut.parts) DropEmptyTable(part.row, run.leg);
    return status;
  }
  for (const RowPart& part : cut.parts) {
    uint64_t* const table = Word(part.row, run.leg).table();
    const uint64_t extent = part.row / geometry().columns();
    for (uint32_t small = part.begin; small < part.end; ++small) {
      const uint64_t in_run = extent * kSmallPerExtent + small - run.first.value();
      Store(table[small],
            MapWord::Extent(run.device, run.unit + in_run, run.stale ? MapWord::kStale : 0));
    }
  }
  return absl::OkStatus();
}

absl::Status PageTable::Clear(uint32_t column, ColumnUnit first, uint64_t count) {
  if (column >= geometry().columns() ||
      !RangeFits(first.value(), count, geometry().units_per_column())) {
    return absl::InvalidArgumentError(absl::StrCat(
        count, " units from ", first.value(), " in column ", column, " lie outside the volume's ",
        geometry().columns(), " columns of ", geometry().units_per_column(), " units"));
  }
  if (count == 0) return absl::OkStatus();
  const RowCut cut = Cut(column, first, count);
  // What can fail comes first, and look-ups do not see it.
  for (const RowPart& part : cut.parts) {
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      if (absl::Status status = Split(part.row, leg); !status.ok()) return status;
    }
  }
  for (const RowPart& part : cut.parts) {
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      const MapWord word = Word(part.row, leg);
      if (!word.is_table()) continue;
      for (uint32_t small = part.begin; small < part.end; ++small) {
        Store(word.table()[small], MapWord());
      }
      DropEmptyTable(part.row, leg);
    }
  }
  for (uint64_t i = 0; i < cut.whole; ++i) {
    const uint64_t row = geometry().Row(column, cut.first_whole + i);
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      // A page never touched stays so.
      if (Word(row, leg) != MapWord()) SetLarge(row, leg, MapWord());
    }
  }
  return absl::OkStatus();
}

RetiredTables PageTable::TakeRetired() {
  RetiredTables taken;
  const MutexLock lock(&mu_);
  taken.tables_.swap(retired_);
  return taken;
}

void PageTable::Recycle(RetiredTables tables) {
  for (uint64_t* table : tables.tables_) std::fill_n(table, kSmallPerExtent, 0);
  const MutexLock lock(&mu_);
  free_.insert(free_.end(), tables.tables_.begin(), tables.tables_.end());
}

uint64_t PageTable::table_bytes() const {
  const MutexLock lock(&mu_);
  return tables_made_ * kTableBytes;
}

absl::StatusOr<uint64_t*> PageTable::NewTable() {
  const MutexLock lock(&mu_);
  if (!free_.empty()) {
    uint64_t* const table = free_.back();
    free_.pop_back();
    return table;
  }
  if (tables_made_ == slabs_.size() * kTablesPerSlab) {
    absl::StatusOr<ReservedMemory> slab = ReservedMemory::Allocate(kTablesPerSlab * kTableBytes);
    if (!slab.ok()) return slab.status();
    slabs_.push_back(*std::move(slab));
  }
  auto* const slab = static_cast<uint64_t*>(slabs_.back().data());
  return slab + (tables_made_++ % kTablesPerSlab) * kSmallPerExtent;
}

void PageTable::Retire(MapWord table) {
  const MutexLock lock(&mu_);
  retired_.push_back(table.table());
}

}  // namespace braid
