#include "controlplane/core/resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/thin_holder_for_test.h"
#include "lib/base/test_seed.h"
#include "lib/testing/crash_device.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

TEST(ColumnBytes, AreWhatTheVolumesBytesTakeOfEachColumn) {
  std::mt19937_64 random(TestSeed());
  for (int i = 0; i < 300; ++i) {
    const auto columns = static_cast<uint32_t>(1 + random() % 5);
    const uint64_t stripe = 4096 << (random() % 3);
    const uint64_t size = 512 * (1 + random() % 400);
    const Geometry g = Geometry::Make(size, columns, stripe, 1).value();
    std::vector<uint64_t> ends(columns, 0);
    for (uint64_t offset = 0; offset < size; offset += 512) {
      const ColumnPlace place = g.Locate(offset);
      ends[place.column] = std::max(ends[place.column], place.offset + 512);
    }
    for (uint32_t c = 0; c < columns; ++c) {
      ASSERT_EQ(ColumnBytes(g, c), ends[c]) << size << " in " << columns << " of " << stripe;
    }
  }
  EXPECT_EQ(ColumnBytes(Geometry::Make(kMaxVolumeBytes, 1, 0, 1).value(), 0), kMaxVolumeBytes);
}

TEST(PartOf, IsTheUnitsThatARangeTouches) {
  const MapRun run{.column = 1, .first = ColumnUnit(10), .count = 5, .unit = DeviceUnit(100)};
  const auto part = [&](uint32_t column, uint64_t begin, uint64_t end) {
    const MapRun p = PartOf(run, {column, begin, end});
    return std::vector<uint64_t>{p.first.value(), p.count, p.unit.value()};
  };
  constexpr uint64_t kU = kSmallExtentBytes;
  EXPECT_EQ(part(1, 0, 100 * kU), (std::vector<uint64_t>{10, 5, 100}));
  EXPECT_EQ(part(1, 12 * kU + 512, 13 * kU + 512), (std::vector<uint64_t>{12, 2, 102}));
  EXPECT_EQ(PartOf(run, {1, 15 * kU, 20 * kU}).count, 0u);
  EXPECT_EQ(PartOf(run, {1, 0, 10 * kU}).count, 0u);
  EXPECT_EQ(PartOf(run, {0, 0, 100 * kU}).count, 0u);
}

struct Shape {
  const char* name;
  VolumeSpec spec;
};

// A site whose devices are full of what others left, and one volume, whose content a model
// knows sector by sector.
class ResizeTest : public testing::TestWithParam<Shape> {
 protected:
  static constexpr uint64_t kDeviceBytes = 36 * kMiB;

  ResizeTest() : medium_(std::make_shared<MemoryMedium>()) {
    Restart();
    for (int i = 0; i < 5; ++i) {
      const std::string path = absl::StrCat("/dev/d", i);
      FaultyDevice& device = host_.MakeDevice(path, kDeviceBytes);
      EXPECT_TRUE(site_->AddDevice(path, absl::StrCat("n", i % 3)).ok());
      LeaveSecrets(device, kLabelDataOffset, kDeviceBytes);
      devices_[absl::StrCat("d", i)] = &device;
    }
  }
  void Restart() {
    site_.reset();
    auto site = SiteForTest::Open(medium_, &host_);
    ASSERT_TRUE(site.ok()) << site.status();
    site_ = *std::move(site);
  }
  void Create(VolumeSpec spec, uint64_t size_bytes) {
    spec.name = "v";
    spec.size_bytes = size_bytes;
    const absl::Status status = site_->Create(spec);
    ASSERT_TRUE(status.ok()) << status;
    content_.assign(size_bytes / 512, '\0');
  }
  VolumePtr Volume() { return site_->volumes->Get("v")->volume; }
  absl::StatusOr<VolumeStatus> Resize(uint64_t size_bytes, bool allow = true, bool dry = false) {
    return site_->volumes->Resize("v", size_bytes, allow, dry);
  }

