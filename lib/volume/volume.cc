#include "lib/volume/volume.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"

namespace braid {
namespace {

// ForEachPiece, cut further to units where some leg of the row has a table, so that one
// look-up serves each piece. A row all of whose legs are large must not be split meanwhile.
template <class Fn>
bool ForEachMappedPiece(const PageTable& map, uint64_t offset, uint64_t length, Fn&& fn) {
  const Geometry& geometry = map.geometry();
  return ForEachPiece(geometry, offset, length, [&](const Piece& whole) {
    bool table = false;
    for (uint32_t leg = 0; leg < geometry.legs(); ++leg) {
      table = table || map.Word(geometry.Row(whole.place), leg).is_table();
    }
    if (!table) [[likely]]
      return fn(whole);
    for (Piece rest = whole; rest.length > 0;) {
      Piece piece = rest;
      piece.length =
          std::min(rest.length, kSmallExtentBytes - rest.place.offset % kSmallExtentBytes);
      if (!fn(piece)) return false;
      rest.volume_offset += piece.length;
      rest.place.offset += piece.length;
      rest.length -= piece.length;
    }
    return true;
  });
}

}  // namespace

template <class Fn>
bool Volume::ForEachLookUp(uint64_t offset, uint64_t length, Fn&& fn) const {
  // A row of a thin volume may become a table at any moment, so it counts as one always.
  return thin_ ? ForEachUnitPiece(geometry(), offset, length, fn)
               : ForEachMappedPiece(*map_, offset, length, fn);
}

absl::StatusOr<std::unique_ptr<Volume>> Volume::Open(
    const Geometry& geometry, const std::vector<MapRun>& runs,
    std::vector<std::unique_ptr<BlockDevice>> devices, MapAuthority* authority,
    AttachmentJournal* journal, const Options& options) {
  absl::StatusOr<std::unique_ptr<PageTable>> map = PageTable::Create(geometry);
  if (!map.ok()) return map.status();
  const uint64_t capacity = options.thin ? kMaxDevices : devices.size();
  absl::StatusOr<std::unique_ptr<DeviceSlots>> slots =
      DeviceSlots::Create(std::move(devices), capacity);
  if (!slots.ok()) return slots.status();
  uint64_t units = 0;
  for (const MapRun& run : runs) {
    // Enter refuses overlaps and checks all fields, so the sum below also proves that
    // there is no gap.
    if (absl::Status s = (*map)->Enter(run, (*slots)->count()); !s.ok()) return s;
    units += run.count;
    const BlockDevice& device = (*slots)->device(run.device);
    if (!RangeFits(run.unit.value() * kSmallExtentBytes, run.count * kSmallExtentBytes,
                   device.traits().size_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("the map reaches past the end of device ",
                                                     device.name(), " (",
                                                     device.traits().size_bytes, " bytes)"));
    }
  }
  const uint64_t whole = geometry.rows() * geometry.legs() * kSmallPerExtent;
  if (!options.thin && units != whole) {
    return absl::InvalidArgumentError(
        absl::StrCat("the map holds ", units, " units where the volume has ", whole));
  }
  auto volume = std::unique_ptr<Volume>(
      new Volume(*std::move(map), *std::move(slots), authority, journal, options));
  if (options.thin) {
    if (absl::Status s = volume->OpenThin(runs, journal, options); !s.ok()) return s;
  }
  volume->CountLive();
  return volume;
}

Volume::Volume(std::unique_ptr<PageTable> map, std::unique_ptr<DeviceSlots> slots,
               MapAuthority* authority, AttachmentJournal* journal, const Options& options)
    : map_(std::move(map)),
      slots_(std::move(slots)),
      authority_(authority),
      journal_(map_->geometry().legs() > 1 ? journal : nullptr),
      read_only_(options.read_only),
      thin_(options.thin) {}

Volume::~Volume() {
  // The map log's thread may still call Stopped.
  MutexLock l(&end_mu_);
  to_end_ = nullptr;
}

absl::Status Volume::CheckRange(uint64_t offset, uint64_t length) const {
  if (stopped_.load(std::memory_order_relaxed)) [[unlikely]] {
    return ErrnoStatus(ESHUTDOWN, "the volume has stopped; attach it again");
  }
  if (RangeFits(offset, length, geometry().size_bytes())) [[likely]] {
    return absl::OkStatus();
  }
  return absl::OutOfRangeError(absl::StrCat(
      "[", offset, ", +", length, ") reaches past the volume's end at ", geometry().size_bytes()));
}

absl::Status Volume::CheckChange(uint64_t offset, uint64_t length) const {
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  return CheckWritable();
}

absl::Status Volume::CheckWritable() const {
  if (read_only_) return ErrnoStatus(EROFS, "the volume is attached read-only");
  if (lost_data_.load(std::memory_order_relaxed)) {
    return ErrnoStatus(EIO, "the volume lost data and takes no writes; see `braid explain`");
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------- reads

std::optional<Volume::Source> Volume::ChooseSource(const Piece& piece, uint32_t skip,
                                                   bool* hole) const {
  // Legs take turns by the megabyte: a sequential reader keeps all devices busy, and one
  // place is always read from one leg, so that the page cache holds it once.
  const uint32_t legs = geometry().legs();
  uint32_t leg = legs == 1 ? 0 : static_cast<uint32_t>((piece.volume_offset / kMiB) % legs);
  std::optional<Source> fallback;
  for (uint32_t i = 0; i < legs; ++i, leg = leg + 1 == legs ? 0 : leg + 1) {
    if ((skip >> leg & 1) != 0) continue;
    const LegPlace place = map_->Look(piece.place, leg);
    if (!place.mapped()) [[unlikely]] {
      *hole = true;
      continue;
    }
    if (place.stale()) continue;
    const DeviceSlot& slot = (*slots_)[place.device()];
    if (!slot.suspect.load(std::memory_order_relaxed)) return Source{leg, place};
    if (!fallback) fallback = Source{leg, place};
  }
  return fallback;
}

absl::Status Volume::Read(uint64_t offset, absl::Span<char> data) {
  if (absl::Status s = CheckRange(offset, data.size()); !s.ok()) return s;
  if (data.empty()) return absl::OkStatus();
  const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, offset, data.size());
  if (!mirrored()) return ReadOnce(offset, data);

  // "No way back", the cheap way: when no write was in flight at one moment before the
  // read and none has begun by the end of it, none overlapped it. Ended is loaded before
  // begun, so equality means that all begun by then had ended.
  const uint64_t ended = writes_ended_.load();
  const uint64_t begun = writes_begun_.load();
  if (ended == begun) {
    absl::Status s = ReadOnce(offset, data);
    if (writes_begun_.load() == begun) return s;
  }
  RangeLock::Hold hold(ranges_, offset, data.size(), RangeLock::Mode::kShared);
  return ReadOnce(offset, data);
}

absl::Status Volume::ReadOnce(uint64_t offset, absl::Span<char> data) {
  IoPlan plan(DeviceIo{.kind = IoKind::kRead});
  const bool known = ForEachLookUp(offset, data.size(), [&](const Piece& piece) {
    char* buffer = data.data() + (piece.volume_offset - offset);
    bool hole = false;
    if (std::optional<Source> source = ChooseSource(piece, 0, &hole)) {
      plan.Add(piece, source->leg, source->place.device(), source->place.device_offset(), buffer);
      return true;
    }
    if (hole) memset(buffer, 0, piece.length);
    return hole;
  });
  if (!known) return ErrnoStatus(EIO, "no copy in sync");
  if (plan.Run(DeviceOf())) return absl::OkStatus();
  for (const IoPlan::Part& part : plan.parts()) {
    if (plan.error(part) == 0) continue;
    DeviceSlot& slot = (*slots_)[plan.device(part)];
    slot.suspect.store(true, std::memory_order_relaxed);
    char* buffer = data.data() + (part.piece.volume_offset - offset);
    absl::Status s = ReadPiece(part.piece, buffer, uint32_t{1} << part.leg);
    if (!s.ok()) {
      return ErrnoStatus(plan.error(part),
                         absl::StrCat("reading ", slot.device->name(),
                                      mirrored() ? ", and every other copy" : ""));
    }
  }
  return absl::OkStatus();
}

absl::Status Volume::ReadPiece(const Piece& piece, char* buffer, uint32_t tried) {
  bool hole = false;
  while (std::optional<Source> source = ChooseSource(piece, tried, &hole)) {
    DeviceSlot& slot = (*slots_)[source->place.device()];
    absl::Status s =
        slot.device->Read(source->place.device_offset(), absl::MakeSpan(buffer, piece.length));
    if (s.ok()) return s;
    slot.suspect.store(true, std::memory_order_relaxed);
    tried |= uint32_t{1} << source->leg;
  }
  if (!hole) return ErrnoStatus(EIO, "no copy could be read");
  memset(buffer, 0, piece.length);
  return absl::OkStatus();
}

absl::Status Volume::Cache(uint64_t offset, uint64_t length) {
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, offset, length);
  IoPlan plan(DeviceIo{.kind = IoKind::kCache});
  ForEachLookUp(offset, length, [&](const Piece& piece) {
    bool hole = false;
    if (std::optional<Source> source = ChooseSource(piece, 0, &hole)) {
      plan.Add(piece, source->leg, source->place.device(), source->place.device_offset(), nullptr);
    }
    return true;
  });
  // Advice that a device does not take is no error.
  plan.Run(DeviceOf());
  return absl::OkStatus();
}

absl::Status Volume::Extents(uint64_t offset, uint64_t length,
                             absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) {
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  const RequestGate::Pass pass(gate_.get(), RequestGate::Kind::kRead, offset, length);
  // Holes of one piece after the other are told as one: a thin volume has many.
  uint64_t hole_from = offset;
  uint64_t at = offset;
  bool wanted = true;
  const auto tell = [&](uint64_t part, bool is_hole) {
    if (!is_hole) {
      if (hole_from < at) wanted = fn(hole_from, at - hole_from, true);
      if (wanted) wanted = fn(at, part, false);
      hole_from = at + part;
    }
    at += part;
    return wanted;
  };
  ForEachLookUp(offset, length, [&](const Piece& piece) {
    const uint64_t end = piece.volume_offset + piece.length;
    bool hole = false;
    if (std::optional<Source> source = ChooseSource(piece, 0, &hole)) {
      // An error leaves the rest of the piece to be told as data, which is always true.
      slots_->device(source->place.device())
          .Extents(source->place.device_offset(), piece.length,
                   [&](uint64_t, uint64_t part, bool is_hole) { return tell(part, is_hole); })
          .IgnoreError();
    }
    if (wanted && at < end) tell(end - at, hole);
    return wanted;
  });
  if (wanted && hole_from < at) fn(hole_from, at - hole_from, true);
  return absl::OkStatus();
}

// --------------------------------------------------------------------------- changes

absl::Status Volume::Write(uint64_t offset, absl::Span<const char> data, bool fua) {
  const Request request{{.kind = IoKind::kWrite, .fua = fua, .length = data.size()}, offset, data};
  return thin_ ? WriteThin(request) : Change(request);
}

absl::Status Volume::Zero(uint64_t offset, uint64_t length, const ZeroOptions& options) {
  if (options.only_fast && !can_zero_fast()) {
    return ErrnoStatus(EOPNOTSUPP, "a device has no fast way to zero");
  }
  const DeviceIo io{.kind = IoKind::kZero,
                    .fua = options.fua,
                    .may_unmap = options.may_trim,
                    .only_fast = options.only_fast,
                    .length = length};
  return thin_ ? ZeroThin(io, offset, length, /*with_edges=*/true) : Change({io, offset, {}});
}

absl::Status Volume::Trim(uint64_t offset, uint64_t length, bool fua) {
  if (thin_) {
    const DeviceIo io{.kind = IoKind::kZero, .fua = fua, .may_unmap = true, .only_fast = true};
    return ZeroThin(io, offset, length, /*with_edges=*/can_zero_fast());
  }
  if (!mirrored()) {
    return Change({{.kind = IoKind::kTrim, .fua = fua, .length = length}, offset, {}});
  }
  // After a trim two devices may read differently; zeroed, they cannot.
  if (can_zero_fast()) return Zero(offset, length, {.fua = fua, .may_trim = true});
  return CheckChange(offset, length);
}

absl::Status Volume::Change(const Request& request) {
  if (absl::Status s = CheckChange(request.offset, request.io.length); !s.ok()) return s;
  if (request.io.length == 0) return absl::OkStatus();
  bool lacks = false;  // never, in a thick volume
  return Exclusively(request.offset, request.io.length,
                     [&] { return ChangeNoted(request, &lacks); });
}

absl::Status Volume::Exclusively(uint64_t offset, uint64_t length,
                                 absl::FunctionRef<absl::Status()> change) {
  if (!mirrored()) return change();
  RangeLock::Hold hold(ranges_, offset, length, RangeLock::Mode::kExclusive);
  writes_begun_.fetch_add(1);
  absl::Status s = change();
  writes_ended_.fetch_add(1);
  return s;
}

absl::Status Volume::ChangeNoted(const Request& request, bool* lacks) {
  AttachmentJournal::Write note(journal_, request.offset, request.io.length);
  absl::Status s = ChangeHeld(request, lacks);
  // Legs that differ and could not be recorded as such are the next holder's to settle.
  if (stopped_.load(std::memory_order_relaxed)) [[unlikely]]
    note.Keep();
  return s;
}

absl::Status Volume::ChangeHeld(const Request& request, bool* lacks) {
  const DeviceIo& io = request.io;
  const uint64_t offset = request.offset;
  const absl::Span<const char> data = request.data;
  IoPlan plan(io);
  const bool covered = ForEachLookUp(offset, io.length, [&](const Piece& piece) {
    // The devices only read from it.
    char* buffer =
        data.empty() ? nullptr : const_cast<char*>(data.data()) + (piece.volume_offset - offset);
    std::array<LegPlace, kMaxLegs> places;
    bool any = false;
    bool hole = false;
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      places[leg] = map_->Look(piece.place, leg);
      hole = hole || !places[leg].mapped();
      any = any || (places[leg].mapped() && !places[leg].stale());
    }
    if (hole && thin_) [[unlikely]] {
      // Zeros are there already; anything else needs space first.
      *lacks = buffer != nullptr && !AllZero(absl::MakeConstSpan(buffer, piece.length));
      return !*lacks;
    }
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      if (!places[leg].mapped() || places[leg].stale()) continue;
      plan.Add(piece, leg, places[leg].device(), places[leg].device_offset(), buffer);
    }
    return any;
  });
  if (*lacks) return absl::OkStatus();
  if (!covered) return ErrnoStatus(EIO, "no copy in sync");
  if (plan.Run(DeviceOf())) return absl::OkStatus();

  // "Stale first": every leg that missed the request is retired, durably; what then is
  // still in sync although it failed was an only copy, and its error is the client's.
  for (const IoPlan::DeviceRequest& failed : plan.requests()) {
    if (failed.io.error == 0) continue;
    if (failed.io.error == EOPNOTSUPP && io.kind == IoKind::kTrim) {
      return absl::OkStatus();  // a trim is advice, and this volume has one copy
    }
    if (failed.io.error == EOPNOTSUPP && io.only_fast) {
      // The device turned out to be slow at it. Others may have zeroed already, so the
      // range is finished the slow way rather than left different on different legs.
      Request slow = request;
      slow.io.only_fast = false;
      return ChangeHeld(slow, lacks);
    }
    if (!mirrored()) {
      if (io.fua) LoseData(failed.device, "a write through to the disk", failed.io.error);
      return ErrnoStatus(failed.io.error,
                         absl::StrCat("writing ", slots_->device(failed.device).name()));
    }
    if (absl::Status s = RetireDevice(failed.device, failed.io.error); !s.ok()) return s;
  }
  for (const IoPlan::Part& part : plan.parts()) {
    const int error = plan.error(part);
    if (error == 0 || map_->Look(part.piece.place, part.leg).stale()) continue;
    const DeviceIndex device = plan.device(part);
    if (io.fua) LoseData(device, "a write through to the disk", error);
    return ErrnoStatus(
        error, absl::StrCat("writing ", slots_->device(device).name(), ", the only copy in sync"));
  }
  return absl::OkStatus();
}

