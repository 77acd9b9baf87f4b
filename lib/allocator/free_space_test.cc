#include "lib/allocator/free_space.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

constexpr uint64_t kOffset = 2 * kExtentBytes;
constexpr uint64_t kFirst = kOffset / kSmallExtentBytes;

// The plainest truth: one flag for each unit.
class Model {
 public:
  explicit Model(uint64_t extents) : free_(extents * kSmallPerExtent, true) {}

  bool Inside(uint64_t first, uint64_t count) const {
    return count > 0 && first >= kFirst && count <= free_.size() &&
           first - kFirst <= free_.size() - count;
  }
  bool All(uint64_t first, uint64_t count, bool is_free) const {
    if (!Inside(first, count)) return false;
    for (uint64_t i = 0; i < count; ++i) {
      if (free_[first - kFirst + i] != is_free) return false;
    }
    return true;
  }
  void Set(uint64_t first, uint64_t count, bool is_free) {
    for (uint64_t i = 0; i < count; ++i) free_[first - kFirst + i] = is_free;
  }
  uint64_t FreeUnits() const {
    return static_cast<uint64_t>(std::count(free_.begin(), free_.end(), true));
  }
  // Lengths of the runs of whole free large extents; a unit that is not free ends one.
  std::vector<uint64_t> LargeRuns() const {
    std::vector<uint64_t> runs;
    uint64_t run = 0;
    for (uint64_t extent = 0; extent < free_.size() / kSmallPerExtent; ++extent) {
      if (All(kFirst + extent * kSmallPerExtent, kSmallPerExtent, true)) {
        ++run;
      } else {
        if (run > 0) runs.push_back(run);
        run = 0;
      }
    }
    if (run > 0) runs.push_back(run);
    return runs;
  }
  bool AnyBroken() const {
    return FreeUnits() % kSmallPerExtent != 0 ||
           SumOf(LargeRuns()) * kSmallPerExtent != FreeUnits();
  }
  static uint64_t SumOf(const std::vector<uint64_t>& runs) {
    uint64_t sum = 0;
    for (uint64_t run : runs) sum += run;
    return sum;
  }

 private:
  std::vector<bool> free_;
};

void ExpectSame(const FreeSpace& space, const Model& model) {
  const std::vector<uint64_t> runs = model.LargeRuns();
  ASSERT_EQ(space.free_units(), model.FreeUnits());
  ASSERT_EQ(space.free_large_extents(), Model::SumOf(runs));
  ASSERT_EQ(space.longest_large_run(),
            runs.empty() ? 0 : *std::max_element(runs.begin(), runs.end()));
  uint64_t end = 0, sum = 0;
  for (const UnitRun& run : space.FreeRuns()) {
    ASSERT_GT(run.first.value(), end);
    ASSERT_TRUE(model.All(run.first.value(), run.count, true));
    end = run.first.value() + run.count;
    sum += run.count;
  }
  ASSERT_EQ(sum, model.FreeUnits());
}

