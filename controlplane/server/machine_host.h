// The machine that braidd runs on, as core/ sees it.
#ifndef BRAID_CONTROLPLANE_SERVER_MACHINE_HOST_H_
#define BRAID_CONTROLPLANE_SERVER_MACHINE_HOST_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "controlplane/core/host.h"

namespace braid {

class MachineHost final : public Host {
 public:
  // Reads the boot id; an error when there is no /proc.
  static absl::StatusOr<std::unique_ptr<MachineHost>> Create();

  int64_t NowUnixSeconds() override;
  Uuid NewUuid() override { return Uuid::Random(); }
  Uuid BootId() override { return boot_id_; }
  absl::StatusOr<DeviceIdentity> Identify(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<BlockDevice>> OpenDevice(
      const std::string& path, const FileDeviceOptions& options) override;
  // By libblkid.
  absl::StatusOr<std::string> RecogniseData(const std::string& path) override;
  absl::Status MakeLock(const std::string& path) override;
  // Looks by trying the lock, shared, for an instant.
  absl::StatusOr<bool> LockHeld(const std::string& path) override;
  void RemoveLock(const std::string& path) override;
  void Warn(absl::string_view what) override;

 private:
  explicit MachineHost(const Uuid& boot_id) : boot_id_(boot_id) {}
  const Uuid boot_id_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_MACHINE_HOST_H_