absl::Status Volume::Flush() {
  if (absl::Status s = CheckRange(0, 0); !s.ok()) return s;
  if (read_only_) return absl::OkStatus();
  if (absl::Status s = CheckWritable(); !s.ok()) return s;
  // What was acknowledged before now relies on no later map change.
  const uint64_t noted = state_ == nullptr ? 0 : state_->log->noted();
  IoPlan plan(DeviceIo{.kind = IoKind::kFlush});
  for (size_t i = 0; i < slots_->count(); ++i) {
    const DeviceIndex device(static_cast<uint16_t>(i));
    if ((*slots_)[device].live_units.load(std::memory_order_acquire) == 0) continue;
    plan.Add(Piece{}, 0, device, 0, nullptr);
  }
  if (!plan.Run(DeviceOf())) {
    for (const IoPlan::DeviceRequest& failed : plan.requests()) {
      if (failed.io.error == 0) continue;
      if (absl::Status s = FlushFailed(failed.device, failed.io.error); !s.ok()) return s;
    }
  }
  return state_ == nullptr ? absl::OkStatus() : state_->log->AwaitCommitted(noted);
}

absl::Status Volume::FlushFailed(DeviceIndex device, int error) {
  if (mirrored()) {
    if (absl::Status s = RetireDevice(device, error); !s.ok()) return s;
  } else if (state_ != nullptr) {
    state_->CountLive();  // what was trimmed meanwhile is no loss
  }
  if ((*slots_)[device].live_units.load(std::memory_order_acquire) == 0) return absl::OkStatus();
  LoseData(device, "a flush", error);
  return ErrnoStatus(
      EIO, absl::StrCat("flushing ", slots_->device(device).name(), ", the only copy in sync"));
}

