#include "lib/volume/volume.h"

#include <algorithm>
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

absl::StatusOr<std::unique_ptr<Volume>> Volume::Open(
    const Geometry& geometry, const std::vector<MapRun>& runs,
    std::vector<std::unique_ptr<BlockDevice>> devices, LegAuthority* authority,
    AttachmentJournal* journal, bool read_only) {
  absl::StatusOr<std::unique_ptr<PageTable>> map = PageTable::Create(geometry);
  if (!map.ok()) return map.status();
  uint64_t units = 0;
  for (const MapRun& run : runs) {
    // Enter refuses overlaps and checks all fields, so the sum below also proves that
    // there is no gap.
    if (absl::Status s = (*map)->Enter(run, devices.size()); !s.ok()) return s;
    units += run.count;
    const BlockDevice& device = *devices[run.device.value()];
    if (!RangeFits(run.unit.value() * kSmallExtentBytes, run.count * kSmallExtentBytes,
                   device.traits().size_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("the map reaches past the end of device ",
                                                     device.name(), " (",
                                                     device.traits().size_bytes, " bytes)"));
    }
  }
  const uint64_t whole = geometry.rows() * geometry.legs() * kSmallPerExtent;
  if (units != whole) {
    return absl::InvalidArgumentError(
        absl::StrCat("the map holds ", units, " units where the volume has ", whole));
  }
  auto volume = std::unique_ptr<Volume>(
      new Volume(*std::move(map), std::move(devices), authority, journal, read_only));
  volume->CountLive();
  return volume;
}

