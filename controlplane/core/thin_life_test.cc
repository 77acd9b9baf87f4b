// Long lives of sites with thin and thick volumes, with every end that a holder, braidd and the
// machine can come to. What memory shows is what the store holds; no unit has two owners, none
// is lost, and no owner finds what another left.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controlplane/core/thin_holder_for_test.h"
#include "lib/base/test_seed.h"

namespace braid {
namespace {

constexpr uint64_t kUnit = kSmallExtentBytes;
constexpr uint64_t kNever = uint64_t{1} << 40;  // commits

class ThinLifeTest : public testing::Test {
 protected:
  ThinLifeTest() : seed_(TestSeed()), engine_(seed_), medium_(std::make_shared<MemoryMedium>()) {}

  uint64_t Below(uint64_t bound) { return engine_() % bound; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    // Its first commit may fail as any other.
    if (absl::IsUnavailable(site.status())) site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  // A commit may fail: then braidd is started again. Any other error is the test's.
  bool Lived(const absl::Status& status) {
    if (status.ok()) return true;
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_FALSE(site_->state->health().ok()) << status;
    Restart();
    return false;
  }

  // A clean end leaves nothing that is not committed, and may be repeated.
  void End(ThinHolder& holder) {
    if (!Lived(holder.Commit(*site_)) || Lived(holder.Close(*site_))) return;
    EXPECT_TRUE(holder.Close(*site_).ok());
  }

  // Memory shows what another start would read, and all space has one use.
  void CompareWithStore() {
    // Preparations commit when they end.
    for (const VolumePtr& volume : site_->state->VolumesAfter("", 1000)) {
      site_->preparer->Wait(volume->record.id, [] { return false; });
    }
    if (!site_->state->health().ok()) return;
    auto store = OpenMemoryStore(medium_);
    auto other =
        SiteState::Load(store->get(), &host_, {.name = site_->state->name(), .node = "n1"});
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(site_->state->revision(), (*other)->revision());
    const auto volumes = site_->state->VolumesAfter("", 1000);
    const auto stored = (*other)->VolumesAfter("", 1000);
    ASSERT_EQ(volumes.size(), stored.size());
    uint64_t mapped_bytes = 0, granted_bytes = 0;
    for (size_t i = 0; i < volumes.size(); ++i) {
      EXPECT_EQ(volumes[i]->record, stored[i]->record);
      const auto runs = RunsOf(*volumes[i]);
      EXPECT_EQ(*runs, *RunsOf(*stored[i]));
      for (const MapRun& run : *runs) mapped_bytes += run.count * kUnit;
      if (volumes[i]->thin == nullptr) continue;
      EXPECT_EQ(volumes[i]->thin->Grants(), stored[i]->thin->Grants());
      const ThinCounts counts = volumes[i]->thin->counts();
      EXPECT_EQ(counts, stored[i]->thin->counts());
      granted_bytes += counts.granted_units * volumes[i]->record.legs * kUnit;
      EXPECT_GE(counts.mapped_units + counts.granted_units, ReserveUnits(volumes[i]->record));
    }
    const auto devices = site_->state->Devices();
    const auto stored_devices = (*other)->Devices();
    ASSERT_EQ(devices.size(), stored_devices.size());
    uint64_t capacity = 0, free = 0, reserved = 0;
    for (size_t i = 0; i < devices.size(); ++i) {
      EXPECT_EQ(*devices[i].record, *stored_devices[i].record);
      EXPECT_EQ(devices[i].free_bytes, stored_devices[i].free_bytes);
      EXPECT_EQ(devices[i].largest_free_bytes, stored_devices[i].largest_free_bytes);
      EXPECT_EQ(devices[i].reserved_bytes, stored_devices[i].reserved_bytes);
      EXPECT_EQ(devices[i].taken_bytes, 0u);
      EXPECT_EQ(devices[i].volume_count, stored_devices[i].volume_count);
      capacity += devices[i].capacity_bytes;
      free += devices[i].free_bytes;
      reserved += devices[i].reserved_bytes;
    }
    const auto free_runs = site_->state->AllFreeRuns(), stored_runs = (*other)->AllFreeRuns();
    for (size_t i = 0; i < free_runs.size(); ++i) EXPECT_EQ(free_runs[i].runs, stored_runs[i].runs);
    const auto check = CheckPools(*site_->state);
    ASSERT_TRUE(check.ok()) << check.status();
    EXPECT_EQ(check->findings, std::vector<std::string>());
    EXPECT_EQ(reserved, granted_bytes);
    EXPECT_EQ(capacity, free + reserved + mapped_bytes);
  }

  const uint64_t seed_;
  std::mt19937_64 engine_;
  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
};

// Small volumes, so that they fill and every case of the map comes up.
class AnyLife : public ThinLifeTest {
 protected:
  static constexpr uint64_t kVolumeBytes = 12 * kMiB;
  struct Volume {
    std::string name;
    std::unique_ptr<ThinHolder> holder;
  };