  // Calls fn(device, offset there, volume offset, length) for each piece and leg that has space,
  // in pieces that lie in one unit.
  template <class Fn>
  void ForEachPiece(uint64_t begin, uint64_t end, Fn fn) {
    const VolumePtr volume = Volume();
    const std::shared_ptr<const std::vector<MapRun>> runs = RunsOf(*volume);
    for (uint64_t at = begin; at < end;) {
      const ColumnPlace place = volume->geometry.Locate(at);
      const uint64_t in_unit = place.offset % kSmallExtentBytes;
      const uint64_t length =
          std::min({end - at, volume->geometry.ContiguousBytes(at), kSmallExtentBytes - in_unit});
      const ColumnUnit unit(place.offset / kSmallExtentBytes);
      uint32_t legs = 0;
      for (const MapRun& run : *runs) {
        if (run.column != place.column || unit < run.first || unit >= run.first + run.count)
          continue;
        ++legs;
        const std::string name =
            site_->state->FindDevice(volume->record.devices[run.device.value()])->name;
        fn(*devices_.at(name),
           (run.unit.value() + (unit - run.first)) * kSmallExtentBytes + in_unit, at, length);
      }
      ASSERT_TRUE(legs == volume->geometry.legs() || legs == 0) << "at " << at;
      if (legs == 0) fn(*devices_.begin()->second, UINT64_MAX, at, length);
      at += length;
    }
  }

  void Write(uint64_t begin, uint64_t end, char what) {
    if (Volume()->thin != nullptr) GiveSpace(begin, end);
    ForEachPiece(begin, end,
                 [&](BlockDevice& device, uint64_t offset, uint64_t /*at*/, uint64_t length) {
                   ASSERT_NE(offset, UINT64_MAX);
                   const std::string data(length, what);
                   ASSERT_TRUE(device.Write(offset, absl::MakeConstSpan(data)).ok());
                 });
    std::fill(content_.begin() + static_cast<std::ptrdiff_t>(begin / 512),
              content_.begin() + static_cast<std::ptrdiff_t>(end / 512), what);
  }
  // As a data plane does that is attached for one write.
  void GiveSpace(uint64_t begin, uint64_t end) {
    ThinHolder holder(&host_, *site_, "v");
    ASSERT_TRUE(holder.Open(*site_).ok());
    const Geometry g = Volume()->geometry;
    for (uint64_t at = begin; at < end;) {
      const ColumnPlace place = g.Locate(at);
      const uint64_t unit = place.offset / kSmallExtentBytes;
      if (!holder.IsMapped(place.column, unit)) {
        if (holder.reservation().empty()) {
          ASSERT_TRUE(holder.Take(*site_, 64).ok());
        }
        ASSERT_EQ(holder.Bind(place.column, unit, 1), 1u);
      }
      at += std::min(g.ContiguousBytes(at), kSmallExtentBytes - place.offset % kSmallExtentBytes);
    }
    ASSERT_TRUE(holder.Commit(*site_).ok());
    ASSERT_TRUE(holder.Close(*site_).ok());
  }

  // Every byte of every copy is as the model says, and the records agree.
  void CheckAll() {
    ASSERT_EQ(Volume()->record.size_bytes, content_.size() * 512);
    std::string data;
    ForEachPiece(0, content_.size() * 512,
                 [&](BlockDevice& device, uint64_t offset, uint64_t at, uint64_t length) {
                   data.assign(length, '\0');
                   if (offset != UINT64_MAX) {
                     ASSERT_TRUE(device.Read(offset, absl::MakeSpan(data)).ok());
                   }
                   for (uint64_t i = 0; i < length; i += 512) {
                     const char expected = content_[(at + i) / 512];
                     ASSERT_TRUE(std::all_of(data.begin() + static_cast<std::ptrdiff_t>(i),
                                             data.begin() + static_cast<std::ptrdiff_t>(i + 512),
                                             [&](char c) { return c == expected; }))
                         << "at " << at + i << " of " << content_.size() * 512;
                   }
                 });
    const auto check = CheckPools(*site_->state);
    ASSERT_TRUE(check.ok()) << check.status();
    ASSERT_EQ(absl::StrJoin(check->findings, "\n"), "");
  }

