// Asking a site: the gRPC client, without gRPC in sight of the commands.
#ifndef BRAID_TOOLS_CLI_CLIENT_H_
#define BRAID_TOOLS_CLI_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "braid/v1/inventory.pb.h"
#include "braid/v1/site.pb.h"
#include "braid/v1/volume.pb.h"

namespace braid::cli {

// Where a control plane listens.
struct ControlAddress {
  // As braid-attach takes it: "unix:/absolute/path", "HOST:PORT" or "dns:///NAME:PORT".
  std::string text;
  // Of the socket; empty for the others.
  std::string unix_path;

  // InvalidArgument, saying what an address looks like. A relative socket path is made
  // absolute against the working directory.
  static absl::StatusOr<ControlAddress> Parse(absl::string_view text);
};

// Calls of one site. Each returns the site's own message on failure, with its code, or
// for a site that cannot be reached (Unavailable) or does not answer within `timeout`
// (DeadlineExceeded), a message that says where it was looked for and what to do. Messages are one
// line, not yet Printable. Nobody listening is found out at once, without any retry.
// Connects at the first call. Not thread-safe.
class SiteClient {
 public:
  SiteClient(ControlAddress address, absl::Duration timeout);
  ~SiteClient();
  SiteClient(const SiteClient&) = delete;
  SiteClient& operator=(const SiteClient&) = delete;

  absl::StatusOr<v1::GetSiteResponse> GetSite();

  absl::StatusOr<v1::AddDeviceResponse> AddDevice(const v1::AddDeviceRequest& request);
  absl::StatusOr<v1::ListDevicesResponse> ListDevices();
  absl::StatusOr<v1::RemoveDeviceResponse> RemoveDevice(const v1::RemoveDeviceRequest& request);
  absl::StatusOr<v1::ListPoolsResponse> ListPools();
  // The site walks all its records: give it time.
  absl::StatusOr<v1::CheckPoolsResponse> CheckPools(absl::Duration timeout);

  absl::StatusOr<v1::CreateVolumeResponse> CreateVolume(const v1::CreateVolumeRequest& request);
  absl::StatusOr<v1::Volume> GetVolume(const std::string& name);
  // All pages.
  absl::StatusOr<std::vector<v1::Volume>> ListVolumes();
  absl::StatusOr<v1::DeleteVolumeResponse> DeleteVolume(const v1::DeleteVolumeRequest& request);
  // Growing a thick volume zeroes: give it time.
  absl::StatusOr<v1::ResizeVolumeResponse> ResizeVolume(const v1::ResizeVolumeRequest& request,
                                                        absl::Duration timeout);
  // The last answer. Calls `progress` for those before, and ends the call when `cancelled`
  // returns true, which is asked a few times a second on another thread: Cancelled. No
  // timeout: the site itself gives up on a holder that is silent.
  absl::StatusOr<v1::ReclaimVolumeResponse> ReclaimVolume(
      const v1::ReclaimVolumeRequest& request,
      const std::function<void(const v1::ReclaimReport&)>& progress,
      const std::function<bool()>& cancelled);
  // The whole stream.
  absl::StatusOr<std::vector<v1::MapRow>> GetVolumeMap(const std::string& name);

 private:
  struct Connection;
  absl::StatusOr<Connection*> Connect();

  const ControlAddress address_;
  const absl::Duration timeout_;
  std::unique_ptr<Connection> connection_;
};

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_CLIENT_H_
