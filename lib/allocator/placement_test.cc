#include "lib/allocator/placement.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

// Devices with their spaces, and what was taken before.
class Pool {
 public:
  void Add(absl::string_view name, absl::string_view node, uint64_t extents,
           absl::string_view device_class = "ssd") {
    spaces_.push_back(std::make_unique<FreeSpace>(kExtentBytes, extents * kExtentBytes));
    devices_.push_back({Uuid::Random(), std::string(name), std::string(node),
                        std::string(device_class), spaces_.back().get()});
  }
  std::vector<PlacementDevice>& devices() { return devices_; }
  FreeSpace& space(size_t i) { return *spaces_[i]; }

  const PlacementDevice& Find(const Uuid& id) const {
    return *std::find_if(devices_.begin(), devices_.end(),
                         [&](const PlacementDevice& d) { return d.id == id; });
  }
  // By device: the large extents that can be taken, drained from a copy of its space.
  std::vector<std::set<uint64_t>> FreeExtents() const {
    std::vector<std::set<uint64_t>> all;
    for (const auto& space : spaces_) {
      FreeSpace copy = *space;
      std::set<uint64_t>& extents = all.emplace_back();
      while (auto run = copy.TakeLarge(UINT64_MAX)) {
        for (uint64_t i = 0; i < run->count; i += kSmallPerExtent) {
          extents.insert(run->first.value() + i);
        }
      }
    }
    return all;
  }

 private:
  std::vector<PlacementDevice> devices_;
  std::vector<std::unique_ptr<FreeSpace>> spaces_;
};

Geometry Shape(uint64_t extents, uint32_t columns, uint32_t legs) {
  return Geometry::Make(extents * columns * kExtentBytes, columns, 64 * kKiB, legs).value();
}

// Rules 1 to 3, every row of every leg once, and that what left the spaces is what the
// runs say, no extent twice.
void CheckRules(const PlacementRequest& request, const Placement& placement, const Pool& pool,
                const std::vector<std::set<uint64_t>>& free_before) {
  const Geometry& g = request.geometry;
  std::map<std::tuple<uint64_t, uint32_t, uint32_t>, uint16_t> cells;  // extent, column, leg
  std::map<Uuid, std::set<uint64_t>> taken;
  ASSERT_EQ(placement.runs, Normalize(placement.runs));
  for (const MapRun& run : placement.runs) {
    ASSERT_TRUE(CheckRun(g, run, placement.devices.size()).ok());
    ASSERT_FALSE(run.stale);
    ASSERT_EQ(SmallOf(run.first), 0u) << "not of whole extents";
    ASSERT_EQ(run.count % kSmallPerExtent, 0u) << "not of whole extents";
    for (uint64_t i = 0; i < run.count; i += kSmallPerExtent) {
      ASSERT_TRUE(cells
                      .emplace(std::tuple(ExtentOf(run.first + i).value(), run.column, run.leg),
                               run.device.value())
                      .second)
          << "a row twice";
      ASSERT_TRUE(taken[placement.devices[run.device.value()]].insert(run.unit.value() + i).second)
          << "an extent twice";
    }
  }
  ASSERT_EQ(cells.size(), g.rows() * g.legs());
  const auto device_at = [&](uint64_t extent, uint32_t column, uint32_t leg) {
    return cells.at(std::tuple(extent, column, leg));
  };
  for (uint64_t extent = 0; extent < g.extents_per_column(); ++extent) {
    for (uint32_t column = 0; column < g.columns(); ++column) {
      std::set<uint16_t> devices;
      std::set<std::string> nodes;
      for (uint32_t leg = 0; leg < g.legs(); ++leg) {
        const uint16_t device = device_at(extent, column, leg);
        devices.insert(device);
        nodes.insert(pool.Find(placement.devices[device]).node);
      }
      ASSERT_EQ(devices.size(), g.legs()) << "copies on one device";
      ASSERT_GE(nodes.size(), placement.nodes_per_extent);
    }
    for (uint32_t leg = 0; leg < g.legs(); ++leg) {
      std::set<uint16_t> devices;
      for (uint32_t column = 0; column < g.columns(); ++column) {
        devices.insert(device_at(extent, column, leg));
      }
      ASSERT_EQ(devices.size(), g.columns()) << "columns on one device";
    }
  }
  ASSERT_EQ(taken.size(), placement.devices.size()) << "a device in the table without a run";
  const std::vector<std::set<uint64_t>> free_after = pool.FreeExtents();
  auto& devices = const_cast<Pool&>(pool).devices();
  for (size_t i = 0; i < devices.size(); ++i) {
    const PlacementDevice& device = devices[i];
    if (taken.count(device.id) != 0 && !request.device_class.empty()) {
      ASSERT_EQ(device.device_class, request.device_class);
    }
    std::set<uint64_t> gone;
    std::set_difference(free_before[i].begin(), free_before[i].end(), free_after[i].begin(),
                        free_after[i].end(), std::inserter(gone, gone.end()));
    ASSERT_EQ(gone, taken[device.id]);
    ASSERT_EQ(free_after[i].size() + gone.size(), free_before[i].size());
  }
}