Volume::Volume(std::unique_ptr<PageTable> map, std::vector<std::unique_ptr<BlockDevice>> devices,
               LegAuthority* authority, AttachmentJournal* journal, bool read_only)
    : map_(std::move(map)),
      slots_(devices.size()),
      authority_(authority),
      journal_(map_->geometry().legs() > 1 ? journal : nullptr),
      read_only_(read_only),
      retired_(devices.size(), false) {
  for (size_t i = 0; i < devices.size(); ++i) {
    const DeviceTraits& traits = devices[i]->traits();
    can_trim_ = can_trim_ && traits.can_trim;
    can_zero_fast_ = can_zero_fast_ && traits.can_zero_fast;
    rotational_ = rotational_ || traits.rotational;
    required_alignment_ = std::max(required_alignment_, traits.required_alignment);
    slots_[i].device = std::move(devices[i]);
  }
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

absl::Status Volume::CheckWritable() const {
  if (read_only_) return ErrnoStatus(EROFS, "the volume is attached read-only");
  if (lost_data_.load(std::memory_order_relaxed)) {
    return ErrnoStatus(EIO, "the volume lost data and takes no writes; see `braid explain`");
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------------------- reads

std::optional<Volume::Source> Volume::ChooseSource(const Piece& piece, uint32_t skip) const {
  // Legs take turns by the megabyte: a sequential reader keeps all devices busy, and one
  // place is always read from one leg, so that the page cache holds it once.
  const uint32_t legs = geometry().legs();
  uint32_t leg = legs == 1 ? 0 : static_cast<uint32_t>((piece.volume_offset / kMiB) % legs);
  std::optional<Source> fallback;
  for (uint32_t i = 0; i < legs; ++i, leg = leg + 1 == legs ? 0 : leg + 1) {
    if ((skip >> leg & 1) != 0) continue;
    const LegPlace place = map_->Look(piece.place, leg);
    if (!place.mapped() || place.stale()) continue;
    const Slot& slot = slots_[place.device().value()];
    if (!slot.suspect.load(std::memory_order_relaxed)) return Source{leg, place};
    if (!fallback) fallback = Source{leg, place};
  }
  return fallback;
}

absl::Status Volume::Read(uint64_t offset, absl::Span<char> data) {
  if (absl::Status s = CheckRange(offset, data.size()); !s.ok()) return s;
  if (data.empty()) return absl::OkStatus();
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
  absl::Status status;
  ForEachMappedPiece(*map_, offset, data.size(), [&](const Piece& piece) {
    char* buffer = data.data() + (piece.volume_offset - offset);
    if (std::optional<Source> source = ChooseSource(piece, 0)) {
      plan.Add(piece, source->leg, source->place.device(), source->place.device_offset(), buffer);
      return true;
    }
    status = ErrnoStatus(EIO, "no copy in sync");
    return false;
  });
  if (!status.ok()) return status;
  if (plan.Run([this](DeviceIndex d) -> BlockDevice& { return *slots_[d.value()].device; })) {
    return absl::OkStatus();
  }
  for (const IoPlan::Part& part : plan.parts()) {
    if (plan.error(part) == 0) continue;
    slots_[plan.device(part).value()].suspect.store(true, std::memory_order_relaxed);
    char* buffer = data.data() + (part.piece.volume_offset - offset);
    absl::Status s = ReadPiece(part.piece, buffer, uint32_t{1} << part.leg);
    if (!s.ok()) {
      return ErrnoStatus(plan.error(part),
                         absl::StrCat("reading ", slots_[plan.device(part).value()].device->name(),
                                      mirrored() ? ", and every other copy" : ""));
    }
  }
  return absl::OkStatus();
}

absl::Status Volume::ReadPiece(const Piece& piece, char* buffer, uint32_t tried) {
  while (std::optional<Source> source = ChooseSource(piece, tried)) {
    Slot& slot = slots_[source->place.device().value()];
    absl::Status s =
        slot.device->Read(source->place.device_offset(), absl::MakeSpan(buffer, piece.length));
    if (s.ok()) return s;
    slot.suspect.store(true, std::memory_order_relaxed);
    tried |= uint32_t{1} << source->leg;
  }
  return ErrnoStatus(EIO, "no copy could be read");
}

absl::Status Volume::Cache(uint64_t offset, uint64_t length) {
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  IoPlan plan(DeviceIo{.kind = IoKind::kCache});
  ForEachMappedPiece(*map_, offset, length, [&](const Piece& piece) {
    if (std::optional<Source> source = ChooseSource(piece, 0)) {
      plan.Add(piece, source->leg, source->place.device(), source->place.device_offset(), nullptr);
    }
    return true;
  });
  // Advice that a device does not take is no error.
  plan.Run([this](DeviceIndex d) -> BlockDevice& { return *slots_[d.value()].device; });
  return absl::OkStatus();
}

absl::Status Volume::Extents(uint64_t offset, uint64_t length,
                             absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) {
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  bool wanted = true;
  ForEachMappedPiece(*map_, offset, length, [&](const Piece& piece) {
    std::optional<Source> source = ChooseSource(piece, 0);
    uint64_t told = 0;  // bytes of this piece
    if (source) {
      // An error leaves the rest of the piece to be told as data, which is always true.
      slots_[source->place.device().value()]
          .device
          ->Extents(source->place.device_offset(), piece.length,
                    [&](uint64_t, uint64_t part, bool is_hole) {
                      wanted = fn(piece.volume_offset + told, part, is_hole);
                      told += part;
                      return wanted;
                    })
          .IgnoreError();
    }
    if (wanted && told < piece.length) {
      wanted = fn(piece.volume_offset + told, piece.length - told, false);
    }
    return wanted;
  });
  return absl::OkStatus();
}

// --------------------------------------------------------------------------- changes

absl::Status Volume::Write(uint64_t offset, absl::Span<const char> data, bool fua) {
  return Change(DeviceIo{.kind = IoKind::kWrite, .fua = fua, .length = data.size()}, offset, data);
}

absl::Status Volume::Zero(uint64_t offset, uint64_t length, const ZeroOptions& options) {
  if (options.only_fast && !can_zero_fast_) {
    return ErrnoStatus(EOPNOTSUPP, "a device has no fast way to zero");
  }
  const DeviceIo request{.kind = IoKind::kZero,
                         .fua = options.fua,
                         .may_unmap = options.may_trim,
                         .only_fast = options.only_fast,
                         .length = length};
  return Change(request, offset, {});
}

absl::Status Volume::Trim(uint64_t offset, uint64_t length, bool fua) {
  if (!mirrored()) {
    return Change(DeviceIo{.kind = IoKind::kTrim, .fua = fua, .length = length}, offset, {});
  }
  // After a trim two devices may read differently; zeroed, they cannot.
  if (can_zero_fast_) return Zero(offset, length, {.fua = fua, .may_trim = true});
  if (absl::Status s = CheckRange(offset, length); !s.ok()) return s;
  return CheckWritable();
}

absl::Status Volume::Change(const DeviceIo& request, uint64_t offset, absl::Span<const char> data) {
  if (absl::Status s = CheckRange(offset, request.length); !s.ok()) return s;
  if (absl::Status s = CheckWritable(); !s.ok()) return s;
  if (request.length == 0) return absl::OkStatus();
  if (!mirrored()) return ChangeHeld(request, offset, data);

  RangeLock::Hold hold(ranges_, offset, request.length, RangeLock::Mode::kExclusive);
  AttachmentJournal::Write note(journal_, offset, request.length);
  writes_begun_.fetch_add(1);
  absl::Status s = ChangeHeld(request, offset, data);
  writes_ended_.fetch_add(1);
  // Legs that differ and could not be recorded as such are the next holder's to settle.
  if (stopped_.load(std::memory_order_relaxed)) [[unlikely]]
    note.Keep();
  return s;
}

absl::Status Volume::ChangeHeld(const DeviceIo& request, uint64_t offset,
                                absl::Span<const char> data) {
  IoPlan plan(request);
  bool covered = true;
  ForEachMappedPiece(*map_, offset, request.length, [&](const Piece& piece) {
    // The devices only read from it.
    char* buffer =
        data.empty() ? nullptr : const_cast<char*>(data.data()) + (piece.volume_offset - offset);
    bool any = false;
    for (uint32_t leg = 0; leg < geometry().legs(); ++leg) {
      const LegPlace place = map_->Look(piece.place, leg);
      if (!place.mapped() || place.stale()) continue;
      plan.Add(piece, leg, place.device(), place.device_offset(), buffer);
      any = true;
    }
    covered = covered && any;
    return covered;
  });
  if (!covered) return ErrnoStatus(EIO, "no copy in sync");
  if (plan.Run([this](DeviceIndex d) -> BlockDevice& { return *slots_[d.value()].device; })) {
    return absl::OkStatus();
  }

  // "Stale first": every leg that missed the request is retired, durably; what then is
  // still in sync although it failed was an only copy, and its error is the client's.
  for (const IoPlan::DeviceRequest& failed : plan.requests()) {
    if (failed.io.error == 0) continue;
    if (failed.io.error == EOPNOTSUPP && request.kind == IoKind::kTrim) {
      return absl::OkStatus();  // a trim is advice, and this volume has one copy
    }
    if (failed.io.error == EOPNOTSUPP && request.only_fast) {
      // The device turned out to be slow at it. Others may have zeroed already, so the
      // range is finished the slow way rather than left different on different legs.
      DeviceIo slow = request;
      slow.only_fast = false;
      return ChangeHeld(slow, offset, data);
    }
    if (!mirrored()) {
      if (request.fua) LoseData(failed.device, "a write through to the disk", failed.io.error);
      return ErrnoStatus(failed.io.error,
                         absl::StrCat("writing ", slots_[failed.device.value()].device->name()));
    }
    if (absl::Status s = RetireDevice(failed.device, failed.io.error); !s.ok()) return s;
  }
  for (const IoPlan::Part& part : plan.parts()) {
    const int error = plan.error(part);
    if (error == 0 || map_->Look(part.piece.place, part.leg).stale()) continue;
    const DeviceIndex device = plan.device(part);
    if (request.fua) LoseData(device, "a write through to the disk", error);
    return ErrnoStatus(error, absl::StrCat("writing ", slots_[device.value()].device->name(),
                                           ", the only copy in sync"));
  }
  return absl::OkStatus();
}

absl::Status Volume::Flush() {
  if (absl::Status s = CheckRange(0, 0); !s.ok()) return s;
  if (read_only_) return absl::OkStatus();
  if (absl::Status s = CheckWritable(); !s.ok()) return s;
  IoPlan plan(DeviceIo{.kind = IoKind::kFlush});
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].live_units.load(std::memory_order_acquire) == 0) continue;
    plan.Add(Piece{}, 0, DeviceIndex(static_cast<uint16_t>(i)), 0, nullptr);
  }
  if (plan.Run([this](DeviceIndex d) -> BlockDevice& { return *slots_[d.value()].device; })) {
    return absl::OkStatus();
  }
  for (const IoPlan::DeviceRequest& failed : plan.requests()) {
    if (failed.io.error == 0) continue;
    if (mirrored()) {
      if (absl::Status s = RetireDevice(failed.device, failed.io.error); !s.ok()) return s;
    }
    if (slots_[failed.device.value()].live_units.load(std::memory_order_acquire) > 0) {
      LoseData(failed.device, "a flush", failed.io.error);
      return ErrnoStatus(EIO,
                         absl::StrCat("flushing ", slots_[failed.device.value()].device->name(),
                                      ", the only copy in sync"));
    }
  }
  return absl::OkStatus();
}

