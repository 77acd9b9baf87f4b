// The map of a thin volume against arrays of units: what each unit of the volume has, and what
// each unit of a device is.
#include "controlplane/core/thin_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/test_seed.h"
#include "lib/metadata/memory_store.h"

namespace braid {
namespace {

constexpr uint64_t kColumnUnits = uint64_t{2} * kSmallPerExtent;
constexpr uint64_t kDeviceUnits = 512;
constexpr uint32_t kDevices = 4;

enum class Use { kFree, kMapped, kHandedOut, kSetAside };

// A volume's map, its devices' units, and the rules of map changes, told unit by unit.
struct Model {
  using Cell = std::optional<UnitPlace>;
  Model(uint32_t columns_in, uint32_t legs_in, uint64_t reserve_in)
      : columns(columns_in), legs(legs_in), reserve(reserve_in) {
    map.assign(uint64_t{columns} * legs * kColumnUnits, std::nullopt);
    use.assign(kDevices * kDeviceUnits, Use::kFree);
  }
  Cell& At(uint32_t column, uint32_t leg, uint64_t unit) {
    return map[(column * legs + leg) * kColumnUnits + unit];
  }
  Use& UseOf(const UnitPlace& place, uint64_t skip = 0) {
    return use[place.device.value() * kDeviceUnits + place.unit.value() + skip];
  }
  // Pieces of one unit each that are granted: the legs of a piece stay together for good.
  using Piece = std::vector<UnitPlace>;
  std::map<std::pair<uint64_t, uint64_t>, Piece> granted;  // by the first leg's place
  static std::pair<uint64_t, uint64_t> KeyOf(const UnitPlace& place) {
    return {place.device.value(), place.unit.value()};
  }
  static Piece PieceOf(const std::vector<UnitPlace>& places, uint64_t skip) {
    Piece piece = places;
    for (UnitPlace& leg : piece) {
      leg.unit = leg.unit + skip;
      leg.stale = false;
    }
    return piece;
  }

  uint64_t Mapped() const {
    uint64_t units = 0;
    for (uint32_t column = 0; column < columns; ++column) {
      for (uint64_t unit = 0; unit < kColumnUnits; ++unit) {
        if (map[uint64_t{column} * legs * kColumnUnits + unit]) ++units;
      }
    }
    return units;
  }
  bool Granted(const Piece& piece, Use as) {
    const auto found = granted.find(KeyOf(piece[0]));
    return found != granted.end() && found->second == piece && UseOf(piece[0]) == as;
  }
  void Grant1(const Piece& piece, Use as) {
    granted[KeyOf(piece[0])] = piece;
    for (const UnitPlace& leg : piece) UseOf(leg) = as;
  }
  void Ungrant(const Piece& piece) { granted.erase(KeyOf(piece[0])); }
  // A piece that is neither mapped nor granted any more.
  void Release(const Piece& piece) {
    if (Mapped() + granted.size() < reserve) {
      Grant1(piece, Use::kSetAside);
    } else {
      for (const UnitPlace& leg : piece) UseOf(leg) = Use::kFree;
    }
  }
  std::vector<Piece> Unmap(uint32_t column, uint64_t first, uint64_t count) {
    std::vector<Piece> pieces;
    for (uint64_t unit = first; unit < first + count; ++unit) {
      if (!At(column, 0, unit)) continue;
      Piece piece;
      for (uint32_t leg = 0; leg < legs; ++leg) {
        piece.push_back(*At(column, leg, unit));
        piece.back().stale = false;
        At(column, leg, unit) = std::nullopt;
      }
      pieces.push_back(std::move(piece));
    }
    return pieces;
  }
  // False: refused, and the model is as broken as the edit.
  bool Apply(const MapChange& change) {
    const uint64_t first = change.first.value();
    if (change.kind == MapChange::Kind::kUnbind) {
      for (const Piece& piece : Unmap(change.column, first, change.count)) Release(piece);
      return true;
    }
    const bool move = change.kind == MapChange::Kind::kMove;
    for (uint64_t unit = first; unit < first + change.count; ++unit) {
      if (At(change.column, 0, unit).has_value() != move) return false;
    }
    const std::vector<UnitPlace> places(change.legs.begin(), change.legs.begin() + legs);
    for (uint64_t i = 0; i < change.count; ++i) {
      const Piece piece = PieceOf(places, i);
      if (!Granted(piece, Use::kHandedOut)) return false;
      Ungrant(piece);
    }
    const std::vector<Piece> old = Unmap(change.column, first, change.count);
    for (uint64_t i = 0; i < change.count; ++i) {
      for (uint32_t leg = 0; leg < legs; ++leg) {
        UnitPlace place = change.legs[leg];
        place.unit = place.unit + i;
        UseOf(place) = Use::kMapped;
        At(change.column, leg, first + i) = place;
      }
    }
    for (const Piece& piece : old) Release(piece);
    return true;
  }
  bool Cut(const Grant& grant, Use as) {
    for (uint64_t i = 0; i < grant.count; ++i) {
      const Piece piece = PieceOf(grant.legs, i);
      if (!Granted(piece, as)) return false;
      Ungrant(piece);
    }
    return true;
  }

