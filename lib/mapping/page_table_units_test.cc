// The page table by units: runs that begin and end within rows, splitting, clearing, tables
// given back, and what goes over the whole map.
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

std::unique_ptr<PageTable> Make(uint64_t extents, uint32_t columns = 1, uint32_t legs = 1) {
  return *PageTable::Create(
      *Geometry::Make(extents * columns * kExtentBytes, columns, kDefaultStripeBytes, legs));
}

MapRun RunOf(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
             uint64_t unit, bool stale = false) {
  return {column, leg, ColumnUnit(first), count, DeviceIndex(device), DeviceUnit(unit), stale};
}

std::vector<MapRun> Runs(const PageTable& table) {
  std::vector<MapRun> runs;
  table.ForEachRun([&runs](const MapRun& run) { runs.push_back(run); });
  return runs;
}

uint64_t CountTables(const PageTable& table) {
  uint64_t count = 0;
  for (uint64_t row = 0; row < table.geometry().rows(); ++row) {
    for (uint32_t leg = 0; leg < table.geometry().legs(); ++leg) {
      count += table.Word(row, leg).is_table() ? 1 : 0;
    }
  }
  return count;
}

TEST(PageTableUnits, EnterMakesLargeWordsOfWholeRowsAndTablesOfTheEnds) {
  const auto table = Make(10);
  const MapRun run = RunOf(0, 0, 60, 4 + 2 * 64 + 5, 3, 1000, true);
  ASSERT_TRUE(table->Enter(run, 4).ok());
  EXPECT_TRUE(table->Word(0, 0).is_table());
  EXPECT_EQ(table->Word(1, 0), MapWord::Extent(DeviceIndex(3), DeviceUnit(1004), MapWord::kStale));
  EXPECT_EQ(table->Word(2, 0), MapWord::Extent(DeviceIndex(3), DeviceUnit(1068), MapWord::kStale));
  EXPECT_TRUE(table->Word(3, 0).is_table());
  EXPECT_TRUE(table->Word(4, 0).is_hole());
  EXPECT_EQ(Runs(*table), std::vector<MapRun>{run});
  EXPECT_EQ(table->table_bytes(), 2 * 512u);
  // Within one row, and exactly up to its end.
  ASSERT_TRUE(table->Enter(RunOf(0, 0, 330, 20, 0, 7), 4).ok());
  ASSERT_TRUE(table->Enter(RunOf(0, 0, 370, 14, 1, 7), 4).ok());
  EXPECT_TRUE(table->Word(6, 0).is_hole());
  EXPECT_EQ(Runs(*table),
            (std::vector<MapRun>{run, RunOf(0, 0, 330, 20, 0, 7), RunOf(0, 0, 370, 14, 1, 7)}));
}

TEST(PageTableUnits, EnterRefusesARunThatMeetsAnythingAndEntersNothingOfIt) {
  const auto table = Make(10);
  ASSERT_TRUE(table->Enter(RunOf(0, 0, uint64_t{5} * 64, 64, 0, 0), 2).ok());
  ASSERT_TRUE(table->Enter(RunOf(0, 0, 7 * 64 + 10, 1, 0, 100), 2).ok());
  const std::vector<MapRun> before = Runs(*table);
  for (const MapRun& run : {
           RunOf(0, 0, 5 * 64 + 63, 1, 1, 0),                // a unit of a large extent
           RunOf(0, 0, 4 * 64 + 60, 5, 1, 0),                // its first unit is the run's last
           RunOf(0, 0, 5 * 64 + 63, 5, 1, 0),                // its last is the run's first
           RunOf(0, 0, 3 * 64 + 9, 64 + 64 + 9, 1, 0),       // tail
           RunOf(0, 0, 3 * 64 + 9, uint64_t{5} * 64, 1, 0),  // a row in the middle
           RunOf(0, 0, 7 * 64 + 10, 1, 1, 0),                // the small extent itself
           RunOf(0, 0, 7 * 64 + 8, 64, 1, 0),                // in the head
           RunOf(0, 0, 6 * 64 + 8, 67, 1, 0),                // in the tail
           RunOf(0, 0, uint64_t{7} * 64, 64, 1, 0),          // the whole row of the table
           RunOf(0, 0, 6 * 64 + 1, uint64_t{3} * 64, 1, 0),
       }) {
    const absl::Status status = table->Enter(run, 2);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << run.first.value();
    EXPECT_NE(status.ToString().find("mapped twice"), std::string::npos) << status;
    ASSERT_EQ(Runs(*table), before) << run.first.value();
    for (uint64_t row : {3, 4, 6, 8}) EXPECT_TRUE(table->Word(row, 0).is_hole()) << row;
  }
  EXPECT_TRUE(table->Enter(RunOf(0, 0, uint64_t{7} * 64, 10, 1, 0), 2).ok());
  EXPECT_TRUE(table->Enter(RunOf(0, 0, 7 * 64 + 11, 53, 1, 0), 2).ok());
}

