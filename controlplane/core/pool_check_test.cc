#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/thin_holder_for_test.h"
#include "lib/format/codec.h"
#include "lib/metadata/keys.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

// A site with a thick mirror, and a thin one with space bound, granted and set aside.
class PoolCheckTest : public testing::Test {
 protected:
  PoolCheckTest() : medium_(std::make_shared<MemoryMedium>()) {
    site_ = *SiteForTest::Open(medium_, &host_);
    for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
      host_.MakeDevice(path, 100 * kMiB);
      EXPECT_TRUE(site_->AddDevice(path).ok());
    }
    EXPECT_TRUE(site_->Create({.name = "thick", .size_bytes = 20 * kMiB, .copies = 2}).ok());
    EXPECT_TRUE(site_
                    ->Create({.name = "thin",
                              .size_bytes = kTiB,
                              .copies = 2,
                              .thin = true,
                              .reserve_bytes = 8 * kMiB})
                    .ok());
    holder_ = std::make_unique<ThinHolder>(&host_, *site_, "thin");
    EXPECT_TRUE(holder_->Open(*site_).ok());
    EXPECT_TRUE(holder_->Take(*site_, 192).ok());
    EXPECT_GT(holder_->Bind(0, 1000, 7), 0u);
    EXPECT_GT(holder_->Bind(0, 5, 20), 0u);
    EXPECT_TRUE(holder_->Commit(*site_).ok());
  }
  VolumePtr Volume(const std::string& name) { return site_->volumes->Get(name)->volume; }
  std::vector<MapRun> Runs(const std::string& name) { return *RunsOf(*Volume(name)); }
  std::vector<GrantRecord> Grants() { return Volume("thin")->thin->Grants(); }

  std::vector<std::string> Findings() {
    const absl::StatusOr<PoolCheck> check = CheckPools(*site_->state);
    EXPECT_TRUE(check.ok()) << check.status();
    return check.ok() ? check->findings : std::vector<std::string>();
  }
  // What is found after the store was changed behind the site's back.
  std::string FoundAfter(const std::function<void(MetadataBatch&)>& change) {
    MetadataBatch batch;
    change(batch);
    EXPECT_TRUE(site_->store->Commit(batch).ok());
    const std::vector<std::string> findings = Findings();
    EXPECT_FALSE(findings.empty());
    for (const std::string& finding : findings) EXPECT_EQ(finding.find('\n'), std::string::npos);
    return absl::StrJoin(findings, "\n");
  }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
  std::unique_ptr<ThinHolder> holder_;
};

TEST_F(PoolCheckTest, FindsNothingWhereAllIsWellAndSaysWhatItWalked) {
  const absl::StatusOr<PoolCheck> check = CheckPools(*site_->state);
  ASSERT_TRUE(check.ok()) << check.status();
  EXPECT_EQ(absl::StrJoin(check->findings, "\n"), "");
  EXPECT_EQ(check->devices, 3u);
  EXPECT_EQ(check->volumes, 2u);
  EXPECT_EQ(check->runs, Runs("thick").size() + Runs("thin").size());
  EXPECT_EQ(check->grants, Grants().size());
  EXPECT_GE(check->runs, 6u);
  EXPECT_GE(check->grants, 2u);
}

TEST_F(PoolCheckTest, FindsNothingWhileSpaceIsOnItsWay) {
  TakenSpace taken;
  {
    Change change(*site_->state);
    std::vector<Uuid> devices;
    const auto usable = [](const DeviceRecord&) { return true; };
    ASSERT_TRUE(change.TakeGrants({.units = 100}, devices, usable).ok());
    taken = change.HoldTaken();
  }
  EXPECT_GT(site_->state->Devices()[0].taken_bytes + site_->state->Devices()[1].taken_bytes +
                site_->state->Devices()[2].taken_bytes,
            0u);
  EXPECT_EQ(absl::StrJoin(Findings(), "\n"), "");
}