  std::vector<MapRun> Runs() {
    std::vector<MapRun> runs;
    for (uint32_t column = 0; column < columns; ++column) {
      for (uint32_t leg = 0; leg < legs; ++leg) {
        for (uint64_t unit = 0; unit < kColumnUnits; ++unit) {
          const Cell& cell = At(column, leg, unit);
          if (!cell) continue;
          runs.push_back({column, leg, ColumnUnit(unit), 1, cell->device, cell->unit, cell->stale});
        }
      }
    }
    return Normalize(std::move(runs));
  }
  std::vector<GrantRecord> Grants() {
    std::vector<GrantRecord> grants;
    for (const auto& [key, piece] : granted) {
      const bool handed_out = UseOf(piece[0]) == Use::kHandedOut;
      if (!grants.empty()) {
        GrantRecord& last = grants.back();
        if (last.handed_out == handed_out && PieceOf(last.grant.legs, last.grant.count) == piece) {
          ++last.grant.count;
          continue;
        }
      }
      grants.push_back({{1, piece}, handed_out});
    }
    return grants;
  }

  uint32_t columns;
  uint32_t legs;
  uint64_t reserve;
  std::vector<Cell> map;
  std::vector<Use> use;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t Below(uint64_t bound) { return engine_() % bound; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

 private:
  std::mt19937_64 engine_;
};

class ThinMapModel : public testing::TestWithParam<int> {
 protected:
  ThinMapModel()
      : seed_(TestSeed() + static_cast<uint64_t>(GetParam())),
        random_(seed_),
        legs_(1 + static_cast<uint32_t>(random_.Below(3))),
        columns_(1 + static_cast<uint32_t>(random_.Below(2))),
        model_(columns_, legs_, random_.OneIn(2) ? 0 : random_.Below(200)),
        map_(std::make_shared<ThinMap>(legs_)),
        medium_(std::make_shared<MemoryMedium>()),
        volume_(Uuid::Random()) {
    store_ = *OpenMemoryStore(medium_);
  }

  // Free units side by side on each leg, on different devices.
  std::optional<Grant> FindFree() {
    Grant grant{.count = 1 + random_.Below(30), .legs = {}};
    const uint64_t turn = random_.Below(kDevices);
    for (uint32_t leg = 0; leg < legs_; ++leg) {
      const auto device = static_cast<uint16_t>((turn + leg) % kDevices);
      std::optional<uint64_t> first;
      const uint64_t begin = random_.Below(kDeviceUnits);
      for (uint64_t i = 0; i < kDeviceUnits && !first; ++i) {
        const uint64_t at = (begin + i) % kDeviceUnits;
        if (at + grant.count > kDeviceUnits) continue;
        bool free = true;
        for (uint64_t unit = at; unit < at + grant.count && free; ++unit) {
          // What is freed in a group is nobody's before its commit.
          free = model_.use[device * kDeviceUnits + unit] == Use::kFree &&
                 !had_[device * kDeviceUnits + unit];
        }
        if (free) first = at;
      }
      if (!first) return std::nullopt;
      grant.legs.push_back({DeviceIndex(device), DeviceUnit(*first)});
    }
    return grant;
  }
  // A part of something granted, or something near it.
  std::optional<Grant> SomeGranted() {
    std::vector<GrantRecord> all = model_.Grants();
    if (all.empty()) return std::nullopt;
    Grant grant = all[random_.Below(all.size())].grant;
    const uint64_t skip = random_.Below(grant.count);
    for (UnitPlace& leg : grant.legs) leg.unit = leg.unit + skip;
    grant.count = 1 + random_.Below(grant.count - skip);
    if (random_.OneIn(12)) ++grant.count;
    if (random_.OneIn(20)) {
      UnitPlace& leg = grant.legs[random_.Below(legs_)];
      leg.unit = leg.unit + 1;
    }
    return grant;
  }
  MapChange SomeChange() {
    MapChange change;
    change.column = static_cast<uint32_t>(random_.Below(columns_));
    change.first = ColumnUnit(random_.Below(kColumnUnits));
    change.count = static_cast<uint32_t>(1 + random_.Below(kColumnUnits - change.first.value()));
    const std::optional<Grant> grant = SomeGranted();
    if (!grant || random_.OneIn(3)) {
      change.kind = MapChange::Kind::kUnbind;
      return change;
    }
    change.kind = random_.OneIn(4) ? MapChange::Kind::kMove : MapChange::Kind::kBind;
    // Mostly one that fits: from a place where units have space, or have none.
    const bool move = change.kind == MapChange::Kind::kMove;
    uint64_t first = change.first.value();
    for (uint64_t i = 0; i < kColumnUnits; ++i) {
      if (model_.At(change.column, 0, first).has_value() == move) break;
      first = (first + 1) % kColumnUnits;
    }
    uint64_t count = 1;
    while (count < grant->count && first + count < kColumnUnits &&
           model_.At(change.column, 0, first + count).has_value() == move) {
      ++count;
    }
    change.first = ColumnUnit(first);
    change.count = static_cast<uint32_t>(random_.OneIn(25) ? count + 1 : count);
    if (first + change.count > kColumnUnits) change.count = static_cast<uint32_t>(count);
    for (uint32_t leg = 0; leg < legs_; ++leg) {
      change.legs[leg] = grant->legs[leg];
      change.legs[leg].stale = leg > 0 && random_.OneIn(10);
    }
    return change;
  }

