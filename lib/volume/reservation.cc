#include "lib/volume/reservation.h"

#include <algorithm>
#include <cassert>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace braid {
namespace {

// Units [offset, offset + count) of a grant.
Grant Part(const Grant& grant, uint64_t offset, uint64_t count) {
  Grant part = grant;
  part.count = count;
  for (UnitPlace& leg : part.legs) leg.unit = leg.unit + offset;
  return part;
}

}  // namespace

Reservation::Reservation(const Geometry& geometry) : columns_(geometry.columns()) {}

bool Reservation::Continues(const Piece& left, const Piece& right) {
  if (right.before < left.grant.count) return false;
  return std::equal(left.grant.legs.begin(), left.grant.legs.end(), right.grant.legs.begin(),
                    right.grant.legs.end(), [&left](const UnitPlace& a, const UnitPlace& b) {
                      return a.device == b.device && a.unit + left.grant.count == b.unit;
                    });
}

bool Reservation::IsDropped(const Grant& grant) const {
  return std::any_of(grant.legs.begin(), grant.legs.end(), [this](const UnitPlace& leg) {
    return std::find(dropped_.begin(), dropped_.end(), leg.device) != dropped_.end();
  });
}

Reservation::Pieces::iterator Reservation::Find(const Key& key) {
  const auto after = pieces_.upper_bound(key);
  if (after == pieces_.begin()) return pieces_.end();
  const auto at = std::prev(after);
  const bool within =
      at->first.device == key.device && key.unit - at->first.unit < at->second.grant.count;
  return within ? at : pieces_.end();
}

void Reservation::Insert(Piece piece) {
  const Key key = KeyOf(piece.grant);
  const uint64_t count = piece.grant.count;
  units_ += count;
  rows_ += count / kSmallPerExtent;
  by_length_[std::min<uint64_t>(count, kSmallPerExtent)].insert(key);
  pieces_.emplace(key, std::move(piece));
}

Reservation::Piece Reservation::Remove(Pieces::iterator at) {
  Piece piece = std::move(at->second);
  const uint64_t count = piece.grant.count;
  units_ -= count;
  rows_ -= count / kSmallPerExtent;
  by_length_[std::min<uint64_t>(count, kSmallPerExtent)].erase(at->first);
  pieces_.erase(at);
  return piece;
}

Grant Reservation::Cut(Pieces::iterator at, uint64_t offset, uint64_t count) {
  const Piece piece = Remove(at);
  const uint64_t behind = offset + count;
  if (offset > 0) Insert({Part(piece.grant, 0, offset), piece.before});
  if (behind < piece.grant.count) {
    Insert({Part(piece.grant, behind, piece.grant.count - behind), piece.before + behind});
  }
  return Part(piece.grant, offset, count);
}

void Reservation::Add(Grant grant) {
  assert(grant.count > 0 && !grant.legs.empty());
  if (IsDropped(grant)) {
    aside_.push_back(std::move(grant));
    return;
  }
  const Key key = KeyOf(grant);
  const auto next = pieces_.lower_bound(key);
  const bool overlaps =
      Find(key) != pieces_.end() || (next != pieces_.end() && next->first.device == key.device &&
                                     next->first.unit - key.unit < grant.count);
  if (!overlaps) Insert({std::move(grant)});
}

void Reservation::PutBack(Grant grant) {
  if (IsDropped(grant)) {
    aside_.push_back(std::move(grant));
    return;
  }
  Piece piece{std::move(grant)};
  const Key key = KeyOf(piece.grant);
  if (const auto right = pieces_.upper_bound(key);
      right != pieces_.end() && Continues(piece, right->second)) {
    const Piece rest = Remove(right);
    piece.before = rest.before - piece.grant.count;
    piece.grant.count += rest.grant.count;
  }
  if (const auto right = pieces_.lower_bound(key);
      right != pieces_.begin() && Continues(std::prev(right)->second, piece)) {
    Piece left = Remove(std::prev(right));
    left.before = piece.before - left.grant.count;
    left.grant.count += piece.grant.count;
    piece = std::move(left);
  }
  Insert(std::move(piece));
}

uint64_t Reservation::Shared(const Column& column, const Grant& grant) const {
  uint64_t shared = 0;
  for (const UnitPlace& leg : grant.legs) {
    const size_t device = leg.device.value();
    if (device >= uses_.size()) continue;
    const bool own =
        std::find(column.devices.begin(), column.devices.end(), leg.device) != column.devices.end();
    shared += uses_[device] - (own ? 1 : 0);
  }
  return shared;
}

void Reservation::GoOn(Column& column, const Grant& taken) {
  for (DeviceIndex device : column.devices) --uses_[device.value()];
  column.devices.clear();
  for (const UnitPlace& leg : taken.legs) {
    column.devices.push_back(leg.device);
    if (leg.device.value() >= uses_.size()) uses_.resize(size_t{leg.device.value()} + 1);
    ++uses_[leg.device.value()];
  }
}

std::optional<Reservation::Choice> Reservation::ChooseShort(const Column& column, uint64_t count) {
  std::optional<Choice> best;
  int look = kLook;
  for (uint64_t length = count; length < kSmallPerExtent; ++length) {
    for (const Key& key : by_length_[length]) {
      // What another column has open is left to it.
      const bool open = std::any_of(columns_.begin(), columns_.end(), [&](const Column& other) {
        return &other != &column && other.small == key;
      });
      const auto piece = pieces_.find(key);
      const uint64_t shared = Shared(column, piece->second.grant);
      if (!open && (!best.has_value() || shared < best->shared)) best = {piece, shared};
      if ((best.has_value() && best->shared == 0) || --look == 0) return best;
    }
  }
  return best;
}