  bool Create(Volume& volume) {
    VolumeSpec spec{.name = volume.name, .size_bytes = kVolumeBytes, .thin = true};
    spec.copies = 1 + static_cast<uint32_t>(Below(3));
    spec.stripes = 1 + static_cast<uint32_t>(Below(2));
    if (spec.stripes * spec.copies > 4) spec.stripes = 1;
    if (OneIn(2)) spec.reserve_bytes = Below(20) * kUnit;
    const absl::Status made = site_->Create(spec);
    if (absl::IsResourceExhausted(made)) return false;
    if (!Lived(made) && !site_->volumes->Get(volume.name).ok()) return false;
    volume.holder = std::make_unique<ThinHolder>(&host_, *site_, volume.name);
    return true;
  }
  void MachineRestarts(std::vector<Volume>& volumes) {
    host_.Reboot();
    for (Volume& volume : volumes) {
      if (volume.holder != nullptr) volume.holder->LoseJournal();
    }
    Restart();
  }
  // One step of a holder; the holder has what it says when it was committed.
  absl::Status Step(ThinHolder& holder) {
    SiteForTest& site = *site_;
    const uint64_t units = holder.geometry().units_per_column();
    const auto column = static_cast<uint32_t>(Below(holder.geometry().columns()));
    const uint64_t first = Below(units);
    switch (Below(12)) {
      case 0:
      case 1: {
        const absl::Status taken = holder.Take(site, 1 + Below(150)).status();
        return absl::IsResourceExhausted(taken) ? absl::OkStatus() : taken;
      }
      case 2:
      case 3:
      case 4:
      case 5: {
        const bool move = OneIn(4);
        uint64_t count = 0;
        while (first + count < units && holder.IsMapped(column, first + count) == move) ++count;
        if (count > 0) holder.Bind(column, first, 1 + Below(count), move);
        return absl::OkStatus();
      }
      case 6:
      case 7:
        holder.Unbind(column, first, 1 + Below(units - first));
        return absl::OkStatus();
      case 8:
        if (holder.reservation().empty()) return absl::OkStatus();
        return holder.Return(site, Below(holder.reservation().size()));
      case 9: {
        const auto devices = (*site.state->FindVolume(holder.id()))->record.devices.size();
        // Changes made before are committed before, as the data plane has it.
        absl::Status status = holder.Commit(site, Below(3));
        if (!status.ok() || devices == 0) return status;
        return site.attachments->MarkStale(holder.id(), holder.epoch(),
                                           DeviceIndex(static_cast<uint16_t>(Below(devices))));
      }
      default:
        return holder.Commit(site, Below(5));
    }
  }
};

TEST_F(AnyLife, StoreAndMemoryAgreeAfterEveryStep) {
  Restart();
  for (const char* path : {"/dev/a", "/dev/b", "/dev/c", "/dev/d"}) {
    host_.MakeDevice(path, 20 * kMiB);
    ASSERT_TRUE(site_->AddDevice(path, absl::StrCat("node", Below(3))).ok());
  }
  std::vector<Volume> volumes;
  for (const char* name : {"one", "two", "three"}) volumes.push_back({name, nullptr});
  for (int step = 0; step < 4000 && !HasFailure(); ++step) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    Volume& volume = volumes[Below(volumes.size())];
    if (OneIn(60)) medium_->FailCommit(Below(3), /*survives=*/OneIn(2));
    if (volume.holder == nullptr) {
      Create(volume);
    } else if (OneIn(50)) {
      if (!volume.holder->open() || OneIn(2)) {
        volume.holder->Die();
        // A crash may have deleted it all the same.
        if (Lived(site_->volumes->Delete(volume.name, false).status()) ||
            !site_->volumes->Get(volume.name).ok()) {
          volume.holder.reset();
        }
      }
    } else if (OneIn(60)) {
      MachineRestarts(volumes);
    } else if (OneIn(40)) {
      Restart();
    } else if (OneIn(25)) {
      const std::string thick = absl::StrCat("thick", Below(2));
      if (site_->volumes->Get(thick).ok()) {
        Lived(site_->volumes->Delete(thick, false).status());
      } else {
        const absl::Status made = site_->Create(
            {.name = thick, .size_bytes = 4 * kMiB, .copies = 1 + static_cast<uint32_t>(Below(2))});
        if (!absl::IsResourceExhausted(made)) Lived(made);
      }
    } else if (!volume.holder->open()) {
      if (OneIn(3)) {
        const absl::Status resized =
            site_->volumes->Resize(volume.name, (1 + Below(8)) * 3 * kMiB / 2, OneIn(2), false)
                .status();
        // Its last holder did not end cleanly, or it would lose data.
        if (!absl::IsFailedPrecondition(resized)) Lived(resized);
      }
      Lived(volume.holder->Open(*site_).status());
    } else if (OneIn(30)) {
      volume.holder->Die();
    } else if (OneIn(40)) {
      End(*volume.holder);
    } else {
      Lived(Step(*volume.holder));
    }
    if (site_->state->health().ok() && OneIn(4)) CompareWithStore();
  }
  // What ends, ends with everything free.
  medium_->FailCommit(kNever);
  Restart();
  for (const VolumePtr& volume : site_->state->VolumesAfter("", 100)) {
    for (Volume& mine : volumes) {
      if (mine.holder != nullptr) mine.holder->Die();
    }
    const absl::Status deleted = site_->volumes->Delete(volume->record.name, false).status();
    ASSERT_TRUE(deleted.ok()) << deleted;
  }
  for (const DeviceUse& use : site_->state->Devices()) {
    EXPECT_EQ(use.free_bytes, use.capacity_bytes);
  }
}

// Units that pass from volume to volume.
class LeakTest : public ThinLifeTest {
 protected:
  struct Owner {
    std::string name;
    char mark = 0;
    std::unique_ptr<ThinHolder> holder;
  };
  static bool AllAre(const std::string& bytes, char c) {
    return bytes[0] == c && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
  }
  // Everything just handed out is zero; then it is the owner's.
  void CheckAndFill(Owner& owner, const Grant& grant) {
    owner.holder->ForEachUnit(*site_, grant, [&](BlockDevice& device, uint64_t offset) {
      ASSERT_TRUE(device.Read(offset, absl::MakeSpan(buffer_)).ok());
      ASSERT_TRUE(AllAre(buffer_, 0))
          << "unit " << offset / kUnit << " of " << device.name() << ", handed to " << owner.name;
      // Some are not used, as grants are that a crash or a clean end takes back.
      if (OneIn(10)) return;
      const std::string mark(OneIn(16) ? kUnit : kSectorBytes, owner.mark);
      const uint64_t at = Below((kUnit - mark.size()) / kSectorBytes + 1) * kSectorBytes;
      ASSERT_TRUE(device.Write(offset + at, absl::MakeConstSpan(mark)).ok());
    });
    passed_ += grant.count;
  }
  // What is in the map is the owner's, or zero.
  void CheckMapped(Owner& owner) {
    const VolumePtr volume = *site_->state->FindVolume(owner.holder->id());
    for (const MapRun& run : volume->thin->Runs()) {
      if (!OneIn(8)) continue;
      const Grant part{.count = 1, .legs = {{run.device, run.unit}}};
      owner.holder->ForEachUnit(*site_, part, [&](BlockDevice& device, uint64_t offset) {
        ASSERT_TRUE(device.Read(offset, absl::MakeSpan(buffer_)).ok());
        for (char c : buffer_) ASSERT_TRUE(c == 0 || c == owner.mark) << owner.name;
      });
    }
  }