// By trying everything: the most nodes per extent with which the layers fit, 0 for none.
// Shares nothing with the code it checks.
class Exhaustive {
 public:
  Exhaustive(uint32_t columns, uint32_t legs, std::vector<uint32_t> nodes)
      : columns_(columns), legs_(legs), nodes_(std::move(nodes)) {}

  uint32_t MostNodes(uint64_t layers, const std::vector<uint64_t>& free) {
    for (uint32_t k = legs_; k >= 1; --k) {
      layers_of_.clear();
      known_.clear();
      std::vector<size_t> cells(size_t{columns_} * legs_);
      Enumerate(k, 0, cells);
      if (Fits(layers, free)) return k;
    }
    return 0;
  }

 private:
  void Enumerate(uint32_t k, size_t i, std::vector<size_t>& cells) {
    if (i == cells.size()) {
      for (uint32_t column = 0; column < columns_; ++column) {
        std::set<uint32_t> nodes;
        for (uint32_t leg = 0; leg < legs_; ++leg) {
          nodes.insert(nodes_[cells[column * legs_ + leg]]);
        }
        if (nodes.size() < k) return;
      }
      std::vector<uint64_t> counts(nodes_.size());
      for (size_t device : cells) ++counts[device];
      layers_of_.insert(counts);
      return;
    }
    for (size_t device = 0; device < nodes_.size(); ++device) {
      bool clash = false;
      for (size_t j = 0; j < i; ++j) {
        clash = clash || (cells[j] == device && (j / legs_ == i / legs_ || j % legs_ == i % legs_));
      }
      if (clash) continue;
      cells[i] = device;
      Enumerate(k, i + 1, cells);
    }
  }

  bool Fits(uint64_t layers, const std::vector<uint64_t>& free) {
    if (layers == 0) return true;
    const auto [it, is_new] = known_.try_emplace({layers, free}, false);
    if (!is_new) return it->second;
    for (const std::vector<uint64_t>& layer : layers_of_) {
      std::vector<uint64_t> rest = free;
      bool enough = true;
      for (size_t d = 0; d < rest.size() && enough; ++d) {
        enough = rest[d] >= layer[d];
        rest[d] -= enough ? layer[d] : 0;
      }
      if (enough && Fits(layers - 1, rest)) return known_[{layers, free}] = true;
    }
    return false;
  }

  const uint32_t columns_, legs_;
  const std::vector<uint32_t> nodes_;  // of each device
  std::set<std::vector<uint64_t>> layers_of_;
  std::map<std::pair<uint64_t, std::vector<uint64_t>>, bool> known_;
};

TEST(Place, FindsAPlacementExactlyWhenTryingEverythingDoes) {
  std::mt19937_64 random(TestSeed());
  const auto below = [&](uint64_t limit) { return random() % limit; };
  const std::pair<uint32_t, uint32_t> shapes[] = {{1, 1}, {1, 2}, {1, 3}, {1, 4}, {2, 1},
                                                  {2, 2}, {3, 1}, {2, 3}, {3, 2}};
  int placed = 0, refused = 0, fewer_nodes = 0;
  for (int i = 0; i < 4000; ++i) {
    const auto [columns, legs] = shapes[below(std::size(shapes))];
    const size_t devices = 1 + below(columns * legs > 4 ? 4 : 5);
    const uint64_t layers = 1 + below(5);
    const uint64_t most = 1 + layers * columns * legs * 2 / devices;
    const uint64_t node_limit = 1 + below(4);
    Pool pool;
    std::vector<uint32_t> nodes;
    std::vector<uint64_t> free;
    std::string picture = absl::StrCat(columns, "x", legs, " of ", layers, ":");
    for (size_t d = 0; d < devices; ++d) {
      nodes.push_back(static_cast<uint32_t>(below(node_limit)));
      free.push_back(below(most + 1));
      pool.Add(absl::StrCat("d", d), absl::StrCat("n", nodes.back()), free.back());
      absl::StrAppend(&picture, " ", free.back(), "@n", nodes.back());
    }
    const uint32_t expected = Exhaustive(columns, legs, nodes).MostNodes(layers, free);
    const auto before = pool.FreeExtents();
    const PlacementRequest request{Shape(layers, columns, legs), ""};
    const auto placement = Place(request, pool.devices());
    ASSERT_EQ(placement.ok(), expected > 0) << picture << ": " << placement.status();
    if (placement.ok()) {
      ++placed;
      fewer_nodes += expected < legs ? 1 : 0;
      ASSERT_EQ(placement->nodes_per_extent, expected) << picture;
      ASSERT_NO_FATAL_FAILURE(CheckRules(request, *placement, pool, before)) << picture;
    } else {
      ++refused;
      ASSERT_EQ(pool.FreeExtents(), before);
    }
  }
  // The sample speaks for all outcomes.
  EXPECT_GT(placed, 400);
  EXPECT_GT(refused, 400);
  EXPECT_GT(fewer_nodes, 100);
}

