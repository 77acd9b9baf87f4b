// What every MetadataStore does, for the one on RocksDB and the one in memory.
#include "lib/metadata/metadata_store.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/metadata/keys.h"
#include "lib/metadata/memory_store.h"
#include "lib/metadata/sample_records.h"
#include "lib/metadata/test_directory.h"

namespace braid {
namespace {

// Opens the same store again and again.
using Opener = std::function<absl::StatusOr<std::unique_ptr<MetadataStore>>()>;
struct Implementation {
  const char* name;
  std::function<Opener()> make;
};

Opener OverRocks() {
  auto directory = std::make_shared<TestDirectory>();
  return [directory] { return OpenRocksStore(directory->Path("store")); };
}

Opener OverMemory() {
  auto medium = std::make_shared<MemoryMedium>();
  return [medium] { return OpenMemoryStore(medium); };
}

class MetadataStoreTest : public ::testing::TestWithParam<Implementation> {
 protected:
  void SetUp() override {
    opener_ = GetParam().make();
    Reopen();
  }
  void Reopen() {
    store_.reset();
    auto opened = opener_();
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  void Commit(const MetadataBatch& batch) {
    const absl::Status status = store_->Commit(batch);
    ASSERT_TRUE(status.ok()) << status;
  }
  StoreContents Contents() {
    auto contents = ReadContents(*store_);
    EXPECT_TRUE(contents.ok()) << contents.status();
    return contents.ok() ? *contents : StoreContents();
  }

  Opener opener_;
  std::unique_ptr<MetadataStore> store_;
};

TEST_P(MetadataStoreTest, NewOneIsEmptyAndBelongsToNoSite) {
  EXPECT_TRUE(absl::IsNotFound(store_->ReadSite().status()));
  EXPECT_EQ(Contents(), StoreContents());
  Reopen();
  EXPECT_TRUE(absl::IsNotFound(store_->ReadSite().status()));
}

TEST_P(MetadataStoreTest, GivesBackWhatWasCommittedAlsoWhenOpenedAgain) {
  MetadataBatch batch = SampleBatch(17);
  batch.PutDevice(SampleDevice(1));
  batch.PutDevice(SampleDevice(2));
  Commit(batch);
  StoreContents expected = SampleContents(17);
  expected.devices = {SampleDevice(1), SampleDevice(2)};
  EXPECT_EQ(Contents(), expected);
  Reopen();
  EXPECT_EQ(Contents(), expected);
}

TEST_P(MetadataStoreTest, ALaterPutReplacesAndADeleteRemoves) {
  MetadataBatch batch;
  batch.PutDevice(SampleDevice(1));
  batch.PutDevice(SampleDevice(2));
  batch.PutDevice(SampleDevice(3));
  batch.PutDevice(SampleDevice(3, 9));
  Commit(batch);
  MetadataBatch change;
  change.PutDevice(SampleDevice(1, 5));
  change.DeleteDevice(SampleId('d', 2));
  change.DeleteDevice(SampleId('d', 99));  // not there: no error
  Commit(change);
  for (int i = 0; i < 2; ++i, Reopen()) {
    EXPECT_EQ(Contents().devices, (std::vector{SampleDevice(1, 5), SampleDevice(3, 9)}));
  }
}

TEST_P(MetadataStoreTest, ReplaceRunsLeavesNoOldRunAndNoOtherVolumesRun) {
  MetadataBatch batch;
  for (uint64_t volume : {1, 2, 3}) {
    batch.PutVolume(SampleVolume(volume));
    batch.ReplaceRuns(SampleId('v', volume), SampleRuns(30, volume * 1000));
  }
  Commit(batch);
  MetadataBatch change;
  change.ReplaceRuns(SampleId('v', 2), SampleRuns(3, 77));
  Commit(change);
  for (int i = 0; i < 2; ++i, Reopen()) {
    std::map<Uuid, size_t> counts;
    for (const auto& [volume, run] : Contents().runs) ++counts[volume];
    EXPECT_EQ(counts[SampleId('v', 1)], 30u);
    EXPECT_EQ(counts[SampleId('v', 2)], 3u);
    EXPECT_EQ(counts[SampleId('v', 3)], 30u);
  }
}

TEST_P(MetadataStoreTest, SingleRunsAndGrantsComeAndGo) {
  Commit(SampleBatch(30));
  const Uuid volume = SampleId('v', 1);
  StoreContents expected = SampleContents(30);
  ASSERT_EQ(expected.grants.size(), 2u);
  MetadataBatch change;
  MapRun& cut = expected.runs[3].second;
  cut.count += 5;
  change.PutRun(volume, cut);
  const MapRun gone = expected.runs[1].second;
  change.DeleteRun(volume, gone.column, gone.leg, gone.first);
  expected.runs.erase(expected.runs.begin() + 1);
  MapRun added = expected.runs.back().second;
  added.first = added.first + added.count;
  change.PutRun(volume, added);
  expected.runs.emplace_back(volume, added);
  change.DeleteGrant(volume, expected.grants[0].second.grant.legs[0]);
  expected.grants.erase(expected.grants.begin());
  GrantRecord& returned = expected.grants[0].second;
  returned.grant.count = 63;
  returned.handed_out = false;
  change.PutGrant(volume, returned);
  // Not there: no error.
  change.DeleteRun(volume, 1, 0, ColumnUnit(0));
  change.DeleteGrant(volume, {DeviceIndex(9), DeviceUnit(9), false});
  Commit(change);
  for (int i = 0; i < 2; ++i, Reopen()) EXPECT_EQ(Contents(), expected);
}

TEST_P(MetadataStoreTest, AVolumesGrantsAreItsOwn) {
  MetadataBatch batch;
  for (uint64_t number : {1, 2}) {
    batch.PutVolume(SampleVolume(number));
    for (const GrantRecord& grant : SampleGrants(5, number * 1000)) {
      batch.PutGrant(SampleId('v', number), grant);
    }
  }
  Commit(batch);
  MetadataBatch change;
  change.DeleteVolume(SampleId('v', 1));
  Commit(change);
  for (int i = 0; i < 2; ++i, Reopen()) {
    const auto grants = Contents().grants;
    ASSERT_EQ(grants.size(), 5u);
    EXPECT_EQ(grants[0].first, SampleId('v', 2));
  }
}

TEST_P(MetadataStoreTest, DeleteVolumeTakesItsRunsAndGrantsWithItAndANewOneStartsWithout) {
  Commit(SampleBatch(30));
  ASSERT_FALSE(Contents().grants.empty());
  MetadataBatch change;
  change.DeleteVolume(SampleId('v', 1));
  Commit(change);
  EXPECT_TRUE(Contents().volumes.empty());
  MetadataBatch again;
  again.PutVolume(SampleVolume(1));
  Commit(again);
  for (int i = 0; i < 2; ++i, Reopen()) {
    EXPECT_EQ(Contents().volumes, std::vector{SampleVolume(1)});
    EXPECT_TRUE(Contents().runs.empty());
    EXPECT_TRUE(Contents().grants.empty());
  }
}

TEST_P(MetadataStoreTest, WalksRunsByColumnLegAndFirst) {
  std::vector<MapRun> runs;
  for (uint32_t column : {63u, 0u, 7u}) {
    for (uint32_t leg : {3u, 1u, 0u}) {
      for (uint64_t first : {uint64_t{1} << 40, uint64_t{255}, uint64_t{256}, uint64_t{0}}) {
        runs.push_back({column, leg, ColumnUnit(first), 1, DeviceIndex(0), DeviceUnit(64)});
      }
    }
  }
  MetadataBatch batch;
  batch.ReplaceRuns(SampleId('v', 1), runs);
  Commit(batch);
  std::sort(runs.begin(), runs.end(), [](const MapRun& a, const MapRun& b) {
    return std::tuple(a.column, a.leg, a.first) < std::tuple(b.column, b.leg, b.first);
  });
  std::vector<MapRun> walked;
  ASSERT_TRUE(store_
                  ->ForEachRun(SampleId('v', 1),
                               [&](const MapRun& run) {
                                 walked.push_back(run);
                                 return absl::OkStatus();
                               })
                  .ok());
  EXPECT_EQ(walked, runs);
}

TEST_P(MetadataStoreTest, AWalkEndsWithItsCallersError) {
  MetadataBatch batch;
  batch.PutDevice(SampleDevice(1));
  batch.PutDevice(SampleDevice(2));
  Commit(batch);
  int calls = 0;
  const absl::Status status = store_->ForEachDevice([&](const DeviceRecord&) {
    ++calls;
    return absl::AbortedError("enough");
  });
  EXPECT_EQ(status, absl::AbortedError("enough"));
  EXPECT_EQ(calls, 1);
}

TEST_P(MetadataStoreTest, ASnapshotStaysAsItWas) {
  Commit(SampleBatch(30));
  {
    const std::unique_ptr<MetadataReader> snapshot = store_->Snapshot();
    Commit(SampleBatch(31));
    MetadataBatch change;
    change.DeleteVolume(SampleId('v', 1));
    Commit(change);
    EXPECT_EQ(ReadContents(*snapshot).value(), SampleContents(30));
  }
  EXPECT_TRUE(Contents().volumes.empty());
}

TEST_P(MetadataStoreTest, KeepsBatchesWholeWhenManyThreadsCommit) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 1; i <= 12; ++i) {
        EXPECT_TRUE(store_->Commit(SampleBatch(i * 4 + t)).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const StoreContents contents = Contents();
  EXPECT_EQ(contents, SampleContents(contents.site.revision.value()));
}

TEST_P(MetadataStoreTest, AgreesWithAModelUnderRandomBatches) {
  std::mt19937_64 random(TestSeed());
  std::map<Uuid, DeviceRecord> devices;
  std::map<Uuid, VolumeRecord> volumes;
  std::map<Uuid, std::vector<MapRun>> runs;
  std::map<std::tuple<Uuid, uint16_t, uint64_t>, GrantRecord> grants;  // by volume and place
  for (uint64_t step = 1; step <= 100; ++step) {
    MetadataBatch batch;
    for (uint64_t changes = random() % 6; changes > 0; --changes) {
      const uint64_t number = random() % 8;
      const Uuid volume = SampleId('v', number);
      switch (random() % 7) {
        case 0:
          batch.PutDevice(SampleDevice(number, step));
          devices[SampleId('d', number)] = SampleDevice(number, step);
          break;
        case 1:
          batch.DeleteDevice(SampleId('d', number));
          devices.erase(SampleId('d', number));
          break;
        case 2:
          batch.PutVolume(SampleVolume(number, step));
          volumes[volume] = SampleVolume(number, step);
          break;
        case 3:
          batch.DeleteVolume(volume);
          volumes.erase(volume);
          runs.erase(volume);
          std::erase_if(grants, [&](const auto& g) { return std::get<0>(g.first) == volume; });
          break;
        case 4: {
          const GrantRecord grant = SampleGrants(8, random() % 3 * 64)[random() % 8];
          const UnitPlace& place = grant.grant.legs[0];
          batch.PutGrant(volume, grant);
          grants[{volume, place.device.value(), place.unit.value()}] = grant;
          break;
        }
        case 5: {
          if (grants.empty()) break;
          const auto found =
              std::next(grants.begin(), static_cast<int64_t>(random() % grants.size()));
          batch.DeleteGrant(std::get<0>(found->first), found->second.grant.legs[0]);
          grants.erase(found);
          break;
        }
        default: {
          std::vector<MapRun> some = SampleRuns(random() % 20, step * 64);
          batch.ReplaceRuns(volume, some);
          std::stable_sort(some.begin(), some.end(),
                           [](const MapRun& a, const MapRun& b) { return a.leg < b.leg; });
          runs[volume] = some;
        }
      }
    }
    ASSERT_NO_FATAL_FAILURE(Commit(batch));
    if (random() % 20 == 0) {
      ASSERT_NO_FATAL_FAILURE(Reopen());
    }
    if (random() % 5 != 0) continue;
    StoreContents expected;
    for (const auto& [id, record] : devices) expected.devices.push_back(record);
    for (const auto& [id, record] : volumes) {
      expected.volumes.push_back(record);
      for (const MapRun& run : runs[id]) expected.runs.emplace_back(id, run);
    }
    for (const auto& [key, grant] : grants) {
      if (volumes.contains(std::get<0>(key))) expected.grants.emplace_back(std::get<0>(key), grant);
    }
    ASSERT_EQ(Contents(), expected) << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, MetadataStoreTest,
                         ::testing::Values(Implementation{"Rocks", OverRocks},
                                           Implementation{"Memory", OverMemory}),
                         [](const auto& param) { return param.param.name; });

TEST(MemoryStore, BreaksAtTheCommitThatIsToFailUntilOpenedAgain) {
  for (bool survives : {false, true}) {
    auto medium = std::make_shared<MemoryMedium>();
    auto store = OpenMemoryStore(medium).value();
    medium->FailCommit(2, survives);
    EXPECT_TRUE(store->Commit(SampleBatch(1)).ok());
    EXPECT_TRUE(store->Commit(SampleBatch(2)).ok());
    EXPECT_TRUE(absl::IsUnavailable(store->Commit(SampleBatch(3))));
    EXPECT_TRUE(absl::IsFailedPrecondition(store->Commit(SampleBatch(4))));
    EXPECT_EQ(ReadContents(*store).value(), SampleContents(2));
    store = OpenMemoryStore(medium).value();
    EXPECT_EQ(ReadContents(*store).value(), SampleContents(survives ? 3 : 2));
    EXPECT_TRUE(store->Commit(SampleBatch(5)).ok());
    EXPECT_EQ(ReadContents(*store).value(), SampleContents(5));
  }
}

class DamagedStore : public ::testing::Test {
 protected:
  DamagedStore() {
    auto store = OpenMemoryStore(medium_).value();
    EXPECT_TRUE(store->Commit(SampleBatch(12)).ok());
    contents_ = medium_->Contents();
  }
  // What opening and reading it all says after `change`.
  absl::Status After(const std::function<void(std::map<std::string, std::string>&)>& change) {
    auto contents = contents_;
    change(contents);
    medium_->SetContents(contents);
    auto store = OpenMemoryStore(medium_);
    return store.ok() ? ReadContents(**store).status() : store.status();
  }

  std::shared_ptr<MemoryMedium> medium_ = std::make_shared<MemoryMedium>();
  std::map<std::string, std::string> contents_;
};

TEST_F(DamagedStore, OfANewerVersionIsLeftAlone) {
  const std::string newer = EncodeStoreVersion(kStoreVersion + 1);
  const absl::Status status = After([&](auto& c) { c["f"] = newer; });
  EXPECT_TRUE(absl::IsUnimplemented(status));
  EXPECT_NE(status.message().find("; use the newer Braid"), absl::string_view::npos);
  EXPECT_EQ(medium_->Contents()["f"], newer);
}

TEST_F(DamagedStore, OfAnOlderVersionIsLeftAlone) {
  const auto store = [&](auto& c) { c["f"] = EncodeStoreVersion(1); };
  EXPECT_TRUE(absl::IsUnimplemented(After(store)));
}

TEST_F(DamagedStore, WithRecordsButNoVersionIsRefused) {
  EXPECT_TRUE(absl::IsDataLoss(After([](auto& c) { c.erase("f"); })));
}

TEST_F(DamagedStore, WithAnyByteOfAnyValueChangedSaysSo) {
  ASSERT_TRUE(After([](auto&) {}).ok());
  for (const auto& record : contents_) {
    // clang 14 cannot capture structured bindings.
    const std::string& key = record.first;
    for (size_t i = 0; i < record.second.size(); ++i) {
      const absl::Status status =
          After([&](auto& c) { c[key][i] = static_cast<char>(c[key][i] ^ 0x04); });
      ASSERT_TRUE(absl::IsDataLoss(status)) << ShowKey(key) << " byte " << i << ": " << status;
    }
  }
}

TEST_F(DamagedStore, WithARecordUnderAnothersKeySaysSo) {
  const std::string volume = VolumeKey(SampleId('v', 1));
  EXPECT_TRUE(
      absl::IsDataLoss(After([&](auto& c) { c[VolumeKey(SampleId('v', 2))] = c[volume]; })));
  EXPECT_TRUE(absl::IsDataLoss(After([&](auto& c) { c[volume + "x"] = c[volume]; })));
  EXPECT_TRUE(absl::IsDataLoss(After([&](auto& c) { c[volume] = c["s"]; })));
  const std::string grant =
      GrantKey(SampleId('v', 1), SampleContents(12).grants[0].second.grant.legs[0]);
  EXPECT_TRUE(absl::IsDataLoss(After([&](auto& c) {
    c[GrantKey(SampleId('v', 1), {DeviceIndex(0), DeviceUnit(1), false})] = c[grant];
  })));
  EXPECT_TRUE(absl::IsDataLoss(After([&](auto& c) { c[grant + "x"] = c[grant]; })));
  EXPECT_TRUE(absl::IsDataLoss(After([&](auto& c) {
    // A run in a column that no volume has.
    c[RunPrefix(SampleId('v', 1)) + std::string(11, '\xfe')] = EncodeRun(SampleRuns(1, 0)[0]);
  })));
}

}  // namespace
}  // namespace braid