TEST_F(PoolCheckTest, FindsTwoVolumesOnOneUnitAndNamesBoth) {
  const std::string found = FoundAfter([this](MetadataBatch& batch) {
    MapRun run = Runs("thin")[0];
    const MapRun other = Runs("thick")[0];
    const Uuid& device = Volume("thick")->record.devices[other.device.value()];
    const auto& devices = Volume("thin")->record.devices;
    for (size_t i = 0; i < devices.size(); ++i) {
      if (devices[i] == device) run.device = DeviceIndex(static_cast<uint16_t>(i));
    }
    run.unit = other.unit + 3;
    batch.PutRun(Volume("thin")->record.id, run);
  });
  EXPECT_THAT(found, HasSubstr("belong to volume 'thick' and to volume 'thin'"));
  // And what it had is nobody's.
  EXPECT_THAT(found, HasSubstr("are somebody's"));
}

TEST_F(PoolCheckTest, FindsAGrantedUnitThatIsBound) {
  const std::string found = FoundAfter([this](MetadataBatch& batch) {
    const MapRun run = Runs("thin")[0];
    GrantRecord grant;
    grant.grant.count = 1;
    grant.grant.legs = {{run.device, run.unit},
                        {DeviceIndex(run.device.value() == 0 ? 1 : 0), DeviceUnit(1500)}};
    batch.PutGrant(Volume("thin")->record.id, grant);
  });
  EXPECT_THAT(found, ::testing::AnyOf(HasSubstr("volume 'thin' (granted) and to volume 'thin'"),
                                      HasSubstr("volume 'thin' and to volume 'thin' (granted)")));
  EXPECT_THAT(found, HasSubstr("the site counts"));
}

TEST_F(PoolCheckTest, FindsUnitsThatAreOwnedAndFree) {
  const std::string found = FoundAfter([this](MetadataBatch& batch) {
    GrantRecord grant = Grants()[0];
    for (UnitPlace& leg : grant.grant.legs)
      leg.unit = DeviceUnit(100 * kMiB / kSmallExtentBytes - 1);
    grant.grant.count = 1;
    batch.PutGrant(Volume("thin")->record.id, grant);
  });
  EXPECT_THAT(found, HasSubstr("belong to volume 'thin' (granted) and are free"));
}

TEST_F(PoolCheckTest, FindsUnitsThatNobodyHasAndThatAreNotFree) {
  const std::string found = FoundAfter([this](MetadataBatch& batch) {
    batch.DeleteGrant(Volume("thin")->record.id, Grants()[0].grant.legs[0]);
  });
  EXPECT_THAT(found, HasSubstr("being granted, which is"));
  EXPECT_THAT(found, HasSubstr("units granted, the site counts"));
}

TEST_F(PoolCheckTest, FindsRunsAndGrantsOutsideOfADevicesData) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                MapRun run = Runs("thin")[0];
                run.unit = DeviceUnit(3);
                batch.PutRun(Volume("thin")->record.id, run);
              }),
              HasSubstr("outside of its data"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                GrantRecord grant = Grants()[0];
                grant.grant.legs[1].unit = DeviceUnit(uint64_t{1} << 39);
                batch.PutGrant(Volume("thin")->record.id, grant);
              }),
              HasSubstr("volume 'thin' (granted) has units 549755813888"));
}

TEST_F(PoolCheckTest, FindsDevicesThatAreUnknown) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                batch.DeleteDevice(Volume("thick")->record.devices[0]);
              }),
              HasSubstr("volume 'thick' lies on device " +
                        Volume("thick")->record.devices[0].ToString() + ", which is unknown"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                VolumeRecord record = Volume("thin")->record;
                record.devices.push_back(Uuid::Random());
                batch.PutVolume(record);
              }),
              HasSubstr("which is unknown"));
}

TEST_F(PoolCheckTest, FindsRunsThatOverlapInsideAVolume) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                MapRun run = Runs("thin")[0];
                run.first = run.first + 1;
                run.unit = DeviceUnit(1000);
                batch.PutRun(Volume("thin")->record.id, run);
              }),
              HasSubstr("volume 'thin': two runs of column 0, leg 0 overlap from unit 6 on"));
}

TEST_F(PoolCheckTest, FindsUnitsWithoutAllTheirLegs) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                const MapRun run = Runs("thin").back();
                EXPECT_EQ(run.leg, 1u);
                batch.DeleteRun(Volume("thin")->record.id, run.column, run.leg, run.first);
              }),
              HasSubstr("volume 'thin': the map does not hold unit 1000 of column 0, leg 1"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                const MapRun run = Runs("thick")[0];
                batch.DeleteRun(Volume("thick")->record.id, run.column, run.leg, run.first);
              }),
              HasSubstr("volume 'thick': the map does not hold unit 0 of column 0, leg 0"));
}