// ------------------------------------------------------------------ after a death

absl::Status Volume::Settle(const AttachmentJournal::Past& past) {
  if (!mirrored()) return absl::OkStatus();
  for (DeviceIndex device : past.doubted) {
    if (device.value() >= slots_->count()) {
      return absl::DataLossError("the journal doubts a device that the volume does not have");
    }
    if (absl::Status s = RetireDevice(device, EIO); !s.ok()) return s;
  }
  // A read returns nothing of a write in flight, so nobody has seen any of these bytes and
  // each leg's are as good as the others'.
  std::string bytes;
  for (const AttachmentJournal::Range& range : past.writes) {
    if (range.length == 0 || !RangeFits(range.offset, range.length, geometry().size_bytes())) {
      return absl::DataLossError("the journal notes a write outside the volume");
    }
    for (uint64_t done = 0; done < range.length;) {
      bytes.resize(std::min(range.length - done, kMiB));
      const uint64_t offset = range.offset + done;
      if (absl::Status s = Read(offset, absl::MakeSpan(bytes)); !s.ok()) return s;
      if (absl::Status s = Write(offset, bytes, false); !s.ok()) return s;
      done += bytes.size();
    }
  }
  return absl::OkStatus();
}

// -------------------------------------------------------------------------- failures

absl::Status Volume::RetireDevice(DeviceIndex device, int error) {
  DeviceSlot& slot = (*slots_)[device];
  slot.suspect.store(true, std::memory_order_relaxed);
  // Before waiting for others that retire: should the process die meanwhile, the next one
  // must know not to trust the device.
  if (journal_ != nullptr) journal_->Doubt(device);
  MutexLock l(&retire_mu_);
  // What could become stale on this device did when it was first retired, and nothing
  // comes back into sync while the volume is open.
  if (retired_.contains(device)) {
    if (journal_ != nullptr) journal_->Settled(device);
    return absl::OkStatus();
  }
  absl::Status marked;
  if (state_ != nullptr) {
    marked = state_->BeginRetiring(device);
    first_writes_->Nudge();
  }
  if (marked.ok()) {
    marked =
        authority_->MarkStale(device, absl::StrCat(slot.device->name(), ": ", strerror(error)));
  }
  if (marked.ok()) {
    marked = state_ != nullptr ? state_->MarkStale(device) : map_->MarkDeviceStale(device);
  }
  if (!marked.ok()) {
    // The legs may differ and nobody will remember it, or this process cannot: nothing more
    // may be read or written here. The attachment is not closed cleanly, so that the next
    // one settles it.
    stopped_.store(true);
    return ErrnoStatus(EIO,
                       absl::StrCat("a leg on ", slot.device->name(),
                                    " failed and could not be marked stale: ", marked.message()));
  }
  if (state_ == nullptr) CountLive();
  retired_.insert(device);
  if (journal_ != nullptr) journal_->Settled(device);
  return absl::OkStatus();
}

void Volume::CountLive() {
  if (state_ != nullptr) return state_->CountLive();
  const std::vector<uint64_t> live = map_->CountLive(slots_->count());
  for (size_t i = 0; i < live.size(); ++i) {
    (*slots_)[DeviceIndex(static_cast<uint16_t>(i))].live_units.store(live[i],
                                                                      std::memory_order_release);
  }
}

void Volume::LoseData(DeviceIndex device, absl::string_view what, int error) {
  if (lost_data_.exchange(true)) return;
  authority_->ReportFault(
      absl::StrCat(what, " failed on ", slots_->device(device).name(), ", the only copy in sync (",
                   strerror(error), "): what was written since the last good flush may be lost"));
}

}  // namespace braid
