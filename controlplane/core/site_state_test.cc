// Loading, refusing to load, and power loss at every commit.
#include "controlplane/core/site_state.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "controlplane/core/site_for_test.h"

namespace braid {
namespace {

constexpr uint64_t kDeviceBytes = 20 * kMiB;  // 4 extents

// Devices that hold someone's data where extents will be.
void MakeUsedDevices(FakeHost& host) {
  for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
    LeaveSecrets(host.MakeDevice(path, kDeviceBytes), 0, kDeviceBytes);
  }
}

// A life of a site, step by step; each step may fail once the store has.
absl::Status Live(SiteForTest& site, FakeHost& host) {
  std::vector<std::function<absl::Status()>> steps;
  for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
    steps.emplace_back([&site, path] { return site.AddDevice(path); });
  }
  const auto create = [&](const VolumeSpec& spec) {
    steps.emplace_back([&site, spec] { return site.Create(spec); });
  };
  const auto remove = [&](const char* name) {
    steps.emplace_back([&site, name] { return site.volumes->Delete(name, false).status(); });
  };
  create({.name = "mirror", .size_bytes = 4 * kMiB, .copies = 2});
  create({.name = "stripes", .size_bytes = 10 * kMiB, .stripes = 3});
  steps.emplace_back([&]() -> absl::Status {
    auto volume = site.volumes->Get("mirror");
    if (!volume.ok()) return volume.status();
    const VolumeRecord& record = volume->volume->record;
    auto lock = site.attachments->Prepare(record);
    if (!lock.ok()) return lock.status();
    host.SetLocked(*lock, true);
    auto opened = site.attachments->Open(record.id, {.boot_id = host.BootId()});
    if (opened.ok()) {
      const Epoch epoch = opened->volume->record.attachment.epoch;
      absl::Status status = site.attachments->MarkStale(record.id, epoch, DeviceIndex(1));
      if (status.ok()) status = site.attachments->Close(record.id, epoch);
      host.SetLocked(*lock, false);
      return status;
    }
    host.SetLocked(*lock, false);
    return opened.status();
  });
  remove("mirror");
  create({.name = "second", .size_bytes = 8 * kMiB, .copies = 2});
  remove("stripes");
  create({.name = "whole", .size_bytes = 16 * kMiB});
  remove("second");
  remove("whole");
  steps.emplace_back([&] { return site.inventory->RemoveDevice("c", false).status(); });
  for (const auto& step : steps) {
    if (absl::Status status = step(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// No extent has two owners (Load checks that), none is lost, none of a READY volume shows
// what was there.
void CheckInvariants(SiteForTest& site, FakeHost& host) {
  uint64_t owned = 0;
  for (const VolumePtr& volume : site.state->VolumesAfter("", 100)) {
    owned += volume->geometry.allocated_bytes();
    if (volume->record.state != VolumeState::kReady) continue;
    for (const MapRun& run : *volume->runs) {
      const DevicePtr record = site.state->FindDevice(volume->record.devices[run.device.value()]);
      auto device = host.OpenDevice(record->path, {});
      EXPECT_TRUE(HidesSecrets(**device, run)) << volume->record.name;
    }
  }
  uint64_t allocated = 0;
  for (const DeviceUse& use : site.state->Devices()) {
    allocated += use.capacity_bytes - use.free_bytes;
  }
  EXPECT_EQ(allocated, owned);
}

class CrashAtEveryCommit : public testing::TestWithParam<bool> {};

TEST_P(CrashAtEveryCommit, NoExtentIsSharedLostOrLeaks) {
  bool finished = false;
  for (uint64_t at = 0; !finished; ++at) {
    ASSERT_LT(at, 100u);
    SCOPED_TRACE(absl::StrCat("crash at commit ", at));
    FakeHost host;
    MakeUsedDevices(host);
    auto medium = std::make_shared<MemoryMedium>();
    medium->FailCommit(at, /*survives=*/GetParam());
    auto site = SiteForTest::Open(medium, &host);
    if (site.ok()) {
      absl::Status lived = Live(**site, host);
      finished = lived.ok();
      if (!finished) {
        EXPECT_EQ(lived.code(), absl::StatusCode::kUnavailable) << lived;
        // From now on it only reads, and what it reads holds together.
        EXPECT_FALSE((*site)->state->health().ok());
        EXPECT_EQ((*site)->Create({.name = "late", .size_bytes = kMiB}).code(),
                  absl::StatusCode::kUnavailable);
        CheckInvariants(**site, host);
      }
      site->reset();
    }
    auto again = SiteForTest::Open(medium, &host);
    ASSERT_TRUE(again.ok()) << again.status();
    CheckInvariants(**again, host);
    for (const VolumePtr& volume : (*again)->state->VolumesAfter("", 100)) {
      auto ready = (*again)->volumes->AwaitReady(volume->record.id, [] { return false; });
      ASSERT_TRUE(ready.ok()) << ready.status();
      EXPECT_EQ(ready->volume->record.state, VolumeState::kReady);
    }
    CheckInvariants(**again, host);
    for (const VolumePtr& volume : (*again)->state->VolumesAfter("", 100)) {
      ASSERT_TRUE((*again)->volumes->Delete(volume->record.name, false).ok());
    }
    for (const DeviceUse& use : (*again)->state->Devices()) {
      EXPECT_EQ(use.free_bytes, use.capacity_bytes);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(FailedBatch, CrashAtEveryCommit, testing::Bool(),
                         [](const auto& survives) {
                           return survives.param ? "Survives" : "IsGone";
                         });

class LoadTest : public testing::Test {
 protected:
  LoadTest() : medium_(std::make_shared<MemoryMedium>()) {
    MakeUsedDevices(host_);
    auto site = SiteForTest::Open(medium_, &host_);
    EXPECT_TRUE(site.ok());
    for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
      EXPECT_TRUE((*site)->AddDevice(path).ok());
    }
    EXPECT_TRUE((*site)->Create({.name = "v", .size_bytes = 8 * kMiB, .copies = 2}).ok());
    volume_ = (*site)->volumes->Get("v")->volume;
    device_ = *(*site)->state->Devices()[0].record;
  }
  // Commits what no Braid would, as damage or another program might.
  void Damage(const std::function<void(MetadataBatch&)>& with) {
    auto store = OpenMemoryStore(medium_);
    MetadataBatch batch;
    with(batch);
    ASSERT_TRUE((*store)->Commit(batch).ok());
  }
  absl::Status Load() { return SiteForTest::Open(medium_, &host_).status(); }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  VolumePtr volume_;
  DeviceRecord device_;
};

TEST_F(LoadTest, SiteKeepsItsName) {
  EXPECT_TRUE(Load().ok());
  EXPECT_EQ(SiteForTest::Open(medium_, &host_, "munich").status().code(),
            absl::StatusCode::kFailedPrecondition);
  auto nameless = SiteForTest::Open(medium_, &host_, "");
  ASSERT_TRUE(nameless.ok());
  EXPECT_EQ((*nameless)->state->name(), "berlin");
  EXPECT_EQ(SiteForTest::Open(std::make_shared<MemoryMedium>(), &host_, "").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(LoadTest, ContradictionsAreDataLossWithAName) {
  const auto contents = medium_->Contents();
  const std::pair<const char*, std::function<void(MetadataBatch&)>> cases[] = {
      {"another volume has too",
       [&](MetadataBatch& batch) {
         VolumeRecord twin = volume_->record;
         twin.id = Uuid::Random();
         twin.name = "twin";
         batch.PutVolume(twin);
         batch.ReplaceRuns(twin.id, *volume_->runs);
       }},
      {"two volumes",
       [&](MetadataBatch& batch) {
         VolumeRecord twin = volume_->record;
         twin.id = Uuid::Random();
         batch.PutVolume(twin);
         batch.ReplaceRuns(twin.id, *volume_->runs);
       }},
      {"exactly once", [&](MetadataBatch& batch) { batch.ReplaceRuns(volume_->record.id, {}); }},
      {"is unknown", [&](MetadataBatch& batch) { batch.DeleteDevice(volume_->record.devices[0]); }},
      {"two devices",
       [&](MetadataBatch& batch) {
         DeviceRecord twin = device_;
         twin.id = Uuid::Random();
         batch.PutDevice(twin);
       }},
      {"do not exist",
       [&](MetadataBatch& batch) {
         std::vector<MapRun> runs = *volume_->runs;
         runs[0].unit = DeviceUnit(kDeviceBytes / kSmallExtentBytes);
         batch.ReplaceRuns(volume_->record.id, runs);
       }},
      {"newer than its site",
       [&](MetadataBatch& batch) {
         VolumeRecord record = volume_->record;
         record.revision = Revision(1000);
         batch.PutVolume(record);
       }},
  };
  for (const auto& [says, damage] : cases) {
    medium_->SetContents(contents);
    ASSERT_TRUE(Load().ok());
    Damage(damage);
    absl::Status status = Load();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << says;
    EXPECT_TRUE(absl::StrContains(status.message(), says)) << status;
  }
}

TEST_F(LoadTest, ContradictionsOfThinVolumesAreDataLossToo) {
  const VolumeRecord& thick = volume_->record;
  VolumeRecord thin = thick;
  // Read after the other, so that it is the one to be refused.
  std::array<uint8_t, Uuid::kBytes> last;
  last.fill(0xff);
  thin.id = Uuid(last);
  thin.name = "thin";
  thin.thin = true;
  const uint64_t units = kDeviceBytes / kSmallExtentBytes;
  const auto grant = [](uint64_t unit, uint64_t count) {
    return GrantRecord{
        {count, {{DeviceIndex(0), DeviceUnit(unit)}, {DeviceIndex(1), DeviceUnit(unit)}}}, true};
  };
  const auto run = [](uint32_t leg, uint64_t unit) {
    return MapRun{
        0, leg, ColumnUnit(3), 2, DeviceIndex(static_cast<uint16_t>(leg)), DeviceUnit(unit)};
  };
  const auto contents = medium_->Contents();
  // What is free on both devices comes last on them.
  const std::pair<const char*, std::function<void(MetadataBatch&)>> cases[] = {
      {"", [&](MetadataBatch& batch) { batch.PutGrant(thin.id, grant(units - 8, 8)); }},
      {"another use too",
       [&](MetadataBatch& batch) {
         MapRun first = volume_->runs->front();
         batch.PutGrant(thin.id, grant(first.unit.value() + first.count - 1, 1));
       }},
      {"do not exist", [&](MetadataBatch& batch) { batch.PutGrant(thin.id, grant(units - 4, 8)); }},
      {"another use too",
       [&](MetadataBatch& batch) {
         batch.PutGrant(thin.id, grant(units - 8, 8));
         for (uint32_t leg : {0, 1}) batch.PutRun(thin.id, run(leg, units - 2));
       }},
      {"exactly once", [&](MetadataBatch& batch) { batch.PutRun(thin.id, run(1, units - 2)); }},
      {"not thin", [&](MetadataBatch& batch) { batch.PutGrant(thick.id, grant(units - 8, 8)); }},
  };
  for (const auto& one : cases) {  // a lambda cannot have structured bindings (clang 14)
    const char* const says = one.first;
    const auto& damage = one.second;
    medium_->SetContents(contents);
    Damage([&](MetadataBatch& batch) {
      batch.PutVolume(thin);
      damage(batch);
    });
    absl::Status status = Load();
    if (*says == '\0') {
      EXPECT_TRUE(status.ok()) << status;
      continue;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << says;
    EXPECT_TRUE(absl::StrContains(status.message(), says)) << status;
  }
}

TEST_F(LoadTest, EveryChangeRaisesTheRevision) {
  auto site = SiteForTest::Open(medium_, &host_);
  Revision before = (*site)->state->revision();
  ASSERT_TRUE((*site)->Create({.name = "w", .size_bytes = kMiB}).ok());
  EXPECT_EQ((*site)->state->revision(), before + 2);  // PREPARING, READY
  EXPECT_EQ((*site)->volumes->Get("w")->volume->record.revision, before + 2);
  EXPECT_EQ((*site)->volumes->Get("v")->volume->record.revision, volume_->record.revision);
}

}  // namespace
}  // namespace braid
