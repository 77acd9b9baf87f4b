#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/services.h"
#include "lib/base/size_text.h"

namespace braid {
namespace {

// Past this an operator reads the lists.
constexpr int kMaxWarnings = 100;

}  // namespace

SiteService::SiteService(SiteState* state, Inventory* inventory, Volumes* volumes,
                         std::string run_dir)
    : state_(*state),
      inventory_(*inventory),
      volumes_(*volumes),
      run_dir_(std::move(run_dir)),
      start_(absl::Now()) {}

grpc::Status SiteService::GetSite(grpc::ServerContext* /*context*/,
                                  const v1::GetSiteRequest* /*request*/,
                                  v1::GetSiteResponse* response) {
  const std::vector<DeviceStatus> devices = inventory_.ListDevices();
  v1::Site& site = *response->mutable_site();
  site.set_name(state_.name());
  site.set_id(state_.id().ToString());
  site.set_cluster_id(state_.cluster().ToString());
  site.set_revision(state_.revision().value());
  site.set_version(BRAID_VERSION);
  site.set_run_dir(run_dir_);
  site.set_node(state_.node());
  site.set_device_count(devices.size());
  site.set_volume_count(state_.volume_count());
  site.set_uptime_seconds(absl::ToInt64Seconds(absl::Now() - start_));

  int left_out = 0;
  const auto warn = [&](std::string text) {
    if (response->warnings_size() < kMaxWarnings) {
      response->add_warnings(std::move(text));
    } else {
      ++left_out;
    }
  };
  if (absl::Status health = state_.health(); !health.ok()) warn(std::string(health.message()));
  for (const DeviceStatus& device : devices) {
    if (device.problem.empty()) continue;
    warn(absl::StrCat("device '", device.use.record->name, "' is missing: ", device.problem));
  }
  for (const VolumeStatus& volume : volumes_.List("", SIZE_MAX)) {
    const std::string& name = volume.volume->record.name;
    if (volume.health == VolumeHealth::kFaulty) {
      warn(absl::StrCat("volume '", name, "' is faulty: ", volume.volume->record.fault));
    } else if (volume.health == VolumeHealth::kDegraded) {
      warn(absl::StrCat("volume '", name, "' is degraded: ", FormatSize(volume.stale_bytes),
                        " of its copies is stale"));
    }
  }
  if (left_out > 0) response->add_warnings(absl::StrCat("and ", left_out, " more"));
  return grpc::Status::OK;
}

}  // namespace braid