TEST(FreeSpace, AgreesWithABitmapUnderRandomCalls) {
  std::mt19937_64 random(TestSeed());
  const auto below = [&](uint64_t limit) { return random() % limit; };
  for (int history = 0; history < 60; ++history) {
    const uint64_t extents = 1 + below(24);
    const uint64_t units = extents * kSmallPerExtent;
    FreeSpace space(kOffset, extents * kExtentBytes);
    Model model(extents);
    for (int step = 0; step < 300; ++step) {
      const uint64_t first = kFirst - 3 + below(units + 6);
      // Aligned half the time, so that whole extents come and go too.
      const bool aligned = below(2) == 0;
      const UnitRun run{DeviceUnit(aligned ? first / kSmallPerExtent * kSmallPerExtent : first),
                        aligned ? kSmallPerExtent * (1 + below(3)) : below(150)};
      switch (below(5)) {
        case 0: {
          const uint64_t wanted = 1 + below(6);
          const std::vector<uint64_t> runs = model.LargeRuns();
          const auto taken = space.TakeLarge(wanted);
          ASSERT_EQ(taken.has_value(), !runs.empty());
          if (!taken) break;
          ASSERT_EQ(taken->first.value() % kSmallPerExtent, 0u);
          ASSERT_EQ(
              taken->count,
              kSmallPerExtent * std::min(wanted, *std::max_element(runs.begin(), runs.end())));
          ASSERT_TRUE(model.All(taken->first.value(), taken->count, true));
          model.Set(taken->first.value(), taken->count, false);
          // From the shortest run that fits: no run that was shorter and fitted is gone.
          std::vector<uint64_t> fitting;
          for (uint64_t r : runs) {
            if (r >= wanted) fitting.push_back(r);
          }
          if (!fitting.empty()) {
            const uint64_t shortest = *std::min_element(fitting.begin(), fitting.end());
            const std::vector<uint64_t> after = model.LargeRuns();
            ASSERT_EQ(std::count(after.begin(), after.end(), shortest),
                      std::count(runs.begin(), runs.end(), shortest) - 1);
          }
          break;
        }
        case 1: {
          const bool broken = model.AnyBroken();
          const uint64_t large = space.free_large_extents();
          const uint64_t wanted = 1 + below(below(2) == 0 ? 1 : 100);
          const auto taken = space.TakeSmall(wanted);
          ASSERT_EQ(taken.has_value(), model.FreeUnits() > 0);
          if (!taken) break;
          const uint64_t begin = taken->first.value(), end = begin + taken->count;
          ASSERT_TRUE(taken->count > 0 && taken->count <= wanted);
          ASSERT_TRUE(model.All(begin, taken->count, true));
          // Fewer than wanted only where the large extent or the free run ends.
          ASSERT_EQ(begin / kSmallPerExtent, (end - 1) / kSmallPerExtent);
          ASSERT_TRUE(taken->count == wanted || end % kSmallPerExtent == 0 ||
                      !model.All(end, 1, true));
          ASSERT_EQ(space.free_large_extents(), broken ? large : large - 1);
          model.Set(begin, taken->count, false);
          break;
        }
        case 2:
        case 3: {
          const bool possible = model.All(run.first.value(), run.count, true);
          const absl::Status status = space.Take(run);
          ASSERT_EQ(status.ok(), possible) << status;
          ASSERT_TRUE(possible || absl::IsDataLoss(status)) << status;
          if (possible) model.Set(run.first.value(), run.count, false);
          break;
        }
        default: {
          const bool possible = model.All(run.first.value(), run.count, false);
          const absl::Status status = space.Give(run);
          ASSERT_EQ(status.ok(), possible) << status;
          ASSERT_TRUE(possible || absl::IsDataLoss(status)) << status;
          if (possible) model.Set(run.first.value(), run.count, true);
        }
      }
      ASSERT_NO_FATAL_FAILURE(ExpectSame(space, model))
          << "history " << history << " step " << step;
    }
  }
}

TEST(FreeSpace, RefusesRunsThatWrapAround) {
  FreeSpace space(kOffset, 4 * kExtentBytes);
  for (const UnitRun run : {UnitRun{DeviceUnit(kFirst), UINT64_MAX}, UnitRun{DeviceUnit(kFirst), 0},
                            UnitRun{DeviceUnit(UINT64_MAX), 2}, UnitRun{DeviceUnit(0), 1},
                            UnitRun{DeviceUnit(kFirst + 1), UINT64_MAX - kFirst}}) {
    EXPECT_TRUE(absl::IsDataLoss(space.Take(run)));
    EXPECT_TRUE(absl::IsDataLoss(space.Give(run)));
  }
  EXPECT_EQ(space.free_large_extents(), 4u);
}

TEST(FreeSpace, OfNoExtentsGivesNothing) {
  FreeSpace space(kOffset, 0);
  EXPECT_EQ(space.TakeLarge(1), std::nullopt);
  EXPECT_EQ(space.TakeSmall(), std::nullopt);
  EXPECT_EQ(space.longest_large_run(), 0u);
}

}  // namespace
}  // namespace braid