TEST(Place, KeepsItsRulesOnRandomFragmentedPools) {
  std::mt19937_64 random(TestSeed());
  const auto below = [&](uint64_t limit) { return random() % limit; };
  const char* const classes[] = {"ssd", "hdd-slow"};
  int placed = 0, refused = 0;
  for (int i = 0; i < 400; ++i) {
    Pool pool;
    const size_t devices = 1 + below(12);
    const uint64_t node_limit = 1 + below(5);
    for (size_t d = 0; d < devices; ++d) {
      pool.Add(absl::StrCat("d", d), absl::StrCat("n", below(node_limit)), below(200),
               classes[below(4) == 0]);
      FreeSpace& space = pool.space(d);
      for (uint64_t hole = below(60); hole > 0 && space.capacity_units() > 0; --hole) {
        // Some single units, some extents; those already taken stay so.
        const uint64_t unit = kSmallPerExtent + below(space.capacity_units());
        (void)space.Take({DeviceUnit(unit), 1 + below(2) * 80});
      }
    }
    const PlacementRequest request{Shape(1 + below(120), 1 + static_cast<uint32_t>(below(6)),
                                         1 + static_cast<uint32_t>(below(4))),
                                   below(2) == 0 ? "" : "ssd"};
    const auto before = pool.FreeExtents();
    const auto placement = Place(request, pool.devices());
    if (placement.ok()) {
      ++placed;
      ASSERT_NO_FATAL_FAILURE(CheckRules(request, *placement, pool, before)) << i;
    } else {
      ++refused;
      ASSERT_EQ(pool.FreeExtents(), before);
      ASSERT_TRUE(absl::IsFailedPrecondition(placement.status()) ||
                  absl::IsResourceExhausted(placement.status()));
      ASSERT_EQ(placement.status().message().find('\n'), absl::string_view::npos);
    }
  }
  EXPECT_GT(placed, 40);
  EXPECT_GT(refused, 40);
}

TEST(Place, KeepsALinearVolumeWholeOnTheRoomiestDevice) {
  Pool pool;
  pool.Add("d0", "n", 10);
  pool.Add("d1", "n", 30);
  pool.Add("d2", "n", 20);
  const auto placement = Place({Shape(15, 1, 1), ""}, pool.devices()).value();
  ASSERT_EQ(placement.runs.size(), 1u);
  EXPECT_EQ(pool.Find(placement.devices[0]).name, "d1");
}

TEST(Place, SpansTheRoomiestFirstWhenNoDeviceHasRoom) {
  Pool pool;
  pool.Add("d0", "n", 10);
  pool.Add("d1", "n", 30);
  pool.Add("d2", "n", 20);
  const auto placement = Place({Shape(45, 1, 1), ""}, pool.devices()).value();
  ASSERT_EQ(placement.runs.size(), 2u);
  EXPECT_EQ(pool.Find(placement.devices[placement.runs[0].device.value()]).name, "d1");
  EXPECT_EQ(placement.runs[0].count, 30u * kSmallPerExtent);
  EXPECT_EQ(pool.Find(placement.devices[placement.runs[1].device.value()]).name, "d2");
}

TEST(Place, KeepsALegWholeThoughTheOtherMustSpan) {
  Pool pool;
  pool.Add("d0", "n0", 40);
  pool.Add("d1", "n1", 25);
  pool.Add("d2", "n2", 25);
  const auto placement = Place({Shape(40, 1, 2), ""}, pool.devices()).value();
  EXPECT_EQ(placement.nodes_per_extent, 2u);
  EXPECT_EQ(placement.runs.size(), 3u);
}