  void Agree(const std::string& after) {
    const std::vector<MapRun> runs = model_.Runs();
    const std::vector<GrantRecord> grants = model_.Grants();
    ASSERT_EQ(map_->Runs(), runs) << after;
    ASSERT_EQ(map_->Grants(), grants) << after;
    ThinCounts counts{.mapped_units = model_.Mapped(), .granted_units = model_.granted.size()};
    for (const MapRun& run : runs) counts.stale_units += run.stale ? run.count : 0;
    for (const GrantRecord& grant : grants) {
      if (!grant.handed_out) counts.set_aside_units += grant.grant.count;
    }
    counts.runs = runs.size();
    counts.grants = grants.size();
    ASSERT_EQ(map_->counts(), counts) << after;
  }
  // The store has exactly what memory shows.
  void AgreeStored(const std::string& after) {
    std::vector<MapRun> runs;
    std::vector<GrantRecord> grants;
    ASSERT_TRUE(store_
                    ->ForEachRun(volume_,
                                 [&](const MapRun& run) {
                                   runs.push_back(run);
                                   return absl::OkStatus();
                                 })
                    .ok());
    ASSERT_TRUE(store_
                    ->ForEachGrant(volume_,
                                   [&](const GrantRecord& grant) {
                                     grants.push_back(grant);
                                     return absl::OkStatus();
                                   })
                    .ok());
    ASSERT_EQ(runs, map_->Runs()) << after;
    ASSERT_EQ(grants, map_->Grants()) << after;
    const ThinMap loaded(legs_, runs, grants);
    ASSERT_EQ(loaded.counts(), map_->counts()) << after;
  }

