#include "lib/volume/attachment_journal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <thread>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

constexpr uint64_t kMagic = 0x6c6e4a6469617242;  // "BraidJnl" in the file

// A column of the largest volume.
constexpr uint64_t kMaxColumnUnits = kMaxVolumeBytes / kSmallExtentBytes + kSmallPerExtent;

// A map change in the file, behind its number.
struct ChangeBody {
  uint64_t first = 0;
  uint8_t kind = 0;
  uint8_t column = 0;
  uint16_t zero = 0;
  uint32_t count = 0;
  std::array<uint64_t, kMaxLegs> places{};
  uint64_t zero_too = 0;
};
using ChangeWords = std::array<uint64_t, sizeof(ChangeBody) / sizeof(uint64_t)>;
// The word of leg 0.
constexpr size_t kPlacesWord = offsetof(ChangeBody, places) / sizeof(uint64_t);
static_assert(kMaxColumns <= 256);

ChangeWords Encode(const MapChange& change) {
  ChangeBody body{.first = change.first.value(),
                  .kind = static_cast<uint8_t>(change.kind),
                  .column = static_cast<uint8_t>(change.column),
                  .count = change.count};
  for (size_t leg = 0; change.kind != MapChange::Kind::kUnbind && leg < kMaxLegs; ++leg) {
    const UnitPlace& place = change.legs[leg];
    body.places[leg] =
        MapWord::Extent(place.device, place.unit, place.stale ? MapWord::kStale : 0).raw();
  }
  return std::bit_cast<ChangeWords>(body);
}

// nullopt for what Encode never gives.
std::optional<MapChange> Decode(const ChangeWords& words) {
  const auto body = std::bit_cast<ChangeBody>(words);
  MapChange change{.kind = static_cast<MapChange::Kind>(body.kind),
                   .column = body.column,
                   .first = ColumnUnit(body.first),
                   .count = body.count};
  switch (change.kind) {
    case MapChange::Kind::kBind:
    case MapChange::Kind::kMove:
      for (size_t leg = 0; leg < kMaxLegs; ++leg) {
        const MapWord word(body.places[leg]);
        change.legs[leg] = {.device = word.device(), .unit = word.unit(), .stale = word.is_stale()};
      }
      break;
    case MapChange::Kind::kUnbind:
      break;
    default:
      return std::nullopt;
  }
  if (change.column >= kMaxColumns || change.count == 0 ||
      !RangeFits(body.first, body.count, kMaxColumnUnits)) {
    return std::nullopt;
  }
  // All that was not looked at is as it must be.
  if (Encode(change) != words) return std::nullopt;
  return change;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttachmentJournal>> AttachmentJournal::Open(int fd,
                                                                           const Uuid& boot_id,
                                                                           bool map_changes) {
  const size_t bytes = map_changes ? sizeof(Layout) : kBytesWithoutChanges;
  struct stat st {};
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "cannot look at the attachment's lock file");
  // A shorter file has no journal.
  const auto present = static_cast<uint64_t>(st.st_size);
  const off_t kept = present < kBytesWithoutChanges ? 0 : static_cast<off_t>(bytes);
  if ((kept == 0 || present > bytes) && ftruncate(fd, kept) != 0) {
    return ErrnoStatus(errno, "cannot clear the attachment's journal");
  }
  // Its pages are made now, so that no later store can fail.
  if (const int error = posix_fallocate(fd, 0, static_cast<off_t>(bytes)); error != 0) {
    return ErrnoStatus(error, "cannot make room for the attachment's journal");
  }
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return ErrnoStatus(errno, "cannot map the attachment's journal");
  return absl::WrapUnique(new AttachmentJournal(static_cast<Layout*>(at), bytes, boot_id));
}

AttachmentJournal::AttachmentJournal(Layout* layout, size_t bytes, const Uuid& boot_id)
    : layout_(layout), bytes_(bytes), boot_id_(boot_id), past_(ReadPast()) {
  if (!past_.has_value()) return;
  for (size_t i = 0; i < kWrites; ++i) taken_[i] = layout_->writes[i].length.load() != 0;
  if (!past_->changes.empty()) last_change_ = past_->first_change + past_->changes.size() - 1;
}

AttachmentJournal::~AttachmentJournal() { munmap(layout_, bytes_); }

