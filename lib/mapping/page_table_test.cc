#include "lib/mapping/page_table.h"

#include <atomic>
#include <ctime>
#include <map>
#include <random>
#include <thread>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

std::unique_ptr<PageTable> Make(uint64_t size_bytes, uint32_t columns = 1, uint32_t legs = 1) {
  const absl::StatusOr<Geometry> geometry =
      Geometry::Make(size_bytes, columns, kDefaultStripeBytes, legs);
  EXPECT_TRUE(geometry.ok()) << geometry.status();
  absl::StatusOr<std::unique_ptr<PageTable>> table = PageTable::Create(*geometry);
  EXPECT_TRUE(table.ok()) << table.status();
  return *std::move(table);
}

MapRun RunOf(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
             uint64_t unit, bool stale = false) {
  return {column, leg, ColumnUnit(first), count, DeviceIndex(device), DeviceUnit(unit), stale};
}

// Of whole rows: `first` and `count` are large extents.
MapRun RowsOf(uint32_t column, uint32_t leg, uint64_t first, uint64_t count, uint16_t device,
              uint64_t unit, bool stale = false) {
  return RunOf(column, leg, first * kSmallPerExtent, count * kSmallPerExtent, device, unit, stale);
}

TEST(PageTable, EnteredRunsAreFoundAtTheirPlaces) {
  const auto table = Make(30 * kExtentBytes, 3, 2);
  ASSERT_TRUE(table->Enter(RowsOf(1, 1, 2, 5, 9, 640, true), 10).ok());
  for (uint64_t extent = 0; extent < 10; ++extent) {
    for (uint32_t column = 0; column < 3; ++column) {
      for (uint32_t leg = 0; leg < 2; ++leg) {
        const uint64_t in_extent = (extent * 12345 + leg) % kExtentBytes;
        const LegPlace place = table->Look({column, extent * kExtentBytes + in_extent}, leg);
        const bool entered = column == 1 && leg == 1 && extent >= 2 && extent < 7;
        ASSERT_EQ(place.mapped(), entered);
        if (!entered) continue;
        EXPECT_TRUE(place.stale());
        EXPECT_EQ(place.device(), DeviceIndex(9));
        EXPECT_EQ(place.device_offset(),
                  640 * kSmallExtentBytes + (extent - 2) * kExtentBytes + in_extent);
      }
    }
  }
}

TEST(PageTable, LargestDeviceAndUnitSurviveTheWord) {
  const MapWord word = MapWord::Extent(DeviceIndex(kMaxDevices - 1),
                                       DeviceUnit(kMaxDeviceUnits - 1), MapWord::kStale);
  EXPECT_EQ(word.device().value(), kMaxDevices - 1);
  EXPECT_EQ(word.unit().value(), kMaxDeviceUnits - 1);
  EXPECT_TRUE(word.is_stale());
  EXPECT_FALSE(word.is_hole());
  EXPECT_FALSE(word.is_table());
  EXPECT_FALSE(word.WithStale(false).is_stale());
}

TEST(PageTable, EnterRefusesAnOverlapWholeAndLeavesTheRest) {
  const auto table = Make(100 * kExtentBytes);
  ASSERT_TRUE(table->Enter(RowsOf(0, 0, 50, 10, 0, 0), 2).ok());
  for (const MapRun& run : {RowsOf(0, 0, 40, 11, 1, 0), RowsOf(0, 0, 59, 1, 1, 0),
                            RowsOf(0, 0, 0, 100, 1, 0), RowsOf(0, 0, 52, 48, 1, 0)}) {
    const absl::Status status = table->Enter(run, 2);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.ToString().find("mapped twice"), std::string::npos) << status;
  }
  for (uint64_t row = 0; row < 100; ++row) {
    const MapWord word = table->Word(row, 0);
    ASSERT_EQ(word, row < 50 || row >= 60
                        ? MapWord()
                        : MapWord::Extent(DeviceIndex(0), DeviceUnit((row - 50) * 64)));
  }
  EXPECT_TRUE(table->Enter(RowsOf(0, 0, 0, 50, 1, 0), 2).ok());
  EXPECT_TRUE(table->Enter(RowsOf(0, 0, 60, 40, 1, 0), 2).ok());
  EXPECT_FALSE(table->Enter(RowsOf(0, 0, 0, 101, 1, 0), 2).ok());
  EXPECT_FALSE(table->Enter(RowsOf(0, 0, 0, 1, 2, 0), 2).ok());
}