std::optional<Reservation::Choice> Reservation::ChooseLong(const Column& column, uint64_t count) {
  std::optional<Choice> best;
  int look = kLook;
  for (const Key& key : by_length_[kSmallPerExtent]) {
    const auto piece = pieces_.find(key);
    if (piece->second.grant.count < count) continue;
    const uint64_t shared = Shared(column, piece->second.grant);
    if (!best.has_value() || shared < best->shared) best = {piece, shared};
    if (best->shared == 0 || --look == 0) break;
  }
  return best;
}

std::optional<Grant> Reservation::TakeRow(uint32_t column_number) {
  Column& column = columns_[column_number];
  auto piece = column.row.has_value() ? Find(*column.row) : pieces_.end();
  if (piece == pieces_.end() || piece->second.grant.count < kSmallPerExtent) {
    const std::optional<Choice> choice = ChooseLong(column, kSmallPerExtent);
    if (!choice.has_value()) return std::nullopt;
    piece = choice->piece;
  }
  Grant row = CutFront(piece, kSmallPerExtent);
  GoOn(column, row);
  column.row = KeyOf(Part(row, kSmallPerExtent, 0));
  return row;
}

std::optional<Grant> Reservation::TakeUnits(uint32_t column_number, uint64_t count) {
  if (count == 0 || pieces_.empty()) return std::nullopt;
  Column& column = columns_[column_number];
  auto piece = column.small.has_value() ? Find(*column.small) : pieces_.end();
  // A row that is whole is not open: what is left of others comes first.
  const uint64_t most = count < kSmallPerExtent ? kSmallPerExtent - 1 : UINT64_MAX;
  if (piece == pieces_.end() || piece->second.grant.count < count ||
      piece->second.grant.count > most) {
    const std::optional<Choice> open = ChooseShort(column, count);
    const std::optional<Choice> fresh = ChooseLong(column, count);
    if (open.has_value() && (!fresh.has_value() || open->shared <= fresh->shared)) {
      piece = open->piece;
    } else if (fresh.has_value()) {
      piece = fresh->piece;
    } else {
      // Nothing is long enough, but for what other columns have open: the longest then.
      const auto longest = std::find_if(by_length_.rbegin(), by_length_.rend(),
                                        [](const auto& keys) { return !keys.empty(); });
      piece = pieces_.find(*longest->begin());
      for (const Key& key : *longest) {
        const auto other = pieces_.find(key);
        if (other->second.grant.count > piece->second.grant.count) piece = other;
      }
      count = std::min(count, piece->second.grant.count);
    }
  }
  // Of a long piece one row is opened, and the rest stays whole.
  if (count < kSmallPerExtent && piece->second.grant.count > kSmallPerExtent) {
    const Piece whole = Remove(piece);
    Insert({Part(whole.grant, kSmallPerExtent, whole.grant.count - kSmallPerExtent),
            whole.before + kSmallPerExtent});
    const Key key = KeyOf(whole.grant);
    Insert({Part(whole.grant, 0, kSmallPerExtent), whole.before});
    piece = pieces_.find(key);
  }
  Grant taken = CutFront(piece, count);
  GoOn(column, taken);
  column.small = KeyOf(Part(taken, count, 0));
  return taken;
}

absl::Status Reservation::TakeExactly(const Grant& grant) {
  const auto missing = [&grant] {
    return absl::DataLossError(absl::StrCat("the journal binds ", grant.count, " units from ",
                                            grant.legs[0].unit.value(), " on device ",
                                            grant.legs[0].device.value(),
                                            " that are not granted to this volume; "
                                            "keep its lock file and ask the developers"));
  };
  const auto piece = Find(KeyOf(grant));
  if (piece == pieces_.end()) return missing();
  const Grant& from = piece->second.grant;
  const uint64_t offset = grant.legs[0].unit - from.legs[0].unit;
  const bool same = std::equal(grant.legs.begin(), grant.legs.end(), from.legs.begin(),
                               from.legs.end(), [offset](const UnitPlace& a, const UnitPlace& b) {
                                 return a.device == b.device && a.unit == b.unit + offset;
                               });
  if (!same || grant.count == 0 || grant.count > from.count - offset) return missing();
  (void)Cut(piece, offset, grant.count);
  return absl::OkStatus();
}

std::vector<Grant> Reservation::DropDevice(DeviceIndex device) {
  dropped_.push_back(device);
  std::vector<Grant> dropped;
  for (auto at = pieces_.begin(); at != pieces_.end();) {
    const auto next = std::next(at);
    if (IsDropped(at->second.grant)) dropped.push_back(Remove(at).grant);
    at = next;
  }
  return dropped;
}

std::vector<Grant> Reservation::TakeExcess(uint64_t keep) {
  std::vector<Grant> excess = std::exchange(aside_, {});
  for (auto& keys : by_length_) {
    while (units_ > keep && !keys.empty()) {
      const auto piece = pieces_.find(*keys.rbegin());
      const uint64_t present = piece->second.grant.count;
      const uint64_t count = std::min(present, units_ - keep);
      excess.push_back(Cut(piece, present - count, count));
    }
  }
  return excess;
}

}  // namespace braid