std::optional<AttachmentJournal::Past> AttachmentJournal::ReadPast() const {
  if (layout_->magic.load() != kMagic || layout_->boot_id != boot_id_.bytes()) return std::nullopt;
  Past past{.epoch = Epoch(layout_->epoch.load())};
  for (const Slot& slot : layout_->writes) {
    const uint64_t length = slot.length.load();
    if (length != 0) past.writes.push_back({slot.offset.load(), length});
  }
  for (const std::atomic<uint32_t>& doubt : layout_->doubts) {
    const uint32_t index = doubt.load();
    if (index == 0) continue;
    if (index > uint32_t{1} << 16) return std::nullopt;
    past.doubted.emplace_back(static_cast<DeviceIndex::rep>(index - 1));
  }
  if (has_changes()) {
    ReadPastChanges(past);
    if (!ReadScratch(past)) return std::nullopt;
  }
  return past;
}

bool AttachmentJournal::ReadScratch(Past& past) const {
  if (layout_->scratch[0].load() == 0) return true;
  Grant row{.count = kSmallPerExtent, .legs = {}};
  for (const std::atomic<uint64_t>& leg : layout_->scratch) {
    const MapWord word(leg.load());
    if (word.raw() == 0) break;
    if (word != MapWord::Extent(word.device(), word.unit())) return false;
    row.legs.push_back({.device = word.device(), .unit = word.unit()});
  }
  past.scratch = std::move(row);
  return true;
}

void AttachmentJournal::ReadPastChanges(Past& past) const {
  std::vector<std::optional<MapChange>> by_place(kChanges);
  uint64_t highest = 0;
  for (size_t i = 0; i < kChanges; ++i) {
    const Place& place = layout_->changes[i];
    const uint64_t number = place.number.load(std::memory_order_acquire);
    if (number == 0) continue;
    if (number >= kMaxChange || number % kChanges != i) {
      past.damaged_change = UINT64_MAX;  // it could be any
      continue;
    }
    by_place[i] = ReadBody(place);
    if (by_place[i].has_value()) {
      highest = std::max(highest, number);
    } else {
      past.damaged_change = std::max(past.damaged_change, number);
    }
  }
  const auto is_there = [&](uint64_t number) {
    return by_place[number % kChanges].has_value() &&
           layout_->changes[number % kChanges].number.load() == number;
  };
  uint64_t first = highest;
  while (first > 1 && is_there(first - 1)) --first;
  past.first_change = first;
  for (uint64_t number = first; number != 0 && number <= highest; ++number) {
    past.changes.push_back(*by_place[number % kChanges]);
  }
}

absl::StatusOr<absl::Span<const MapChange>> AttachmentJournal::Past::ChangesAfter(
    uint64_t applied) const {
  const auto missing = [applied](const auto&... what) {
    return absl::DataLossError(absl::StrCat(
        "map changes after number ", applied, " were acknowledged and are lost: ", what...,
        "; remove the volume's lock file to go on without them"));
  };
  if (damaged_change > applied) return missing("the attachment's journal is damaged");
  if (changes.empty() || first_change + changes.size() - 1 <= applied) {
    return absl::Span<const MapChange>();
  }
  if (first_change > applied + 1) {
    return missing("the attachment's journal begins with number ", first_change);
  }
  return absl::MakeConstSpan(changes).subspan(applied + 1 - first_change);
}

void AttachmentJournal::Begin(Epoch epoch, bool keep_past) {
  if (!keep_past) past_.reset();
  if (!past_.has_value()) {
    for (std::atomic<bool>& taken : taken_) taken.store(false);
    layout_->magic.store(0);
    layout_->boot_id = boot_id_.bytes();
    for (std::atomic<uint32_t>& doubt : layout_->doubts) doubt.store(0);
    for (Slot& slot : layout_->writes) slot.length.store(0);
    if (has_changes()) {
      ClearScratch();
      for (Place& place : layout_->changes) place.number.store(0);
    }
    last_change_.store(0);
  }
  layout_->epoch.store(epoch.value());
  layout_->magic.store(kMagic);
}

void AttachmentJournal::ForgetPast() {
  if (!past_.has_value()) return;
  for (const Range& range : past_->writes) {
    for (size_t i = 0; i < kWrites; ++i) {
      Slot& slot = layout_->writes[i];
      if (slot.length.load() != range.length || slot.offset.load() != range.offset) continue;
      slot.length.store(0);
      taken_[i] = false;
    }
  }
  for (DeviceIndex device : past_->doubted) Settled(device);
  past_.reset();
}