TEST(PageTable, StaleTableMakesItsSmallExtentsStaleAndBack) {
  const auto table = Make(kExtentBytes);
  ASSERT_TRUE(table->SetSmall(0, 0, 3, MapWord::Extent(DeviceIndex(1), DeviceUnit(7))).ok());
  table->SetStale(0, 0, true);
  EXPECT_TRUE(table->Look({0, 3 * kSmallExtentBytes}, 0).stale());
  EXPECT_TRUE(table->Look({0, 3 * kSmallExtentBytes}, 0).mapped());
  EXPECT_FALSE(table->Look({0, 4 * kSmallExtentBytes}, 0).mapped());
  table->SetStale(0, 0, false);
  EXPECT_FALSE(table->Look({0, 3 * kSmallExtentBytes}, 0).stale());
  EXPECT_EQ(table->Look({0, 3 * kSmallExtentBytes + 5}, 0).device_offset(),
            7 * kSmallExtentBytes + 5);
}

// Every operation against a map from (row, leg, small extent) to its place.
TEST(PageTable, MatchesAModelUnderRandomChanges) {
  std::mt19937_64 random(TestSeed());
  struct Small {
    uint16_t device;
    uint64_t unit;
    bool stale;
  };
  for (int round = 0; round < 40; ++round) {
    const auto columns = static_cast<uint32_t>(1 + random() % 5);
    const auto legs = static_cast<uint32_t>(1 + random() % kMaxLegs);
    const auto table = Make((1 + random() % 60) * kExtentBytes, columns, legs);
    const Geometry& g = table->geometry();
    std::map<std::tuple<uint64_t, uint32_t, uint64_t>, Small> model;
    const auto erase = [&](uint64_t row, uint32_t leg) {
      model.erase(model.lower_bound({row, leg, 0}), model.lower_bound({row, leg, kSmallPerExtent}));
    };
    const auto any_at = [&](uint64_t row, uint32_t leg) {
      const auto found = model.lower_bound({row, leg, 0});
      return found != model.end() && found->first < std::tuple(row, leg, kSmallPerExtent);
    };
    const auto put_large = [&](uint64_t row, uint32_t leg, Small first) {
      erase(row, leg);
      for (uint64_t i = 0; i < kSmallPerExtent; ++i) {
        model[{row, leg, i}] = {first.device, first.unit + i, first.stale};
      }
    };
    for (int step = 0; step < 300; ++step) {
      const auto column = static_cast<uint32_t>(random() % columns);
      const uint64_t extent = random() % g.extents_per_column();
      const uint64_t row = g.Row(column, ExtentIndex(extent));
      const auto leg = static_cast<uint32_t>(random() % legs);
      const Small place = {static_cast<uint16_t>(random()),
                           random() % (kMaxDeviceUnits - uint64_t{64} * kSmallPerExtent),
                           random() % 4 == 0};
      const MapWord word = MapWord::Extent(DeviceIndex(place.device), DeviceUnit(place.unit),
                                           place.stale ? MapWord::kStale : 0);
      switch (random() % 6) {
        case 0:
          table->SetLarge(row, leg, word);
          put_large(row, leg, place);
          break;
        case 1:
          table->SetLarge(row, leg, MapWord());
          erase(row, leg);
          break;
        case 2:
        case 3: {
          const MapWord now = table->Word(row, leg);
          if (!now.is_hole() && !now.is_table()) break;
          // A leg that is stale takes no fresh copy.
          const bool stale = place.stale || now.is_stale();
          const auto small = static_cast<uint32_t>(random() % kSmallPerExtent);
          if (random() % 4 == 0) {
            ASSERT_TRUE(table->SetSmall(row, leg, small, MapWord()).ok());
            model.erase({row, leg, small});
          } else {
            ASSERT_TRUE(table->SetSmall(row, leg, small, word).ok());
            model[{row, leg, small}] = {place.device, place.unit, stale};
          }
          break;
        }
        case 4: {
          const bool stale = random() % 2 == 0;
          table->SetStale(row, leg, stale);
          for (uint64_t i = 0; i < kSmallPerExtent; ++i) {
            if (const auto at = model.find({row, leg, i}); at != model.end()) {
              at->second.stale = stale;
            }
          }
          break;
        }
        case 5: {
          const uint64_t count =
              1 + random() % std::min<uint64_t>(g.extents_per_column() - extent, 8);
          bool meets = false;
          for (uint64_t i = 0; i < count; ++i) {
            // An emptied table still holds its row.
            const uint64_t at = g.Row(column, ExtentIndex(extent + i));
            meets = meets || any_at(at, leg) || table->Word(at, leg).is_table();
          }
          const absl::Status status = table->Enter(
              RowsOf(column, leg, extent, count, place.device, place.unit, place.stale),
              kMaxDevices);
          ASSERT_EQ(status.ok(), !meets) << status;
          if (meets) break;
          for (uint64_t i = 0; i < count; ++i) {
            put_large(g.Row(column, ExtentIndex(extent + i)), leg,
                      {place.device, place.unit + i * kSmallPerExtent, place.stale});
          }
          break;
        }
      }
    }
    for (uint32_t column = 0; column < columns; ++column) {
      for (uint64_t extent = 0; extent < g.extents_per_column(); ++extent) {
        for (uint32_t leg = 0; leg < legs; ++leg) {
          for (uint64_t small = 0; small < kSmallPerExtent; ++small) {
            const uint64_t in_small = random() % kSmallExtentBytes;
            const LegPlace found = table->Look(
                {column, extent * kExtentBytes + small * kSmallExtentBytes + in_small}, leg);
            const auto expected = model.find({g.Row(column, ExtentIndex(extent)), leg, small});
            ASSERT_EQ(found.mapped(), expected != model.end());
            if (!found.mapped()) continue;
            ASSERT_EQ(found.device().value(), expected->second.device);
            ASSERT_EQ(found.device_offset(), expected->second.unit * kSmallExtentBytes + in_small);
            ASSERT_EQ(found.stale(), expected->second.stale);
          }
        }
      }
    }
  }
}