  const uint64_t seed_;
  Random random_;
  const uint32_t legs_;
  const uint32_t columns_;
  Model model_;
  std::shared_ptr<ThinMap> map_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<MetadataStore> store_;
  const Uuid volume_;
  std::vector<bool> had_;  // of each device unit: in use when the group began, or since
};

TEST_P(ThinMapModel, GroupsOfChangesAreWholeOrNothing) {
  uint64_t refused = 0, shown = 0;
  for (int group = 0; group < 600; ++group) {
    SCOPED_TRACE(absl::StrCat("seed ", seed_, ", group ", group));
    const Model before = model_;
    had_.clear();
    for (Use use : model_.use) had_.push_back(use != Use::kFree);
    std::optional<ThinEdit> edit(std::in_place, *map_, model_.reserve);
    std::string steps;
    bool ok = true;
    for (uint64_t step = 1 + random_.Below(6); step > 0 && ok; --step) {
      absl::Status status;
      switch (random_.Below(10)) {
        case 0:
        case 1: {
          const std::optional<Grant> grant = FindFree();
          if (!grant) break;
          const bool handed_out = !random_.OneIn(4);
          status = edit->AddGrant({*grant, handed_out});
          for (uint64_t i = 0; i < grant->count; ++i) {
            const Model::Piece piece = Model::PieceOf(grant->legs, i);
            model_.Grant1(piece, handed_out ? Use::kHandedOut : Use::kSetAside);
            for (const UnitPlace& leg : piece) {
              had_[leg.device.value() * kDeviceUnits + leg.unit.value()] = true;
            }
          }
          steps += " add";
          break;
        }
        case 2: {
          const std::optional<Grant> grant = SomeGranted();
          if (!grant) break;
          status = edit->Return(*grant);
          ok = model_.Cut(*grant, Use::kHandedOut);
          for (uint64_t i = 0; ok && i < grant->count; ++i) {
            model_.Release(Model::PieceOf(grant->legs, i));
          }
          steps += " return";
          break;
        }
        case 3: {
          const std::optional<Grant> grant = SomeGranted();
          if (!grant) break;
          status = edit->HandOut(*grant);
          ok = model_.Cut(*grant, Use::kSetAside);
          for (uint64_t i = 0; ok && i < grant->count; ++i) {
            model_.Grant1(Model::PieceOf(grant->legs, i), Use::kHandedOut);
          }
          steps += " hand out";
          break;
        }
        default: {
          const MapChange change = SomeChange();
          status = edit->Apply(change);
          ok = model_.Apply(change);
          steps += absl::StrCat(" change ", static_cast<int>(change.kind));
          break;
        }
      }
      ASSERT_EQ(status.ok(), ok) << status << " after" << steps;
      ASSERT_TRUE(ok || absl::IsInvalidArgument(status)) << status;
    }
    std::optional<ThinDelta> delta;
    if (ok) delta = edit->Finish();
    edit.reset();
    if (!ok) {
      model_ = before;
      ASSERT_NO_FATAL_FAILURE(Agree(steps));
      ++refused;
      continue;
    }
    // Nothing shows before it is durable.
    const Model after = std::exchange(model_, before);
    ASSERT_NO_FATAL_FAILURE(Agree(steps));
    model_ = after;
    MetadataBatch batch;
    delta->AddTo(volume_, batch);
    ASSERT_TRUE(store_->Commit(batch).ok());
    map_->Show(*delta);
    ++shown;
    ASSERT_NO_FATAL_FAILURE(Agree(steps));
    ASSERT_NO_FATAL_FAILURE(AgreeStored(steps));
    std::vector<bool> freed(model_.use.size());
    for (const auto& [device, units] : delta->freed()) {
      for (uint64_t i = 0; i < units.count; ++i) {
        const size_t unit = device.value() * kDeviceUnits + units.first.value() + i;
        ASSERT_FALSE(freed[unit]) << "freed twice after" << steps;
        freed[unit] = true;
      }
    }
    for (size_t unit = 0; unit < freed.size(); ++unit) {
      ASSERT_EQ(freed[unit], had_[unit] && model_.use[unit] == Use::kFree)
          << "unit " << unit << " after" << steps;
    }
  }
  EXPECT_GT(refused, 20u);
  EXPECT_GT(shown, 100u);
}
INSTANTIATE_TEST_SUITE_P(Seeds, ThinMapModel, testing::Range(0, 12));

class ThinMapTest : public testing::Test {
 protected:
  // Two legs, side by side on devices 0 and 1.
  static Grant GrantAt(uint64_t unit, uint64_t count) {
    return {count, {{DeviceIndex(0), DeviceUnit(unit)}, {DeviceIndex(1), DeviceUnit(unit)}}};
  }
  static MapChange Bind(uint64_t first, uint64_t unit, uint32_t count) {
    MapChange change{.kind = MapChange::Kind::kBind, .first = ColumnUnit(first), .count = count};
    change.legs[0] = {DeviceIndex(0), DeviceUnit(unit)};
    change.legs[1] = {DeviceIndex(1), DeviceUnit(unit)};
    return change;
  }
  ThinDelta Do(const std::vector<MapChange>& changes) {
    ThinEdit edit(*map_, 0);
    for (const MapChange& change : changes) EXPECT_TRUE(edit.Apply(change).ok());
    ThinDelta delta = edit.Finish();
    map_->Show(delta);
    return delta;
  }
  void Add(const Grant& grant, bool handed_out = true) {
    ThinEdit edit(*map_, 0);
    ASSERT_TRUE(edit.AddGrant({grant, handed_out}).ok());
    map_->Show(edit.Finish());
  }
  static size_t Entries(const ThinDelta& delta) {
    MetadataBatch batch;
    delta.AddTo(Uuid::Random(), batch);
    return batch.entries().size();
  }