  FakeHost host_;
  std::shared_ptr<MemoryMedium> medium_;
  std::unique_ptr<SiteForTest> site_;
  std::map<std::string, FaultyDevice*> devices_;
  std::vector<char> content_;  // of each sector
};

TEST_P(ResizeTest, KeepsWhatStaysAndShowsZerosWhereItGrows) {
  std::mt19937_64 random(TestSeed());
  const auto below = [&](uint64_t limit) { return random() % limit; };
  // Up to where two striped copies still fit; seldom on a boundary of anything.
  const auto any_size = [&] {
    return below(3) == 0 ? (1 + below(40)) * 64 * kKiB * (1 + below(9))
                         : (1 + below(24 * kMiB / 512)) * 512;
  };
  ASSERT_NO_FATAL_FAILURE(Create(GetParam().spec, any_size()));
  for (int step = 0; step < 40; ++step) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    const uint64_t size = content_.size() * 512;
    switch (below(4)) {
      case 0: {
        const uint64_t to = any_size();
        const auto resized = Resize(to);
        ASSERT_TRUE(resized.ok()) << resized.status();
        content_.resize(to / 512, '\0');
        EXPECT_EQ(resized->volume->record.size_bytes, to);
        break;
      }
      case 1:
        ASSERT_NO_FATAL_FAILURE(Restart());
        break;
      default: {
        // More often near the end.
        const uint64_t begin = below(2) == 0
                                   ? below(size / 512) * 512
                                   : size - 512 * (1 + below(std::min<uint64_t>(size / 512, 500)));
        const uint64_t end = std::min(size, begin + 512 * (1 + below(1000)));
        ASSERT_NO_FATAL_FAILURE(Write(begin, end, static_cast<char>('a' + step % 26)));
      }
    }
    ASSERT_NO_FATAL_FAILURE(CheckAll());
  }
  ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  EXPECT_EQ(site_->FreeBytes(), 5 * (kDeviceBytes - kLabelDataOffset));
}

TEST_P(ResizeTest, RefusesToCutOffSpaceUnlessToldAndADryRunChangesNothing) {
  ASSERT_NO_FATAL_FAILURE(Create(GetParam().spec, 24 * kMiB));
  ASSERT_NO_FATAL_FAILURE(Write(20 * kMiB, 21 * kMiB, 'x'));
  const Revision before = site_->state->revision();
  EXPECT_EQ(Resize(20 * kMiB + 512, /*allow=*/false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Resize(20 * kMiB, false, /*dry=*/true).status().message()),
              HasSubstr("of space behind the new end, which would be lost; allow"));
  const uint64_t free = site_->FreeBytes();
  const uint64_t allocated = site_->volumes->Get("v")->allocated_bytes;
  const auto smaller = Resize(4 * kMiB, true, /*dry=*/true);
  ASSERT_TRUE(smaller.ok()) << smaller.status();
  EXPECT_EQ(smaller->volume->record.size_bytes, 4 * kMiB);
  EXPECT_LT(smaller->allocated_bytes, allocated);
  const auto larger = Resize(40 * kMiB, false, /*dry=*/true);
  ASSERT_TRUE(larger.ok()) << larger.status();
  EXPECT_GE(larger->allocated_bytes, allocated);
  EXPECT_EQ(site_->state->revision(), before);
  EXPECT_EQ(site_->FreeBytes(), free);
  ASSERT_NO_FATAL_FAILURE(CheckAll());
}

TEST_P(ResizeTest, StaysAsItWasWhenADeviceFailsOrTheStoreDoes) {
  ASSERT_NO_FATAL_FAILURE(Create(GetParam().spec, 24 * kMiB));
  ASSERT_NO_FATAL_FAILURE(Write(0, 24 * kMiB, 'x'));
  const uint64_t free = site_->FreeBytes();
  for (auto& [name, device] : devices_) device->AddFault({.kinds = {IoKind::kFlush}});
  // What is cut off may be lost already, but for what lies before the new end.
  EXPECT_EQ(Resize(9 * kMiB + 512).status().code(), absl::StatusCode::kUnavailable);
  for (auto& [name, device] : devices_) device->ClearFaults();
  EXPECT_EQ(site_->FreeBytes(), free);
  ASSERT_NO_FATAL_FAILURE(Write(9 * kMiB, 24 * kMiB, 'x'));
  ASSERT_NO_FATAL_FAILURE(CheckAll());

  for (bool survives : {false, true}) {
    medium_->FailCommit(0, survives);
    EXPECT_FALSE(Resize(survives ? 30 * kMiB : 40 * kMiB).ok());
    ASSERT_NO_FATAL_FAILURE(Restart());
    if (survives) content_.resize(30 * kMiB / 512, '\0');
    ASSERT_NO_FATAL_FAILURE(CheckAll());
  }
}