TEST_F(PoolCheckTest, FindsLegsThatShareADevice) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                MapRun run = Runs("thin").back();
                for (const MapRun& other : Runs("thin")) {
                  if (other.leg == 0 && other.first == run.first) run.device = other.device;
                }
                batch.PutRun(Volume("thin")->record.id, run);
              }),
              HasSubstr("volume 'thin': legs 0 and 1 of unit 1000 of column 0 lie on one device"));
  // No encoder makes such a grant.
  const GrantRecord grant = Grants()[0];
  ByteWriter writer = BeginFrame('g', 1);
  writer.Bool(false);
  writer.U64(1);
  writer.U32(2);
  for (int leg = 0; leg < 2; ++leg) {
    writer.U16(grant.grant.legs[0].device.value());
    writer.U64(grant.grant.legs[0].unit.value() + static_cast<uint64_t>(leg) * 64);
  }
  auto contents = medium_->Contents();
  contents[GrantKey(Volume("thin")->record.id, grant.grant.legs[0])] =
      FinishFrame(std::move(writer));
  medium_->SetContents(contents);
  const auto damaged = OpenMemoryStore(medium_).value();
  EXPECT_TRUE(absl::IsDataLoss(damaged->ForEachGrant(
      Volume("thin")->record.id, [](const GrantRecord&) { return absl::OkStatus(); })));
}

TEST_F(PoolCheckTest, FindsGrantsThatDoNotFitTheirVolume) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                GrantRecord grant = Grants()[0];
                grant.grant.legs.pop_back();
                batch.PutGrant(Volume("thin")->record.id, grant);
              }),
              HasSubstr("volume 'thin' has 2 legs, and a grant of 1"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                batch.PutGrant(Volume("thick")->record.id, Grants()[0]);
              }),
              HasSubstr("volume 'thick' has grants, and is not thin"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                GrantRecord grant = Grants()[0];
                grant.grant.legs[1].device = DeviceIndex(77);
                batch.PutGrant(Volume("thin")->record.id, grant);
              }),
              HasSubstr("volume 'thin' has a grant on none of its devices"));
}

TEST_F(PoolCheckTest, FindsCountersAndRecordsThatAreNotTheSites) {
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                MapRun run = Runs("thin")[0];
                run.stale = true;
                batch.PutRun(Volume("thin")->record.id, run);
              }),
              HasSubstr("volume 'thin': the store has 20 stale units, the site counts 0"));
  EXPECT_THAT(FoundAfter([this](MetadataBatch& batch) {
                VolumeRecord record = Volume("thick")->record;
                record.fault = "another";
                batch.PutVolume(record);
              }),
              HasSubstr("volume 'thick': its record in the store is another than the site's"));
  EXPECT_THAT(
      FoundAfter([this](MetadataBatch& batch) { batch.DeleteVolume(Volume("thick")->record.id); }),
      HasSubstr("volume 'thick' is in use, and not in the store"));
}

TEST_F(PoolCheckTest, FindsAVolumeThatTheSiteDoesNotKnow) {
  const std::string found = FoundAfter([this](MetadataBatch& batch) {
    VolumeRecord record = Volume("thick")->record;
    record.id = Uuid::Random();
    record.name = "twin";
    batch.PutVolume(record);
    batch.ReplaceRuns(record.id, Runs("thick"));
  });
  EXPECT_THAT(found, HasSubstr("volume 'twin' is in the store, and not known to the site"));
  EXPECT_THAT(found, HasSubstr("volume 'twin'"));
  EXPECT_THAT(found, ::testing::AnyOf(HasSubstr("belong to volume 'thick' and to volume 'twin'"),
                                      HasSubstr("belong to volume 'twin' and to volume 'thick'")));
}

TEST_F(PoolCheckTest, ChangesNothingAndLetsOthersChange) {
  const auto before = medium_->Contents();
  (void)Findings();
  EXPECT_EQ(medium_->Contents(), before);
  holder_->Unbind(0, 1000, 3);
  ASSERT_TRUE(holder_->Commit(*site_).ok());
  ASSERT_TRUE(holder_->Close(*site_).ok());
  EXPECT_EQ(absl::StrJoin(Findings(), "\n"), "");
}

}  // namespace
}  // namespace braid