  std::shared_ptr<ThinMap> map_ = std::make_shared<ThinMap>(2);
};

TEST_F(ThinMapTest, VolumeWrittenInOrderHasOneRunOfEachLeg) {
  Add(GrantAt(0, 4096));
  std::vector<MapChange> changes;
  for (uint32_t row = 0; row < 64; ++row)
    changes.push_back(Bind(uint64_t{row} * 64, uint64_t{row} * 64, 64));
  // Two runs, and the grant that is gone.
  EXPECT_EQ(Entries(Do(changes)), 3u);
  EXPECT_EQ(map_->counts().runs, 2u);
  EXPECT_EQ(map_->counts().mapped_units, 4096u);
}

TEST_F(ThinMapTest, ChangeTouchesAFewEntriesOfALargeMap) {
  Add(GrantAt(0, 100'000));
  std::vector<MapChange> changes;
  for (uint32_t i = 0; i < 40'000; ++i)
    changes.push_back(Bind(uint64_t{2} * i, uint64_t{2} * i, 1));
  Do(changes);
  ASSERT_EQ(map_->counts().runs, 80'000u);
  // Joins three runs of each leg, and uses a grant up.
  EXPECT_EQ(Entries(Do({Bind(2001, 2001, 1)})), 5u);
  MapChange unbind{.kind = MapChange::Kind::kUnbind, .first = ColumnUnit(2001), .count = 1};
  // Both halves of both legs, and no grant.
  EXPECT_EQ(Entries(Do({unbind})), 4u);
}

TEST_F(ThinMapTest, SpaceThatWasOnlySetAsideIsNotBound) {
  Add(GrantAt(0, 64), /*handed_out=*/false);
  ThinEdit edit(*map_, 0);
  EXPECT_EQ(edit.Apply(Bind(0, 0, 1)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ThinMapTest, BindMayTakeFromGrantsThatFollowEachOther) {
  Add(GrantAt(0, 64));
  Do({Bind(0, 10, 1)});
  ThinEdit edit(*map_, 0);
  EXPECT_TRUE(edit.Apply(Bind(1, 11, 53)).ok());
  EXPECT_FALSE(edit.Apply(Bind(100, 9, 2)).ok());
}

TEST_F(ThinMapTest, ReserveIsKeptWhenSpaceIsGivenUp) {
  Add(GrantAt(0, 100));
  Do({Bind(0, 0, 100)});
  ThinEdit edit(*map_, /*reserve_units=*/70);
  edit.Unbind(0, ColumnUnit(0), 100);
  const ThinDelta delta = edit.Finish();
  map_->Show(delta);
  EXPECT_EQ(map_->counts().set_aside_units, 70u);
  uint64_t freed = 0;
  for (const DeviceUnits& units : delta.freed()) freed += units.units.count;
  EXPECT_EQ(freed, 2 * 30u);
  // A smaller reserve lets go of the rest.
  ThinEdit smaller(*map_, /*reserve_units=*/10);
  smaller.FreeSurplus();
  map_->Show(smaller.Finish());
  EXPECT_EQ(map_->counts().set_aside_units, 10u);
}

TEST_F(ThinMapTest, LegsBecomeStaleWhereTheyLie) {
  Add(GrantAt(0, 100));
  Do({Bind(0, 0, 40), Bind(60, 40, 40)});
  const std::vector<MapRun> stale = MarkDeviceStale(map_->Runs(), DeviceIndex(1));
  ThinEdit edit(*map_, 0);
  edit.Restate(stale);
  const ThinDelta delta = edit.Finish();
  EXPECT_EQ(Entries(delta), 2u);
  EXPECT_TRUE(delta.freed().empty());
  map_->Show(delta);
  EXPECT_EQ(map_->Runs(), stale);
  EXPECT_EQ(map_->counts().stale_units, 80u);
}

TEST_F(ThinMapTest, OneZeroingAtATime) {
  auto zeroing = ThinMap::BeginZeroing(map_);
  ASSERT_NE(zeroing, nullptr);
  EXPECT_TRUE(map_->zeroing());
  EXPECT_EQ(ThinMap::BeginZeroing(map_), nullptr);
  zeroing.reset();
  EXPECT_FALSE(map_->zeroing());
  EXPECT_NE(ThinMap::BeginZeroing(map_), nullptr);
}

}  // namespace
}  // namespace braid