const Shape kShapes[] = {
    {"linear", {}},
    {"mirrored", {.copies = 2}},
    {"striped", {.stripes = 3, .stripe_bytes = 16 * kKiB}},
    {"stripedMirrors", {.stripes = 2, .stripe_bytes = 128 * kKiB, .copies = 2}},
    {"thinLinear", {.thin = true}},
    {"thinMirrored", {.copies = 3, .thin = true, .reserve_bytes = 64 * kKiB}},
    {"thinStriped", {.stripes = 4, .stripe_bytes = 4 * kKiB, .thin = true}},
    {"thinStripedMirrors", {.stripes = 2, .copies = 2, .thin = true}},
};
INSTANTIATE_TEST_SUITE_P(Shapes, ResizeTest, testing::ValuesIn(kShapes),
                         [](const auto& param) { return std::string(param.param.name); });

class ResizeOneTest : public ResizeTest {};

TEST_F(ResizeOneTest, SizesThatCannotBeAndVolumesThatAreHeldAreRefused) {
  ASSERT_NO_FATAL_FAILURE(Create({.thin = true}, 8 * kMiB));
  for (uint64_t size : {uint64_t{0}, uint64_t{513}, uint64_t{1} << 63, UINT64_MAX}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Resize(size).status())) << size;
  }
  EXPECT_TRUE(absl::IsNotFound(site_->volumes->Resize("w", kMiB, true, false).status()));
  EXPECT_TRUE(Resize(8 * kMiB).ok());
  ThinHolder holder(&host_, *site_, "v");
  ASSERT_TRUE(holder.Open(*site_).ok());
  EXPECT_THAT(std::string(Resize(16 * kMiB).status().message()), HasSubstr("detach it first"));
  holder.Die();
  EXPECT_THAT(std::string(Resize(16 * kMiB).status().message()),
              HasSubstr("not detached cleanly; attach it for writing"));
  ASSERT_TRUE(holder.Open(*site_).ok());
  ASSERT_TRUE(holder.Close(*site_).ok());
  EXPECT_TRUE(Resize(16 * kMiB).ok());
}

TEST_F(ResizeOneTest, AMissingDeviceThatKeepsATailStopsIt) {
  ASSERT_NO_FATAL_FAILURE(Create({.copies = 2}, 8 * kMiB));
  const std::string name = site_->volumes->Get("v")->device_names[1];
  {
    FakeHost::Unplugged gone(host_, "/dev/" + name);
    const absl::Status status = Resize(5 * kMiB).status();
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("device '" + name + "'"));
  }
  EXPECT_TRUE(Resize(5 * kMiB).ok());
}

TEST_F(ResizeOneTest, WhatWasCutOffStaysGoneAfterAPowerCut) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const std::string name = absl::StrCat("c", seed);
    auto owned = std::make_unique<CrashDevice>("/dev/" + name, kDeviceBytes);
    CrashDevice& crash = *owned;
    devices_[name] = &host_.MakeDevice("/dev/" + name, std::move(owned));
    LeaveSecrets(crash, kLabelDataOffset, kDeviceBytes);
    ASSERT_TRUE(crash.Flush().ok());
    ASSERT_TRUE(site_->inventory->AddDevice({.path = "/dev/" + name, .device_class = name}).ok());
    ASSERT_NO_FATAL_FAILURE(Create({.device_class = name}, 12 * kMiB));
    ASSERT_NO_FATAL_FAILURE(Write(0, 12 * kMiB, 'x'));
    ASSERT_TRUE(crash.Flush().ok());
    ASSERT_TRUE(Resize(5 * kMiB + 512).ok());
    crash.PowerCut(seed);
    // The extents that it gives up and takes again, too.
    ASSERT_TRUE(Resize(12 * kMiB).ok());
    crash.PowerCut(seed + 10);
    std::fill(content_.begin() + (5 * kMiB + 512) / 512, content_.end(), '\0');
    ASSERT_NO_FATAL_FAILURE(CheckAll());
    ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  }
}