// Readers meet only words that some writer wrote for that row, while rows turn from large
// extents into tables and holes. Under -Db_sanitize=thread it also shows that no access races.
TEST(PageTable, LookUpsMeetWholeWordsWhileWordsChange) {
  constexpr uint64_t kRows = 64;
  constexpr int kReaders = 3;
  const auto table = Make(kRows * kExtentBytes, 1, 2);
  const uint64_t seed = TestSeed();
  std::atomic<bool> done = false;
  std::atomic<uint64_t> found = 0;
  std::atomic<uint64_t> wrong = 0;
  // Device and unit tell the row and leg they were written for.
  const auto word_for = [](uint64_t row, uint32_t leg, uint64_t small, uint64_t generation) {
    return MapWord::Extent(DeviceIndex(static_cast<uint16_t>(row * 2 + leg)),
                           DeviceUnit(generation % 1000 * 1'000'000 + row * 64 + small));
  };
  std::vector<std::thread> threads;
  threads.reserve(kReaders);
  for (int reader = 0; reader < kReaders; ++reader) {
    threads.emplace_back([&, reader] {
      std::mt19937_64 random(seed + 1 + static_cast<uint64_t>(reader));
      while (!done.load(std::memory_order_relaxed)) {
        const uint64_t offset = random() % (kRows * kExtentBytes);
        const auto leg = static_cast<uint32_t>(random() % 2);
        const LegPlace place = table->Look({0, offset}, leg);
        if (!place.mapped()) continue;
        found.fetch_add(1, std::memory_order_relaxed);
        const uint64_t row = offset / kExtentBytes;
        if (place.device().value() != row * 2 + leg ||
            place.device_offset() % (1'000'000 * kSmallExtentBytes) != offset) {
          wrong.fetch_add(1, std::memory_order_relaxed);
        }
      }
    });
  }
  // Two writers, each with a leg of its own: changes to different words run at once.
  std::vector<std::thread> writers;
  writers.reserve(2);
  for (uint32_t leg = 0; leg < 2; ++leg) {
    writers.emplace_back([&, leg] {
      std::mt19937_64 random(seed + 100 + leg);
      for (int step = 0; step < 60'000; ++step) {
        const uint64_t row = random() % kRows;
        const MapWord now = table->Word(row, leg);
        const uint64_t small = random() % kSmallPerExtent;
        switch (random() % 4) {
          case 0:
            table->SetLarge(row, leg,
                            random() % 8 == 0 ? MapWord() : word_for(row, leg, 0, random()));
            break;
          case 1:
            table->SetStale(row, leg, random() % 2 == 0);
            break;
          default:
            if (!now.is_hole() && !now.is_table()) {
              table->SetLarge(row, leg, MapWord());
            }
            EXPECT_TRUE(table
                            ->SetSmall(row, leg, static_cast<uint32_t>(small),
                                       word_for(row, leg, small, random()))
                            .ok());
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  done = true;
  for (std::thread& reader : threads) reader.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_GT(found.load(), 0u);
}

TEST(PageTable, TablesOfSmallExtentsCostTheirWordsOnly) {
  const auto table = Make(10'000 * kExtentBytes);
  for (uint64_t row = 0; row < 10'000; ++row) {
    ASSERT_TRUE(table->SetSmall(row, 0, 63, MapWord::Extent(DeviceIndex(0), DeviceUnit(row))).ok());
  }
  EXPECT_EQ(table->table_bytes(), 10'000 * 64 * 8u);
  for (uint64_t row = 0; row < 10'000; ++row) {
    ASSERT_EQ(table->Look({0, row * kExtentBytes + 63 * kSmallExtentBytes}, 0).device_offset(),
              row * kSmallExtentBytes);
    ASSERT_FALSE(table->Look({0, row * kExtentBytes}, 0).mapped());
  }
}

TEST(PageTable, LargestVolumeIsCreatedOrRefusedAndFoundAtItsEnd) {
  absl::StatusOr<std::unique_ptr<PageTable>> table =
      PageTable::Create(*Geometry::Make(kMaxVolumeBytes, 1, 0, 4));
  if (!table.ok()) {  // little address space, or a strict commit limit
    EXPECT_EQ(table.status().code(), absl::StatusCode::kResourceExhausted) << table.status();
    return;
  }
  const uint64_t last = (*table)->geometry().rows() - 1;
  EXPECT_TRUE((*table)->Enter(RowsOf(0, 3, last, 1, 5, 64), 6).ok());
  EXPECT_EQ((*table)->Look({0, kMaxVolumeBytes - 1}, 3).device_offset(),
            kExtentBytes + kExtentBytes - kSectorBytes - 1);
  EXPECT_FALSE((*table)->Look({0, kMaxVolumeBytes - 1}, 0).mapped());
}

// Of this thread: other work on the machine does not count.
double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

TEST(PageTable, WholeMapOfASixtyFourTebibyteVolumeIsEnteredInUnderASecond) {
  const auto table = Make(64 * kTiB);
  const double begin = CpuSeconds();
  ASSERT_TRUE(table->Enter(RowsOf(0, 0, 0, table->geometry().rows(), 0, 0), 1).ok());
  const double took = CpuSeconds() - begin;
  EXPECT_EQ(table->Look({0, 64 * kTiB - 1}, 0).device_offset(), 64 * kTiB - 1);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // About 0.3 s here.
  EXPECT_LT(took, 1.0);
#endif
  std::printf("entered 64 TiB in %.3f s of processor time\n", took);
}

// Requests wait while a device is retired.
TEST(PageTable, DeviceOfASixtyFourTebibyteMirrorTurnsStaleInUnderASecond) {
  const auto table = Make(64 * kTiB, 1, 2);
  const uint64_t rows = table->geometry().rows();
  ASSERT_TRUE(table->Enter(RowsOf(0, 0, 0, rows, 0, 0), 2).ok());
  ASSERT_TRUE(table->Enter(RowsOf(0, 1, 0, rows, 1, 0), 2).ok());
  const double begin = CpuSeconds();
  ASSERT_TRUE(table->MarkDeviceStale(DeviceIndex(1)).ok());
  const std::vector<uint64_t> live = table->CountLive(2);
  const double took = CpuSeconds() - begin;
  EXPECT_EQ(live, (std::vector<uint64_t>{rows * kSmallPerExtent, 0}));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(took, 1.0);
#endif
  std::printf("marked and counted 64 TiB in %.3f s of processor time\n", took);
}

}  // namespace
}  // namespace braid
