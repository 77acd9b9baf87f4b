#include "lib/allocator/grants.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/mapping/geometry.h"

namespace braid {
namespace {

constexpr uint64_t kFirst = kSmallPerExtent;  // data begins at 4 MiB

class Pool {
 public:
  FreeSpace& Add(absl::string_view node, uint64_t extents) {
    spaces_.push_back(std::make_unique<FreeSpace>(kExtentBytes, extents * kExtentBytes));
    devices_.push_back({Uuid::Random(), absl::StrCat("d", devices_.size()), std::string(node),
                        "ssd", spaces_.back().get()});
    return *spaces_.back();
  }
  // A device with so many free whole extents, and so many free units in others: the first
  // ones, or scattered.
  void AddUsed(absl::string_view node, uint64_t extents, uint64_t units, bool scattered) {
    FreeSpace& space = Add(node, extents + units + 1);
    EXPECT_TRUE(space.Take({DeviceUnit(kFirst), space.capacity_units()}).ok());
    if (extents > 0) Free(space, 0, extents * kSmallPerExtent);
    for (uint64_t i = 0; i < units; ++i) {
      Free(space, extents * kSmallPerExtent + kSmallPerExtent / 2 + (scattered ? i * 64 : i), 1);
    }
  }
  static void Free(FreeSpace& space, uint64_t from, uint64_t units) {
    EXPECT_TRUE(space.Give({DeviceUnit(kFirst + from), units}).ok());
  }
  const std::vector<PlacementDevice>& devices() const { return devices_; }
  size_t Index(const Uuid& id) const {
    return static_cast<size_t>(
        std::find_if(devices_.begin(), devices_.end(), [&](const auto& d) { return d.id == id; }) -
        devices_.begin());
  }
  // Nothing when there is nothing.
  std::vector<PlacedGrant> Choose(const GrantRequest& request) const {
    auto grants = ChooseGrants(request, devices_);
    EXPECT_TRUE(grants.ok() || absl::IsResourceExhausted(grants.status())) << grants.status();
    EXPECT_EQ(grants.status().message().find('\n'), absl::string_view::npos);
    return grants.ok() ? *grants : std::vector<PlacedGrant>();
  }

  // Of each device, every free unit.
  std::vector<std::set<uint64_t>> FreeUnits() const {
    std::vector<std::set<uint64_t>> all;
    for (const auto& space : spaces_) {
      FreeSpace copy = *space;
      std::set<uint64_t>& units = all.emplace_back();
      while (auto run = copy.TakeSmall(kSmallPerExtent)) {
        for (uint64_t i = 0; i < run->count; ++i) units.insert(run->first.value() + i);
      }
    }
    return all;
  }

 private:
  std::vector<PlacementDevice> devices_;
  std::vector<std::unique_ptr<FreeSpace>> spaces_;
};

uint64_t Count(const std::vector<PlacedGrant>& grants) {
  uint64_t units = 0;
  for (const PlacedGrant& grant : grants) units += grant.count;
  return units;
}

// Legs on different devices; what left the spaces is what was chosen, no unit twice. The
// fewest nodes any grant stands on.
size_t CheckGrants(const Pool& pool, const std::vector<std::set<uint64_t>>& before, uint32_t legs,
                   const std::vector<PlacedGrant>& grants) {
  std::vector<std::set<uint64_t>> free = before;
  size_t fewest_nodes = legs;
  for (const PlacedGrant& grant : grants) {
    EXPECT_EQ(grant.legs.size(), legs);
    EXPECT_GT(grant.count, 0u);
    std::set<size_t> devices;
    std::set<std::string> nodes;
    for (const auto& [id, first] : grant.legs) {
      const size_t device = pool.Index(id);
      devices.insert(device);
      nodes.insert(pool.devices()[device].node);
      for (uint64_t i = 0; i < grant.count; ++i) {
        EXPECT_EQ(free[device].erase(first.value() + i), 1u) << "not free, or twice";
      }
    }
    EXPECT_EQ(devices.size(), legs) << "two legs on one device";
    fewest_nodes = std::min(fewest_nodes, nodes.size());
  }
  EXPECT_EQ(pool.FreeUnits(), free);
  return fewest_nodes;
}

// By trying everything: whether `pieces` fit, each with its legs on different devices and on
// `nodes` nodes at least. Shares nothing with the code it checks.
class Exhaustive {
 public:
  Exhaustive(uint32_t legs, size_t nodes, std::vector<std::string> node_of)
      : legs_(legs), nodes_(nodes), node_of_(std::move(node_of)) {}