// ------------------------------------------------------------------ after a death

absl::Status Volume::Settle(const AttachmentJournal::Past& past) {
  if (!mirrored()) return absl::OkStatus();
  for (DeviceIndex device : past.doubted) {
    if (device.value() >= slots_.size()) {
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
  Slot& slot = slots_[device.value()];
  slot.suspect.store(true, std::memory_order_relaxed);
  // Before waiting for others that retire: should the process die meanwhile, the next one
  // must know not to trust the device.
  if (journal_ != nullptr) journal_->Doubt(device);
  MutexLock l(&retire_mu_);
  // What could become stale on this device did when it was first retired, and nothing
  // comes back into sync while the volume is open.
  if (retired_[device.value()]) {
    if (journal_ != nullptr) journal_->Settled(device);
    return absl::OkStatus();
  }
  absl::Status marked =
      authority_->MarkStale(device, absl::StrCat(slot.device->name(), ": ", strerror(error)));
  if (marked.ok()) marked = map_->MarkDeviceStale(device);
  if (!marked.ok()) {
    // The legs may differ and nobody will remember it, or this process cannot: nothing more
    // may be read or written here. The attachment is not closed cleanly, so that the next
    // one settles it.
    stopped_.store(true);
    return ErrnoStatus(EIO,
                       absl::StrCat("a leg on ", slot.device->name(),
                                    " failed and could not be marked stale: ", marked.message()));
  }
  CountLive();
  retired_[device.value()] = true;
  if (journal_ != nullptr) journal_->Settled(device);
  return absl::OkStatus();
}

void Volume::CountLive() {
  const std::vector<uint64_t> live = map_->CountLive(slots_.size());
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].live_units.store(live[i], std::memory_order_release);
  }
}

void Volume::LoseData(DeviceIndex device, absl::string_view what, int error) {
  if (lost_data_.exchange(true)) return;
  authority_->ReportFault(absl::StrCat(
      what, " failed on ", slots_[device.value()].device->name(), ", the only copy in sync (",
      strerror(error), "): what was written since the last good flush may be lost"));
}

}  // namespace braid
