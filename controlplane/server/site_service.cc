#include <algorithm>
#include <utility>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "controlplane/server/convert.h"
#include "controlplane/server/services.h"
#include "lib/base/size_text.h"

namespace braid {
namespace {

// Past this an operator reads the lists.
constexpr int kMaxWarnings = 100;

std::string PoolWarning(const PoolUsage& pool) {
  const uint64_t used = pool.allocated + pool.reserved;
  const uint64_t percent =
      pool.capacity == 0 ? 100 : static_cast<uint64_t>(absl::uint128(used) * 100 / pool.capacity);
  const std::string numbers = absl::StrCat(percent, "% of ", FormatSize(pool.capacity),
                                           " is taken, ", FormatSize(pool.free), " is free");
  const std::string name = absl::StrCat("pool '", pool.device_class, "' ");
  switch (pool.state) {
    case PoolState::kFull:
      return absl::StrCat(name, "is full: first writes find no space; add a device, or free space");
    case PoolState::kCritical:
      return absl::StrCat(name, "is nearly full: ", numbers, "; add a device, or free space");
    default:
      return absl::StrCat(name, "is getting full: ", numbers);
  }
}

}  // namespace

SiteService::SiteService(SiteState* state, Inventory* inventory, Volumes* volumes, Pools* pools,
                         std::string run_dir)
    : state_(*state),
      inventory_(*inventory),
      volumes_(*volumes),
      pools_(*pools),
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
  v1::SiteHealth health = v1::SITE_HEALTH_GOOD;
  const auto warn = [&](v1::SiteHealth severity, std::string text) {
    health = std::max(health, severity);
    if (response->warnings_size() < kMaxWarnings) {
      response->add_warnings(std::move(text));
    } else {
      ++left_out;
    }
  };
  if (absl::Status status = state_.health(); !status.ok()) {
    warn(v1::SITE_HEALTH_CRITICAL, std::string(status.message()));
  }
  for (const PoolUsage& pool : pools_.List()) {
    if (pool.state != PoolState::kGood) warn(HealthOf(pool.state), PoolWarning(pool));
  }
  for (const DeviceStatus& device : devices) {
    if (device.problem.empty()) continue;
    warn(v1::SITE_HEALTH_WARNING,
         absl::StrCat("device '", device.use.record->name, "' is missing: ", device.problem));
  }
  for (const VolumeStatus& volume : volumes_.List("", SIZE_MAX)) {
    const std::string& name = volume.volume->record.name;
    if (volume.health == VolumeHealth::kFaulty) {
      warn(v1::SITE_HEALTH_CRITICAL,
           absl::StrCat("volume '", name, "' is faulty: ", volume.volume->record.fault));
    } else if (volume.health == VolumeHealth::kDegraded) {
      warn(v1::SITE_HEALTH_WARNING,
           absl::StrCat("volume '", name, "' is degraded: ", FormatSize(volume.stale_bytes),
                        " of its copies is stale"));
    }
  }
  if (left_out > 0) response->add_warnings(absl::StrCat("and ", left_out, " more"));
  response->set_health(health);
  for (const PoolEvent& event : pools_.Events()) *response->add_events() = ToProto(event);
  return grpc::Status::OK;
}

}  // namespace braid