TEST(PageTableUnits, SplitKeepsEveryPlaceAndItsStaleness) {
  for (const bool stale : {false, true}) {
    const auto table = Make(2);
    ASSERT_TRUE(table->Enter(RunOf(0, 0, 0, 64, 1, 640, stale), 2).ok());
    ASSERT_TRUE(table->Split(0, 0).ok());
    ASSERT_TRUE(table->Split(0, 0).ok());
    ASSERT_TRUE(table->Split(1, 0).ok());
    EXPECT_TRUE(table->Word(0, 0).is_table());
    EXPECT_TRUE(table->Word(1, 0).is_hole());
    EXPECT_EQ(table->table_bytes(), 512u);
    EXPECT_EQ(Runs(*table), std::vector<MapRun>{RunOf(0, 0, 0, 64, 1, 640, stale)});
    // What is entered in the row afterwards is not born stale.
    ASSERT_TRUE(table->SetSmall(0, 0, 5, MapWord::Extent(DeviceIndex(0), DeviceUnit(9))).ok());
    EXPECT_FALSE(table->Look({0, 5 * kSmallExtentBytes}, 0).stale());
    EXPECT_EQ(table->Look({0, 6 * kSmallExtentBytes}, 0).stale(), stale);
  }
}

TEST(PageTableUnits, ClearTakesWholeRowsPartsAndTablesThatItEmpties) {
  const auto table = Make(6, 2, 2);
  for (uint32_t column : {0, 1}) {
    for (uint32_t leg : {0, 1}) {
      ASSERT_TRUE(table->Enter(RunOf(column, leg, 0, uint64_t{4} * 64, 0, 0), 1).ok());
    }
  }
  ASSERT_TRUE(table->Clear(1, ColumnUnit(60), 4 + 64 + 2).ok());
  std::vector<MapRun> expected = {RunOf(0, 0, 0, 256, 0, 0), RunOf(0, 1, 0, 256, 0, 0)};
  for (uint32_t leg : {0, 1}) {
    expected.push_back(RunOf(1, leg, 0, 60, 0, 0));
    expected.push_back(RunOf(1, leg, 130, 126, 0, 130));
  }
  EXPECT_EQ(Runs(*table), expected);
  EXPECT_TRUE(table->TakeRetired().empty());
  // What is left of both rows goes, and with it their tables; holes are cleared in vain.
  ASSERT_TRUE(table->Clear(1, ColumnUnit(10), 50).ok());
  ASSERT_TRUE(table->Clear(1, ColumnUnit(0), 10).ok());
  ASSERT_TRUE(table->Clear(1, ColumnUnit(64), 128).ok());
  EXPECT_EQ(table->TakeRetired().size(), 4u);
  for (uint32_t leg : {0, 1}) {
    for (uint64_t extent : {0, 1, 2}) {
      EXPECT_EQ(table->Word(table->geometry().Row(1, ExtentIndex(extent)), leg), MapWord());
    }
  }
  ASSERT_TRUE(table->Clear(0, ColumnUnit(0), table->geometry().units_per_column()).ok());
  ASSERT_TRUE(table->Clear(1, ColumnUnit(0), table->geometry().units_per_column()).ok());
  EXPECT_TRUE(Runs(*table).empty());
  ASSERT_TRUE(table->Enter(RunOf(1, 1, 3, 300, 0, 0), 1).ok());
}