TEST_F(ResizeOneTest, NobodyOpensOrDeletesAVolumeWhileItsTailIsZeroed) {
  FaultyDevice& slow = host_.MakeDevice("/dev/slow", kDeviceBytes, /*threads=*/4);
  ASSERT_TRUE(site_->inventory->AddDevice({.path = "/dev/slow", .device_class = "tape"}).ok());
  ASSERT_TRUE(site_->Create({.name = "v", .size_bytes = 12 * kMiB, .device_class = "tape"}).ok());
  slow.AddFault({.kinds = {IoKind::kZero}, .error = 0, .delay = absl::Milliseconds(300)});
  absl::Status resized;
  std::thread resizing([&] { resized = Resize(5 * kMiB).status(); });
  const auto zeros = slow.counters().submitted_of(IoKind::kZero);
  while (slow.counters().submitted_of(IoKind::kZero) == zeros)
    absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(absl::IsUnavailable(site_->volumes->Delete("v", false).status()));
  EXPECT_TRUE(absl::IsUnavailable(Resize(20 * kMiB).status()));
  const VolumeRecord record = Volume()->record;
  host_.SetLocked(*site_->attachments->Prepare(record), true);
  EXPECT_TRUE(absl::IsUnavailable(
      site_->attachments->Open(record.id, {.boot_id = host_.BootId(), .pid = 1}).status()));
  resizing.join();
  EXPECT_TRUE(resized.ok()) << resized;
  EXPECT_TRUE(site_->attachments->Open(record.id, {.boot_id = host_.BootId(), .pid = 1}).ok());
}

TEST_F(ResizeOneTest, GrowingBeyondThePoolIsRefusedAndAThinVolumeGrowsRegardless) {
  ASSERT_NO_FATAL_FAILURE(Create({}, 8 * kMiB));
  const uint64_t free = site_->FreeBytes();
  EXPECT_TRUE(absl::IsResourceExhausted(Resize(160 * kMiB + 512).status()) ||
              absl::IsFailedPrecondition(Resize(160 * kMiB + 512).status()));
  EXPECT_EQ(site_->FreeBytes(), free);
  ASSERT_TRUE(site_->volumes->Delete("v", false).ok());
  ASSERT_NO_FATAL_FAILURE(Create({.thin = true}, 8 * kMiB));
  EXPECT_TRUE(Resize(kMaxVolumeBytes).ok());
  EXPECT_EQ(site_->volumes->Get("v")->allocated_bytes, 0u);
}

TEST_F(ResizeOneTest, TheReserveShrinksWithItsVolume) {
  ASSERT_NO_FATAL_FAILURE(Create({.thin = true, .reserve_bytes = 16 * kMiB}, 64 * kMiB));
  EXPECT_EQ(site_->volumes->Get("v")->reserved_bytes, 16 * kMiB);
  ASSERT_NO_FATAL_FAILURE(Write(0, kMiB, 'x'));
  EXPECT_EQ(site_->volumes->Get("v")->reserved_bytes, 15 * kMiB);
  const auto resized = Resize(2 * kMiB + 512, /*allow=*/false);
  ASSERT_TRUE(resized.ok()) << resized.status();
  EXPECT_EQ(resized->volume->record.reserve_bytes, 2 * kMiB);
  EXPECT_EQ(resized->reserved_bytes, kMiB);
  EXPECT_EQ(resized->mapped_bytes, kMiB);
  ASSERT_NO_FATAL_FAILURE({
    content_.resize((2 * kMiB + 512) / 512);
    CheckAll();
  });
}

}  // namespace
}  // namespace braid