TEST(Place, PrefersTwoNodesToTwoRoomierDevicesOfOne) {
  Pool pool;
  pool.Add("d0", "n0", 100);
  pool.Add("d1", "n0", 100);
  pool.Add("d2", "n1", 10);
  EXPECT_EQ(Place({Shape(10, 1, 2), ""}, pool.devices()).value().nodes_per_extent, 2u);
  // The second node is full now.
  EXPECT_EQ(Place({Shape(10, 1, 2), ""}, pool.devices()).value().nodes_per_extent, 1u);
}

TEST(Place, PutsTwoStripedMirrorsOnTwoDevicesCrosswise) {
  Pool pool;
  pool.Add("d0", "n", 20);
  pool.Add("d1", "n", 20);
  const auto placement = Place({Shape(10, 2, 2), ""}, pool.devices()).value();
  EXPECT_EQ(placement.runs.size(), 4u);
}

TEST(Place, RefusalsSayWhatIsMissingAndWhatWouldHelp) {
  const auto message = [](Pool& pool, const Geometry& g, absl::string_view device_class,
                          absl::StatusCode code) {
    const absl::Status status = Place({g, std::string(device_class)}, pool.devices()).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  };
  constexpr auto kNever = absl::StatusCode::kFailedPrecondition;
  Pool pool;
  EXPECT_EQ(message(pool, Shape(1, 1, 1), "", kNever),
            "the volume needs 1 device; there are none; add devices");
  pool.Add("d1", "alpha", 100);
  EXPECT_EQ(message(pool, Shape(1, 1, 1), "nvme", kNever),
            "the volume needs 1 device of class nvme; there are none (classes here: ssd); add "
            "devices or choose another --class");
  EXPECT_EQ(message(pool, Shape(1, 1, 2), "ssd", kNever),
            "the volume needs 2 different devices of class ssd for 2 copies on different devices; "
            "there is 1 (d1 on node alpha); add devices or lower --copies");
  pool.Add("d2", "beta", 50);
  EXPECT_EQ(message(pool, Shape(1, 4, 2), "", kNever),
            "the volume needs 4 different devices for 2 copies on different devices and 4 stripes "
            "on different devices; there are 2 (d1 on node alpha, d2 on node beta); add devices or "
            "lower --stripes");
  ASSERT_TRUE(
      pool.space(1).Take({DeviceUnit(kSmallPerExtent), uint64_t{40} * kSmallPerExtent}).ok());
  EXPECT_EQ(message(pool, Shape(50, 1, 2), "ssd", absl::StatusCode::kResourceExhausted),
            "no room for 200M as 2 copies on different devices of class ssd; free: d1 400M on node "
            "alpha, d2 40M on node beta; add devices, delete volumes, or make it at most 40M");
  EXPECT_EQ(message(pool, Shape(51, 1, 2), "", kNever),
            "no room for 204M as 2 copies on different devices; free: d1 400M on node alpha, d2 "
            "40M on node beta (too small even when empty); add devices, or make it at most 40M");
  EXPECT_THAT(message(pool, Geometry::Make(kMaxVolumeBytes, 64, 4096, 4).value(), "", kNever),
              HasSubstr("add devices"));
}

TEST(Place, TakesMillisecondsForA64TebibyteVolume) {
  for (uint32_t legs : {1u, 2u}) {
    Pool pool;
    for (int d = 0; d < 11; ++d) {
      pool.Add(absl::StrCat("d", d), absl::StrCat("n", d % 3), 13 * kTiB / kExtentBytes + d);
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto placement =
        Place({Geometry::Make(64 * kTiB, 1, 0, legs).value(), ""}, pool.devices());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_LT(took.count(), 0.2);
    EXPECT_LE(placement->runs.size(), 12u * legs);
    std::printf("%u legs: %zu runs in %.3f ms\n", legs, placement->runs.size(), took.count() * 1e3);
  }
}

TEST(Place, YieldsFewRunsForWideVolumesOnManyDevices) {
  std::mt19937_64 random(TestSeed());
  for (const auto& [columns, legs] : {std::pair{16u, 2u}, {8u, 4u}, {3u, 3u}, {64u, 4u}}) {
    Pool pool;
    for (int d = 0; d < 100; ++d) {
      pool.Add(absl::StrCat("d", d), absl::StrCat("n", d % 7), 10000 + random() % 300000);
    }
    const uint64_t extents = 10000000 / (columns * legs);
    const auto begin = std::chrono::steady_clock::now();
    const auto placement = Place({Shape(extents, columns, legs), ""}, pool.devices());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(placement.ok()) << placement.status();
    std::printf("%ux%u: %zu runs in %.3f ms\n", columns, legs, placement->runs.size(),
                took.count() * 1e3);
    EXPECT_LT(took.count(), 2.0);
  }
}

}  // namespace
}  // namespace braid