TEST(PageTableUnits, ClearRefusesWhatTheVolumeDoesNotHave) {
  const auto table = Make(2, 2, 1);
  EXPECT_TRUE(table->Clear(1, ColumnUnit(128), 0).ok());
  for (const auto& [column, first, count] :
       {std::tuple(2u, 0ul, 1ul), {0u, 128ul, 1ul}, {0u, 0ul, 129ul}, {0u, 1ul, UINT64_MAX}}) {
    EXPECT_EQ(table->Clear(column, ColumnUnit(first), count).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(PageTableUnits, RetiredTablesAreUsedAgainOnlyOnceRecycled) {
  const auto table = Make(4);
  const MapWord word = MapWord::Extent(DeviceIndex(1), DeviceUnit(5));
  for (uint64_t row : {0, 1}) ASSERT_TRUE(table->SetSmall(row, 0, 7, word).ok());
  table->SetLarge(0, 0, word);
  ASSERT_TRUE(table->Clear(0, ColumnUnit(71), 1).ok());
  RetiredTables retired = table->TakeRetired();
  EXPECT_EQ(retired.size(), 2u);
  EXPECT_TRUE(table->TakeRetired().empty());
  ASSERT_TRUE(table->SetSmall(2, 0, 7, word).ok());
  EXPECT_EQ(table->table_bytes(), 3 * 512u);
  table->Recycle(std::move(retired));
  ASSERT_TRUE(table->SetSmall(1, 0, 8, word).ok());
  ASSERT_TRUE(table->Split(0, 0).ok());
  EXPECT_EQ(table->table_bytes(), 3 * 512u);
  // Nothing of what they held before shows.
  EXPECT_EQ(Runs(*table), (std::vector<MapRun>{RunOf(0, 0, 0, 64, 1, 5), RunOf(0, 0, 72, 1, 1, 5),
                                               RunOf(0, 0, 135, 1, 1, 5)}));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(PageTableUnits, WithoutMemoryForTablesNothingChanges) {
  const auto table = Make(10, 1, 2);
  ASSERT_TRUE(table->Enter(RunOf(0, 0, 0, 128, 0, 0), 3).ok());
  ASSERT_TRUE(table->Enter(RunOf(0, 1, 0, 128, 1, 0), 3).ok());
  const std::vector<MapRun> before = Runs(*table);
  rlimit limit{};
  getrlimit(RLIMIT_AS, &limit);
  const rlimit none{.rlim_cur = 0, .rlim_max = limit.rlim_max};
  setrlimit(RLIMIT_AS, &none);
  const std::array<absl::StatusCode, 4> codes = {
      table->Split(0, 0).code(), table->Clear(0, ColumnUnit(3), 64).code(),
      table->Enter(RunOf(0, 0, 130, 300, 2, 0), 3).code(),
      table->SetSmall(5, 0, 1, MapWord::Extent(DeviceIndex(0), DeviceUnit(0))).code()};
  setrlimit(RLIMIT_AS, &limit);
  for (const absl::StatusCode code : codes) {
    EXPECT_EQ(code, absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(Runs(*table), before);
  EXPECT_TRUE(table->Clear(0, ColumnUnit(3), 64).ok());
}
#endif

// Every operation against a map from (column, leg, unit) to its place, the whole map said
// as runs, and the staleness of a device against the rule that the control plane applies.
TEST(PageTableUnits, MatchesAModelOfSingleUnits) {
  std::mt19937_64 random(TestSeed());
  struct Place {
    uint16_t device;
    uint64_t unit;
    bool stale;
  };
  constexpr uint16_t kDevices = 4;
  uint64_t entered = 0;
  uint64_t refused = 0;
  uint64_t split_by_staleness = 0;
  for (int round = 0; round < 150; ++round) {
    const auto columns = static_cast<uint32_t>(1 + random() % 3);
    const auto legs = static_cast<uint32_t>(1 + random() % kMaxLegs);
    const auto table = Make(1 + random() % 6, columns, legs);
    const uint64_t units = table->geometry().units_per_column();
    std::map<std::tuple<uint32_t, uint32_t, uint64_t>, Place> model;
    const auto model_runs = [&] {
      std::vector<MapRun> runs;
      for (const auto& [where, place] : model) {
        const auto& [column, leg, unit] = where;
        runs.push_back(RunOf(column, leg, unit, 1, place.device, place.unit, place.stale));
      }
      return Normalize(std::move(runs));
    };
    for (int step = 0; step < 120; ++step) {
      const auto column = static_cast<uint32_t>(random() % columns);
      const auto leg = static_cast<uint32_t>(random() % legs);
      const uint64_t first = random() % 3 == 0 ? random() % units / 64 * 64 : random() % units;
      const uint64_t longest = std::min<uint64_t>(units - first, random() % 2 == 0 ? 20 : 200);
      uint64_t count = 1 + random() % longest;
      if (random() % 3 == 0 && units - first >= 64) count = 64;
      const auto device = static_cast<uint16_t>(random() % kDevices);
      switch (random() % 8) {
        case 0:
        case 1:
        case 2: {
          // On some legs at once, as copies are, or on one.
          const bool stale = random() % 4 == 0;
          for (uint32_t l = random() % 2 == 0 ? 0 : leg; l < legs; ++l) {
            const auto on = static_cast<uint16_t>((device + l * (random() % 3)) % kDevices);
            const uint64_t unit = random() % 100'000;
            bool meets = false;
            for (uint64_t i = 0; i < count; ++i) {
              meets = meets || model.contains({column, l, first + i});
            }
            const absl::Status status = table->Enter(
                RunOf(column, l, first, count, on, unit, stale && l % 2 == 1), kDevices);
            ASSERT_EQ(status.ok(), !meets) << status;
            ++(meets ? refused : entered);
            for (uint64_t i = 0; i < count && !meets; ++i) {
              model[{column, l, first + i}] = {on, unit + i, stale && l % 2 == 1};
            }
          }
          break;
        }
        case 3:
        case 4:
          ASSERT_TRUE(table->Clear(column, ColumnUnit(first), count).ok());
          for (uint32_t l = 0; l < legs; ++l) {
            model.erase(model.lower_bound({column, l, first}),
                        model.lower_bound({column, l, first + count}));
          }
          break;
        case 5:
          ASSERT_TRUE(
              table->Split(table->geometry().Row(column, ExtentOf(ColumnUnit(first))), leg).ok());
          break;
        case 6:
          table->Recycle(table->TakeRetired());
          break;
        case 7: {
          if (random() % 4 != 0) break;
          const std::vector<MapRun> expected = MarkDeviceStale(Runs(*table), DeviceIndex(device));
          const uint64_t tables = CountTables(*table);
          ASSERT_TRUE(table->MarkDeviceStale(DeviceIndex(device)).ok());
          ASSERT_EQ(Runs(*table), expected);
          split_by_staleness += CountTables(*table) - tables;
          for (const MapRun& run : expected) {
            for (uint64_t i = 0; i < run.count; ++i) {
              model.at({run.column, run.leg, run.first.value() + i}).stale = run.stale;
            }
          }
          break;
        }
      }
      ASSERT_EQ(Runs(*table), model_runs()) << "round " << round << ", step " << step;
    }
    std::vector<uint64_t> live(kDevices, 0);
    for (const auto& [where, place] : model) live[place.device] += place.stale ? 0 : 1;
    ASSERT_EQ(table->CountLive(kDevices), live);
    for (uint32_t column = 0; column < columns; ++column) {
      for (uint32_t leg = 0; leg < legs; ++leg) {
        for (uint64_t unit = 0; unit < units; ++unit) {
          const LegPlace found = table->Look({column, unit * kSmallExtentBytes + 77}, leg);
          const auto place = model.find({column, leg, unit});
          ASSERT_EQ(found.mapped(), place != model.end());
          if (!found.mapped()) continue;
          ASSERT_EQ(found.device().value(), place->second.device);
          ASSERT_EQ(found.device_offset(), place->second.unit * kSmallExtentBytes + 77);
          ASSERT_EQ(found.stale(), place->second.stale);
        }
      }
    }
  }
  EXPECT_GT(entered, 500u);
  EXPECT_GT(refused, 100u);
  EXPECT_GT(split_by_staleness, 0u);
}

TEST(PageTableUnits, OfALargeExtentOnlyTheUnitsWithAnotherCopyTurnStale) {
  const auto table = Make(1, 1, 2);
  ASSERT_TRUE(table->Enter(RunOf(0, 0, 0, 64, 0, 640), 3).ok());
  ASSERT_TRUE(table->Enter(RunOf(0, 1, 0, 10, 1, 0), 3).ok());
  ASSERT_TRUE(table->Enter(RunOf(0, 1, 10, 54, 2, 0, true), 3).ok());
  ASSERT_TRUE(table->MarkDeviceStale(DeviceIndex(0)).ok());
  const std::vector<MapRun> after = {RunOf(0, 0, 0, 10, 0, 640, true), RunOf(0, 0, 10, 54, 0, 650),
                                     RunOf(0, 1, 0, 10, 1, 0), RunOf(0, 1, 10, 54, 2, 0, true)};
  EXPECT_EQ(Runs(*table), after);
  EXPECT_EQ(table->CountLive(3), (std::vector<uint64_t>{54, 10, 0}));
  ASSERT_TRUE(table->MarkDeviceStale(DeviceIndex(0)).ok());
  ASSERT_TRUE(table->MarkDeviceStale(DeviceIndex(1)).ok());
  EXPECT_EQ(Runs(*table), after) << "the last copies stay";
}

// While rows are split, folded into large extents again, and their tables go round through
// TakeRetired, a wait for readers, and Recycle, every look-up finds the place that its unit
// always has, though its table may have been another row's before.
TEST(PageTableUnits, LookUpsNeverFallIntoAHoleWhileTablesComeAndGo) {
  constexpr uint64_t kRows = 8;
  constexpr size_t kReaders = 2;
  const auto table = Make(kRows);
  // Row r lies at unit 1000 r of device r, all the time.
  const auto large = [](uint64_t row) {
    return MapWord::Extent(DeviceIndex(static_cast<uint16_t>(row)), DeviceUnit(1000 * row));
  };
  for (uint64_t row = 0; row < kRows; ++row) table->SetLarge(row, 0, large(row));
  std::atomic<bool> done = false;
  std::atomic<uint64_t> wrong = 0;
  std::array<std::atomic<uint64_t>, kReaders> turns{};  // odd: inside a look-up
  const uint64_t seed = TestSeed();
  std::vector<std::thread> readers;
  for (size_t reader = 0; reader < kReaders; ++reader) {
    readers.emplace_back([&, reader] {
      std::mt19937_64 random(seed + reader);
      while (!done.load()) {
        const uint64_t offset = random() % (kRows * kExtentBytes);
        turns[reader].fetch_add(1);
        const LegPlace place = table->Look({0, offset}, 0);
        turns[reader].fetch_add(1);
        const uint64_t row = offset / kExtentBytes;
        if (!place.mapped() || place.device().value() != row ||
            place.device_offset() != 1000 * row * kSmallExtentBytes + offset % kExtentBytes) {
          wrong.fetch_add(1);
        }
      }
    });
  }
  std::mt19937_64 random(seed + 100);
  for (int step = 0; step < 40'000; ++step) {
    const uint64_t row = random() % kRows;
    EXPECT_TRUE(table->Split(row, 0).ok());
    if (random() % 2 == 0) table->SetLarge(row, 0, large(row));
    if (step % 16 != 0) continue;
    RetiredTables retired = table->TakeRetired();
    for (const auto& turn : turns) {
      const uint64_t seen = turn.load();
      while (seen % 2 == 1 && turn.load() == seen) std::this_thread::yield();
    }
    table->Recycle(std::move(retired));
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong.load(), 0u);
  for (const auto& turn : turns) EXPECT_GT(turn.load(), 0u);
  // As many as are in use or wait for a turn, not one per split.
  EXPECT_LE(table->table_bytes(), 64 * 512u);
}

}  // namespace
}  // namespace braid
