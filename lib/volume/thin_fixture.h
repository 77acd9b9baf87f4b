// A thin volume over devices in memory that a test can break, its control plane, and its
// journal, which outlives each holder.
#ifndef BRAID_LIB_VOLUME_THIN_FIXTURE_H_
#define BRAID_LIB_VOLUME_THIN_FIXTURE_H_

#include <sys/mman.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/unique_fd.h"
#include "lib/base/uuid.h"
#include "lib/blockdev/memory_device.h"
#include "lib/testing/borrowed_device.h"
#include "lib/testing/crash_device.h"
#include "lib/testing/faulty_device.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/control_plane_fixture.h"
#include "lib/volume/volume.h"
#include "lib/volume/volume_fixture.h"

namespace braid {

struct ThinOptions {
  FaultyDeviceOptions device;
  uint64_t units = 1024;  // of each device, in the pool
  // Devices that lose what was not flushed; null: in memory, and sound.
  PowerSupply* power = nullptr;
  uint64_t longest_piece = 1024;  // FakeControlPlane::SetLongestPiece
  uint64_t seed = 1;
  uint32_t spare_devices = 0;
  WhenFull when_full = WhenFull::kWait;
  absl::Duration full_timeout = absl::InfiniteDuration();
};

class ThinFixture {
 public:
  static constexpr uint64_t kStripeBytes = 16 * kKiB;
  static constexpr uint64_t kDeviceBytes = kGiB;

  ThinFixture(const Shape& shape, uint64_t size_bytes, const ThinOptions& options = {})
      : geometry(Geometry::Make(size_bytes, shape.columns, kStripeBytes, shape.legs).value()),
        options_(options) {
    std::vector<RawDevice> raw;
    for (uint32_t d = 0; d < shape.columns * shape.legs + options.spare_devices; ++d) {
      FaultyDeviceOptions own = options.device;
      own.seed += d;
      const std::string name = "d" + std::to_string(d);
      if (options.power != nullptr) {
        auto device = std::make_unique<CrashDevice>(name, kDeviceBytes, options.power,
                                                    CrashDevice::Options{.seed = options.seed + d});
        raw.push_back({.fill = [at = device.get()](uint64_t offset, uint64_t length, char byte) {
          at->Overwrite(offset, length, byte);
        }});
        media.push_back(std::move(device));
      } else {
        auto device = MakeMemoryDevice(name, kDeviceBytes);
        raw.push_back({.fill = [at = device.get()](uint64_t offset, uint64_t length, char byte) {
          EXPECT_TRUE(at->Write(offset, std::string(length, byte)).ok());
        }});
        media.push_back(std::move(device));
      }
      devices.push_back(std::make_unique<FaultyDevice>(BorrowDevice(media.back().get()), own));
      raw.back().open = [at = devices.back().get()] { return BorrowDevice(at); };
      raw.back().read = [at = media.back().get()](uint64_t offset, uint64_t length) {
        std::string bytes(length, 'x');
        EXPECT_TRUE(at->Read(offset, absl::MakeSpan(bytes)).ok());
        return bytes;
      };
      raw.back().units = options.units;
    }
    site = std::make_unique<FakeControlPlane>(geometry, std::move(raw));
    site->SetLongestPiece(options.longest_piece);
    Open();
  }
  ~ThinFixture() { Kill(); }
  ThinFixture(const ThinFixture&) = delete;
  ThinFixture& operator=(const ThinFixture&) = delete;

  // The process dies: what it holds in memory is gone.
  void Kill() {
    site->EndHolder();
    volume.reset();
    journal.reset();
    site->BeginHolder();
  }
  // The machine lost power: the journal is another boot's.
  void LosePower() { boot = Uuid::Random(); }

  // As the next holder: on the same devices, with what the site and the journal know.
  absl::Status TryOpen() {
    journal = AttachmentJournal::Open(journal_file.get(), boot, true).value();
    journal->Begin(++epoch, true);
    Volume::Options options{.thin = true,
                            .applied_sequence = site->applied(),
                            .grants = site->grants(),
                            .when_full = options_.when_full,
                            .full_timeout = options_.full_timeout,
                            .wanted = wanted};
    absl::StatusOr<std::unique_ptr<Volume>> opened = Volume::Open(
        geometry, site->runs(), site->OpenDevices(), site.get(), journal.get(), options);
    if (!opened.ok()) return opened.status();
    volume = *std::move(opened);
    if (!journal->past().has_value()) return absl::OkStatus();
    absl::Status settled = volume->Settle(*journal->past());
    if (settled.ok()) journal->ForgetPast();
    return settled;
  }
  void Open() {
    if (volume != nullptr) Kill();
    const absl::Status s = TryOpen();
    ASSERT_TRUE(s.ok()) << s;
  }

  const Geometry geometry;
  std::vector<std::unique_ptr<BlockDevice>> media;
  std::vector<std::unique_ptr<FaultyDevice>> devices;
  std::unique_ptr<FakeControlPlane> site;
  Uuid boot = Uuid::Random();
  const UniqueFd journal_file{memfd_create("braid-journal", MFD_CLOEXEC)};
  std::unique_ptr<AttachmentJournal> journal;  // as each holder finds it
  Epoch epoch;
  std::function<bool()> wanted;
  std::unique_ptr<Volume> volume;

 private:
  const ThinOptions options_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_THIN_FIXTURE_H_