size_t AttachmentJournal::TakeSlot() {
  // Each thread begins where it last found one free, so that threads keep to lines of
  // their own.
  thread_local size_t hint = std::hash<std::thread::id>()(std::this_thread::get_id());
  while (true) {
    for (size_t i = 0; i < kWrites; ++i) {
      const size_t slot = (hint + i) % kWrites;
      if (taken_[slot].load(std::memory_order_relaxed) || taken_[slot].exchange(true)) continue;
      hint = slot;
      return slot;
    }
    std::this_thread::yield();
  }
}

AttachmentJournal::Write::Write(AttachmentJournal* journal, uint64_t offset, uint64_t length)
    : journal_(journal) {
  if (journal_ == nullptr) return;
  slot_ = journal_->TakeSlot();
  Slot& slot = journal_->layout_->writes[slot_];
  slot.offset.store(offset, std::memory_order_relaxed);
  slot.length.store(length, std::memory_order_release);
}

AttachmentJournal::Write::~Write() {
  if (journal_ == nullptr) return;
  journal_->layout_->writes[slot_].length.store(0, std::memory_order_release);
  journal_->taken_[slot_].store(false, std::memory_order_release);
}

void AttachmentJournal::NoteChange(uint64_t sequence, const MapChange& change) {
  assert(has_changes() && sequence > 0 && sequence <= kMaxChange);
  Place& place = layout_->changes[sequence % kChanges];
  const ChangeWords words = Encode(change);
  place.number.store(0, std::memory_order_relaxed);
  // Keeps the stores in this order, which is all that a kill can tell (see the header).
  std::atomic_signal_fence(std::memory_order_seq_cst);
  for (size_t w = 0; w < kChangeWords; ++w) {
    place.words[w].store(words[w], std::memory_order_relaxed);
  }
  place.number.store(sequence, std::memory_order_release);
  last_change_.store(sequence, std::memory_order_release);
}

std::optional<MapChange> AttachmentJournal::ReadBody(const Place& place) {
  ChangeWords words;
  for (size_t w = 0; w < kChangeWords; ++w) {
    words[w] = place.words[w].load(std::memory_order_relaxed);
  }
  return Decode(words);
}

std::optional<MapChange> AttachmentJournal::ReadChange(uint64_t sequence) const {
  const Place& place = layout_->changes[sequence % kChanges];
  if (place.number.load(std::memory_order_acquire) != sequence) return std::nullopt;
  return ReadBody(place);
}

void AttachmentJournal::MarkChangeStale(uint64_t sequence, DeviceIndex device, uint32_t legs) {
  const std::optional<MapChange> change = ReadChange(sequence);
  if (!change.has_value() || change->kind == MapChange::Kind::kUnbind) return;
  const auto* const end = change->legs.begin() + legs;
  if (std::count_if(change->legs.begin(), end, [](const UnitPlace& l) { return !l.stale; }) < 2) {
    return;
  }
  // Its legs are on different devices, so this is one word.
  const auto* const leg = std::find_if(change->legs.begin(), end, [device](const UnitPlace& l) {
    return l.device == device && !l.stale;
  });
  if (leg == end) return;
  Place& place = layout_->changes[sequence % kChanges];
  place.words[kPlacesWord + static_cast<size_t>(leg - change->legs.begin())].store(
      MapWord::Extent(leg->device, leg->unit, MapWord::kStale).raw(), std::memory_order_release);
}

void AttachmentJournal::NoteScratch(const Grant& row) {
  assert(has_changes() && row.count == kSmallPerExtent && !row.legs.empty() &&
         row.legs.size() <= kMaxLegs);
  ClearScratch();
  for (size_t leg = kMaxLegs; leg-- > 0;) {
    const MapWord word = leg < row.legs.size()
                             ? MapWord::Extent(row.legs[leg].device, row.legs[leg].unit)
                             : MapWord();
    layout_->scratch[leg].store(word.raw(), std::memory_order_release);
  }
}

void AttachmentJournal::ClearScratch() { layout_->scratch[0].store(0, std::memory_order_release); }

void AttachmentJournal::Doubt(DeviceIndex device) {
  for (std::atomic<uint32_t>& doubt : layout_->doubts) {
    uint32_t none = 0;
    if (doubt.compare_exchange_strong(none, uint32_t{device.value()} + 1)) return;
  }
}

void AttachmentJournal::Settled(DeviceIndex device) {
  for (std::atomic<uint32_t>& doubt : layout_->doubts) {
    uint32_t noted = uint32_t{device.value()} + 1;
    doubt.compare_exchange_strong(noted, 0);
  }
}

}  // namespace braid