  std::string buffer_ = std::string(kUnit, 'x');
  uint64_t passed_ = 0;
};

TEST_F(LeakTest, HundredThousandUnitsShowNothingOfTheirFormerOwners) {
  Restart();
  for (const char* path : {"/dev/a", "/dev/b", "/dev/c"}) {
    LeaveSecrets(host_.MakeDevice(path, 68 * kMiB), 0, 68 * kMiB);
    ASSERT_TRUE(site_->AddDevice(path).ok());
  }
  std::vector<Owner> owners;
  owners.reserve(4);
  for (int i = 0; i < 4; ++i) owners.push_back({absl::StrCat("v", i)});
  char next_mark = 1;
  while (passed_ < 100'000 && !HasFatalFailure()) {
    Owner& owner = owners[Below(owners.size())];
    if (OneIn(40)) medium_->FailCommit(Below(2), /*survives=*/OneIn(2));
    if (owner.holder == nullptr) {
      const uint32_t copies = owner.name == "v0" ? 2 : 1;
      const uint64_t reserve = owner.name == "v1" ? 4 * kMiB : 0;
      const absl::Status made = site_->Create({.name = owner.name,
                                               .size_bytes = 64 * kMiB,
                                               .copies = copies,
                                               .thin = true,
                                               .reserve_bytes = reserve});
      if (absl::IsResourceExhausted(made)) continue;
      if (!Lived(made) && !site_->volumes->Get(owner.name).ok()) continue;
      owner.mark = next_mark;
      next_mark = static_cast<char>(next_mark % 100 + 1);
      owner.holder = std::make_unique<ThinHolder>(&host_, *site_, owner.name);
      continue;
    }
    ThinHolder& holder = *owner.holder;
    if (OneIn(100)) {
      host_.Reboot();
      for (Owner& each : owners) {
        if (each.holder != nullptr) each.holder->LoseJournal();
      }
      Restart();
    } else if (OneIn(60)) {
      Restart();
    } else if (OneIn(60)) {
      holder.Die();
      if (Lived(site_->volumes->Delete(owner.name, false).status()) ||
          !site_->volumes->Get(owner.name).ok()) {
        owner.holder.reset();
      }
    } else if (!holder.open()) {
      if (Lived(holder.Open(*site_).status())) CheckMapped(owner);
    } else if (OneIn(30)) {
      holder.Die();
    } else if (OneIn(30)) {
      End(holder);
    } else if (OneIn(2)) {
      const auto taken = holder.Take(*site_, 1 + Below(400));
      if (absl::IsResourceExhausted(taken.status())) {
        holder.Unbind(0, 0, holder.geometry().units_per_column());
        Lived(holder.Commit(*site_));
      } else if (Lived(taken.status())) {
        for (const Grant& grant : taken->grants) CheckAndFill(owner, grant);
      }
    } else {
      for (int i = 0; i < 20; ++i) {
        const uint64_t first = Below(holder.geometry().units_per_column());
        uint64_t count = 0;
        while (first + count < holder.geometry().units_per_column() &&
               !holder.IsMapped(0, first + count)) {
          ++count;
        }
        if (count > 0 && !OneIn(3)) {
          holder.Bind(0, first, count);
        } else if (OneIn(2)) {
          holder.Unbind(0, first, 1 + Below(64) % (holder.geometry().units_per_column() - first));
        }
      }
      Lived(holder.Commit(*site_));
    }
  }
  medium_->FailCommit(kNever);
  Restart();
  CompareWithStore();
}

}  // namespace
}  // namespace braid