  bool Fits(uint64_t pieces, const std::vector<uint64_t>& free) {
    if (pieces == 0) return true;
    const auto [known, is_new] = known_.try_emplace({pieces, free}, false);
    if (!is_new) return known->second;
    for (uint32_t set = 0; set < (1u << free.size()); ++set) {
      if (static_cast<uint32_t>(__builtin_popcount(set)) != legs_) continue;
      std::vector<uint64_t> rest = free;
      std::set<std::string> nodes;
      bool possible = true;
      for (size_t d = 0; d < free.size(); ++d) {
        if ((set >> d & 1) == 0) continue;
        possible = possible && rest[d] > 0;
        --rest[d];
        nodes.insert(node_of_[d]);
      }
      if (possible && nodes.size() >= nodes_ && Fits(pieces - 1, rest)) {
        return known_[{pieces, free}] = true;
      }
    }
    return false;
  }

 private:
  const uint32_t legs_;
  const size_t nodes_;
  const std::vector<std::string> node_of_;
  std::map<std::pair<uint64_t, std::vector<uint64_t>>, bool> known_;
};

struct Picture {
  Pool pool;
  std::vector<std::string> nodes;
  std::vector<uint64_t> units;    // free, of each device
  std::vector<uint64_t> extents;  // whole
  std::string text;
};

Picture RandomPicture(std::mt19937_64& random, bool only_units) {
  const auto below = [&](uint64_t limit) { return random() % limit; };
  Picture p;
  const uint64_t node_limit = 1 + below(4);
  for (uint64_t d = 1 + below(5); d > 0; --d) {
    p.nodes.push_back(absl::StrCat("n", below(node_limit)));
    p.extents.push_back(only_units ? 0 : below(4));
    const uint64_t singles = below(5);
    p.units.push_back(singles + p.extents.back() * kSmallPerExtent);
    p.pool.AddUsed(p.nodes.back(), p.extents.back(), singles, below(2) == 0);
    absl::StrAppend(&p.text, p.extents.back(), "x64+", singles, "@", p.nodes.back(), " ");
  }
  return p;
}

TEST(ChooseGrants, FindsRowsWhereOneCanBeMadeElseUnitsOnAsManyNodesAsCanBe) {
  std::mt19937_64 random(TestSeed());
  int rows = 0, units = 0, none = 0;
  for (int i = 0; i < 4000; ++i) {
    Picture p = RandomPicture(random, random() % 3 == 0);
    const uint32_t legs = 1 + static_cast<uint32_t>(random() % 4);
    const GrantRequest request{legs, 1 + static_cast<uint32_t>(random() % 3), 1 + random() % 400};
    const auto before = p.pool.FreeUnits();
    const std::vector<PlacedGrant> grants = p.pool.Choose(request);
    SCOPED_TRACE(absl::StrCat(p.text, "legs ", legs, " units ", request.units));
    const size_t nodes = CheckGrants(p.pool, before, legs, grants);
    ASSERT_LE(Count(grants), request.units);
    const auto most_nodes = [&](const std::vector<uint64_t>& free) {
      size_t most = 0;
      for (size_t n = 1; n <= legs; ++n) {
        if (Exhaustive(legs, n, p.nodes).Fits(1, free)) most = n;
      }
      return most;
    };
    if (request.units >= kSmallPerExtent && most_nodes(p.extents) > 0) {
      ++rows;
      for (const PlacedGrant& grant : grants) {
        ASSERT_EQ(grant.count % kSmallPerExtent, 0u);
        for (const auto& leg : grant.legs) ASSERT_EQ(leg.second.value() % kSmallPerExtent, 0u);
      }
      ASSERT_EQ(nodes, most_nodes(p.extents));
      // With one column, as many as fit on so many nodes.
      if (request.columns == 1) {
        Exhaustive exhaustive(legs, nodes, p.nodes);
        const uint64_t got = Count(grants) / kSmallPerExtent;
        ASSERT_TRUE(got == request.units / kSmallPerExtent || !exhaustive.Fits(got + 1, p.extents));
      }
    } else if (most_nodes(p.units) > 0) {
      ++units;
      ASSERT_FALSE(grants.empty());
      ASSERT_EQ(nodes, most_nodes(p.units));
    } else {
      ++none;
      ASSERT_TRUE(grants.empty());
    }
  }
  EXPECT_GT(rows, 200);
  EXPECT_GT(units, 200);
  EXPECT_GT(none, 200);
}

TEST(ChooseGrants, FindsAllExactlyWhenTryingEverythingDoes) {
  std::mt19937_64 random(TestSeed());
  int found = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    // Units alone: small enough to try everything. With rows: by the sum of the header.
    const bool only_units = random() % 2 == 0;
    Picture p = RandomPicture(random, only_units);
    const uint32_t legs = 1 + static_cast<uint32_t>(random() % 4);
    const uint64_t units = 1 + random() % (only_units ? 8 : 500);
    uint64_t sum = 0;
    for (uint64_t free : p.units) sum += std::min(free, units);
    const bool fits = sum >= legs * units;
    SCOPED_TRACE(absl::StrCat(p.text, "legs ", legs, " units ", units));
    if (only_units) {
      ASSERT_EQ(Exhaustive(legs, 1, p.nodes).Fits(units, p.units), fits);
    }
    const auto before = p.pool.FreeUnits();
    const auto grants = ChooseGrants({.legs = legs,
                                      .columns = 1 + static_cast<uint32_t>(random() % 3),
                                      .units = units,
                                      .all = true},
                                     p.pool.devices());
    ASSERT_EQ(grants.ok(), fits);
    if (grants.ok()) {
      ++found;
      ASSERT_EQ(Count(*grants), units);
      CheckGrants(p.pool, before, legs, *grants);
    } else {
      ++refused;
      ASSERT_EQ(p.pool.FreeUnits(), before);
    }
  }
  EXPECT_GT(found, 200);
  EXPECT_GT(refused, 200);
}

TEST(ChooseGrants, TakesALongRunOfTheRoomiestDevice) {
  Pool pool;
  pool.Add("n", 10);
  pool.Add("n", 30);
  EXPECT_EQ(pool.Choose({1, 1, uint64_t{20} * kSmallPerExtent}),
            (std::vector<PlacedGrant>{
                {uint64_t{20} * kSmallPerExtent, {{pool.devices()[1].id, DeviceUnit(kFirst)}}}}));
}

TEST(ChooseGrants, DealsAStripedVolumesRowsToDifferentDevices) {
  Pool pool;
  for (int d = 0; d < 4; ++d) pool.Add("n", 100);
  std::map<size_t, uint64_t> units;
  for (const auto& grant : pool.Choose({1, 4, uint64_t{64} * kSmallPerExtent})) {
    units[pool.Index(grant.legs[0].first)] += grant.count;
  }
  EXPECT_EQ(units.size(), 4u);
  for (const auto& [device, count] : units) EXPECT_EQ(count, 16 * kSmallPerExtent);
}

TEST(ChooseGrants, GivesFewerRowsOnTwoNodesRatherThanAllOnOne) {
  Pool pool;
  pool.Add("n0", 100);
  pool.Add("n0", 100);
  pool.Add("n1", 3);
  EXPECT_EQ(Count(pool.Choose({2, 1, uint64_t{10} * kSmallPerExtent})), 3 * kSmallPerExtent);
  // The second node is full now.
  EXPECT_EQ(Count(pool.Choose({2, 1, uint64_t{10} * kSmallPerExtent})), 10 * kSmallPerExtent);
  // All at once is another question.
  pool.Add("n2", 3);
  const auto all = ChooseGrants({2, 1, uint64_t{10} * kSmallPerExtent, "", true}, pool.devices());
  ASSERT_TRUE(all.ok()) << all.status();
}

TEST(ChooseGrants, SingleUnitsOfAFragmentedPoolAreFewAtATimeAndJoined) {
  Pool pool;
  FreeSpace& space = pool.Add("n", 2000);
  ASSERT_TRUE(space.Take({DeviceUnit(kFirst), space.capacity_units()}).ok());
  // Half of each extent.
  for (uint64_t e = 0; e < 2000; ++e) Pool::Free(space, e * 64, 32);
  const auto grants = pool.Choose({1, 1, 1000000});
  EXPECT_EQ(Count(grants), kMaxSmallGrantUnits);
  EXPECT_EQ(grants.size(), kMaxSmallGrantUnits / 32);
}

TEST(ChooseGrants, OfHostileNumbersTakesNoMoreThanThereIs) {
  Pool pool;
  pool.Add("n", 10);
  pool.Add("n", 10);
  EXPECT_TRUE(pool.Choose({2, 64, UINT64_MAX, "", true}).empty());
  EXPECT_EQ(Count(pool.Choose({2, 64, UINT64_MAX})), 10 * kSmallPerExtent);
  EXPECT_FALSE(ChooseGrants({1, 1, UINT64_MAX}, {}).ok());
  EXPECT_TRUE(ChooseGrants({1, 1, 0}, pool.devices())->empty());
}

TEST(ChooseGrants, RefusalsSayWhatThereIs) {
  Pool pool;
  pool.Add("alpha", 10);
  EXPECT_EQ(ChooseGrants({2, 1, 64}, pool.devices()).status(),
            absl::ResourceExhaustedError("no space on each of 2 different devices; free: d0 40M on "
                                         "node alpha; add devices or delete volumes"));
  EXPECT_EQ(ChooseGrants({1, 1, 64, "tape"}, pool.devices()).status(),
            absl::ResourceExhaustedError(
                "no space of class tape; free: nothing; add devices or delete volumes"));
  EXPECT_EQ(
      ChooseGrants({1, 1, uint64_t{11} * kSmallPerExtent, "", true}, pool.devices()).status(),
      absl::ResourceExhaustedError(
          "no space for 44M; free: d0 40M on node alpha; add devices, delete volumes or reserve "
          "less"));
}

TEST(ChooseGrants, UnitsGivenBackOneByOneAreWholeExtentsAgain) {
  std::mt19937_64 random(TestSeed());
  Pool pool;
  FreeSpace& space = pool.Add("n", 16);
  const auto grants = pool.Choose({1, 1, uint64_t{16} * kSmallPerExtent});
  ASSERT_EQ(space.free_units(), 0u);
  std::vector<uint64_t> units;
  for (const auto& grant : grants) {
    for (uint64_t i = 0; i < grant.count; ++i) units.push_back(grant.legs[0].second.value() + i);
  }
  std::shuffle(units.begin(), units.end(), random);
  for (uint64_t unit : units) ASSERT_TRUE(space.Give({DeviceUnit(unit), 1}).ok());
  EXPECT_EQ(space.longest_large_run(), 16u);
}

}  // namespace
}  // namespace braid
