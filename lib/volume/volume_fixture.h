// A volume over devices in memory that a test can break, and an authority that a test can
// watch, hold up and turn away.
#ifndef BRAID_LIB_VOLUME_VOLUME_FIXTURE_H_
#define BRAID_LIB_VOLUME_VOLUME_FIXTURE_H_

#include <sys/mman.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/mutex.h"
#include "lib/base/unique_fd.h"
#include "lib/base/uuid.h"
#include "lib/blockdev/memory_device.h"
#include "lib/mapping/map_run.h"
#include "lib/testing/borrowed_device.h"
#include "lib/testing/faulty_device.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/map_authority.h"
#include "lib/volume/volume.h"

namespace braid {

// Keeps the runs as the control plane does, by the same function.
class FakeAuthority final : public MapAuthority {
 public:
  explicit FakeAuthority(std::vector<MapRun> runs) : runs_(std::move(runs)) {}

  absl::Status MarkStale(DeviceIndex device, absl::string_view) override {
    MutexLock l(&mu_);
    ++asked_;
    changed_.SignalAll();
    while (held_up_) changed_.Wait(&mu_);
    if (!refusal_.ok()) return refusal_;
    runs_ = MarkDeviceStale(std::move(runs_), device);
    return absl::OkStatus();
  }
  void ReportFault(absl::string_view what) override {
    MutexLock l(&mu_);
    faults_.emplace_back(what);
  }
  // A thick volume has no use for these.
  absl::Status CommitMap(uint64_t, absl::Span<const MapChange>) override {
    return absl::UnimplementedError("thick");
  }
  absl::StatusOr<Space> TakeSpace(uint64_t) override { return absl::UnimplementedError("thick"); }
  void ReturnSpace(const std::vector<Grant>&) override {}

  // Answers nothing until told otherwise, as when it cannot be reached.
  void HoldUp(bool yes) {
    MutexLock l(&mu_);
    held_up_ = yes;
    changed_.SignalAll();
  }
  void Refuse(absl::Status refusal) {
    MutexLock l(&mu_);
    refusal_ = std::move(refusal);
  }
  void AwaitAsked() {
    MutexLock l(&mu_);
    while (asked_ == 0) changed_.Wait(&mu_);
  }
  int asked() const {
    MutexLock l(&mu_);
    return asked_;
  }
  std::vector<std::string> faults() const {
    MutexLock l(&mu_);
    return faults_;
  }
  std::vector<MapRun> runs() const {
    MutexLock l(&mu_);
    return runs_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;  // asked_ or held_up_
  std::vector<MapRun> runs_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> faults_ ABSL_GUARDED_BY(mu_);
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  int asked_ ABSL_GUARDED_BY(mu_) = 0;
  bool held_up_ ABSL_GUARDED_BY(mu_) = false;
};

struct Shape {
  const char* name;
  uint32_t columns;
  uint32_t legs;
};
inline constexpr Shape kShapes[] = {{"linear", 1, 1},
                                    {"striped3", 3, 1},
                                    {"striped4", 4, 1},
                                    {"mirrored2", 1, 2},
                                    {"mirrored3", 1, 3},
                                    {"mirrored4", 1, 4},
                                    {"striped_mirrors2x2", 2, 2},
                                    {"striped_mirrors3x3", 3, 3}};

class VolumeFixture {
 public:
  static constexpr uint64_t kStripeBytes = 16 * kKiB;

  // Column c of leg l lies on device c * legs + l, its extents in reverse order on the
  // device, so that nothing is right by accident.
  VolumeFixture(const Shape& shape, uint64_t size_bytes, const FaultyDeviceOptions& options = {})
      : geometry(Geometry::Make(size_bytes, shape.columns, kStripeBytes, shape.legs).value()),
        authority(Runs(geometry)) {
    const uint64_t extents = geometry.extents_per_column();
    for (uint32_t d = 0; d < shape.columns * shape.legs; ++d) {
      FaultyDeviceOptions own = options;
      own.seed = options.seed + d;
      const std::string name = "d" + std::to_string(d);
      devices.push_back(std::make_unique<FaultyDevice>(
          MakeMemoryDevice(name, (extents + 1) * kExtentBytes), own));
    }
    Open();
  }

  static std::vector<MapRun> Runs(const Geometry& g) {
    std::vector<MapRun> runs;
    const uint64_t extents = g.extents_per_column();
    for (uint32_t c = 0; c < g.columns(); ++c) {
      for (uint32_t l = 0; l < g.legs(); ++l) {
        for (uint64_t e = 0; e < extents; ++e) {
          runs.push_back({.column = c,
                          .leg = l,
                          .first = FirstUnit(ExtentIndex(e)),
                          .count = kSmallPerExtent,
                          .device = DeviceIndex(static_cast<uint16_t>(c * g.legs() + l)),
                          .unit = DeviceUnit((extents - e) * kSmallPerExtent)});
        }
      }
    }
    return runs;
  }

  // As the next holder: on the same devices, with what the authority and the journal know.
  void Open() {
    volume.reset();
    journal.reset();
    journal = AttachmentJournal::Open(journal_file.get(), boot, false).value();
    journal->Begin(++epoch, true);
    std::vector<std::unique_ptr<BlockDevice>> borrowed;
    for (auto& device : devices) borrowed.push_back(BorrowDevice(device.get()));
    volume =
        Volume::Open(geometry, authority.runs(), std::move(borrowed), &authority, journal.get(), {})
            .value();
    if (!journal->past().has_value()) return;
    const absl::Status settled = volume->Settle(*journal->past());
    EXPECT_TRUE(settled.ok()) << settled;
    journal->ForgetPast();
  }

  // What one leg holds of a volume range, stale or not.
  std::string LegBytes(uint32_t leg, uint64_t offset, uint64_t length) {
    std::string bytes(length, '\0');
    ForEachPiece(geometry, offset, length, [&](const Piece& piece) {
      const uint64_t extents = geometry.extents_per_column();
      const uint64_t extent = piece.place.offset / kExtentBytes;
      FaultyDevice& device = *devices[piece.place.column * geometry.legs() + leg];
      EXPECT_TRUE(device
                      .Read((extents - extent) * kExtentBytes + piece.place.offset % kExtentBytes,
                            absl::MakeSpan(&bytes[piece.volume_offset - offset], piece.length))
                      .ok());
      return true;
    });
    return bytes;
  }

  const Geometry geometry;
  FakeAuthority authority;
  const Uuid boot = Uuid::Random();
  const UniqueFd journal_file{memfd_create("braid-journal", MFD_CLOEXEC)};
  // As each holder finds it.
  std::unique_ptr<AttachmentJournal> journal;
  Epoch epoch;
  std::vector<std::unique_ptr<FaultyDevice>> devices;
  std::unique_ptr<Volume> volume;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_VOLUME_FIXTURE_H_
