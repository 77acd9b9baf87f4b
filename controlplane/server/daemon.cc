#include "controlplane/server/daemon.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "controlplane/server/delayed_store.h"
#include "controlplane/server/log.h"
#include "controlplane/server/unix_socket.h"
#include "lib/base/errno_status.h"

namespace braid {
namespace {

// Requests under way when we stop get this long; none but waiting for a volume takes more.
constexpr std::chrono::seconds kDrain(2);

// Often enough that a pool that fills up is told of before it is full.
constexpr absl::Duration kPoolInterval = absl::Seconds(2);

// One directory, not its parents: a typing mistake should not grow a tree.
absl::Status MakeDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
  return ErrnoStatus(errno, path);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options, Host* host) {
  auto daemon = std::unique_ptr<Daemon>(new Daemon());
  Daemon& d = *daemon;
  const std::string lock_dir = absl::StrCat(options.run_dir, "/locks");
  absl::Status status = MakeDirectory(options.run_dir);
  if (status.ok()) status = MakeDirectory(lock_dir);
  // First, so that a start in vain leaves no store behind.
  if (status.ok()) status = d.ClaimAddresses(options);
  if (!status.ok()) return status;

  absl::StatusOr<std::unique_ptr<MetadataStore>> store = OpenRocksStore(options.data_dir);
  if (!store.ok()) return store.status();
  d.store_ = *std::move(store);
  if (options.test_commit_delay_ms > 0) {
    d.store_ = DelayCommits(std::move(d.store_), absl::Milliseconds(options.test_commit_delay_ms));
  }
  absl::StatusOr<std::unique_ptr<SiteState>> state =
      SiteState::Load(d.store_.get(), host, {.name = options.site, .node = options.node});
  if (!state.ok()) {
    return absl::Status(state.status().code(),
                        absl::StrCat(options.data_dir, ": ", state.status().message()));
  }
  d.state_ = *std::move(state);
  d.attachments_ = std::make_unique<Attachments>(d.state_.get(), lock_dir);
  status = d.attachments_->FreeAfterRestart();
  if (!status.ok()) return status;
  d.preparer_ = std::make_unique<Preparer>(d.state_.get());
  d.inventory_ = std::make_unique<Inventory>(d.state_.get());
  d.volumes_ = std::make_unique<Volumes>(d.state_.get(), d.preparer_.get(), d.attachments_.get());
  d.pools_ = std::make_unique<Pools>(
      d.state_.get(), Pools::Thresholds{.low_percent = options.pool_low_percent,
                                        .critical_percent = options.pool_critical_percent});
  d.spaces_ = std::make_unique<Spaces>(d.state_.get(), d.attachments_.get(), d.pools_.get());
  d.tasks_ = std::make_unique<HolderTasks>(
      [attachments = d.attachments_.get()](const Uuid& volume, Epoch epoch) {
        return attachments->Held(volume, epoch).status();
      });
  d.inventory_service_ =
      std::make_unique<InventoryService>(d.state_.get(), d.inventory_.get(), d.pools_.get());
  d.volume_service_ = std::make_unique<VolumeService>(d.state_.get(), d.volumes_.get(),
                                                      d.pools_.get(), d.tasks_.get());
  d.attachment_service_ = std::make_unique<AttachmentService>(
      d.state_.get(), d.volumes_.get(), d.attachments_.get(), d.spaces_.get(), d.tasks_.get());
  d.site_service_ = std::make_unique<SiteService>(
      d.state_.get(), d.inventory_.get(), d.volumes_.get(), d.pools_.get(), options.run_dir);
  status = d.Listen();
  if (!status.ok()) return status;
  d.pool_watch_ = std::thread([&d] {
    do {
      d.pools_->Look();
    } while (!d.stopping_.WaitForNotificationWithTimeout(kPoolInterval));
  });
  return daemon;
}

absl::Status Daemon::ClaimAddresses(const DaemonOptions& options) {
  addresses_ = options.listen;
  for (const std::string& text : options.listen) {
    absl::StatusOr<ListenAddress> place = ParseListenAddress(text);
    if (!place.ok()) return place.status();
    if (place->is_unix) {
      absl::StatusOr<UniqueFd> lock = ClaimUnixSocket(place->path);
      if (!lock.ok()) return lock.status();
      socket_locks_.push_back(*std::move(lock));
    } else if (!place->is_loopback) {
      Log(LogLevel::kWarning,
          "listening beyond this machine without encryption or authentication: whoever reaches "
          "this port controls the site",
          {{"address", text}});
    }
    places_.push_back(*std::move(place));
  }
  return absl::OkStatus();
}

absl::Status Daemon::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.SetMaxSendMessageSize(kMaxAnswerBytes);
  grpc::ResourceQuota quota("braidd");
  quota.SetMaxThreads(kMaxThreads);
  builder.SetResourceQuota(quota);
  // Without this a second server could share the port, and get half of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(inventory_service_.get());
  builder.RegisterService(volume_service_.get());
  builder.RegisterService(attachment_service_.get());
  builder.RegisterService(site_service_.get());

  std::vector<int> ports(places_.size(), 0);
  for (size_t i = 0; i < places_.size(); ++i) {
    builder.AddListeningPort(
        places_[i].is_unix ? absl::StrCat("unix:", places_[i].path) : places_[i].host_port,
        grpc::InsecureServerCredentials(), &ports[i]);
  }
  server_ = builder.BuildAndStart();
  for (size_t i = 0; i < places_.size(); ++i) {
    if (server_ == nullptr || ports[i] == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ",
                                                 absl::StrJoin(addresses_, " and "),
                                                 "; an address is in use, or not of this machine"));
    }
    if (!places_[i].is_unix) {
      const std::string& text = places_[i].host_port;
      addresses_[i] = absl::StrCat("tcp:", text.substr(0, text.rfind(':') + 1), ports[i]);
    } else if (chmod(places_[i].path.c_str(), 0600) != 0) {
      // Until now the process's umask has kept others out.
      return ErrnoStatus(errno, places_[i].path);
    }
  }
  // Nothing is served before all is loaded, so from the first answer on it is true.
  server_->GetHealthCheckService()->SetServingStatus(true);
  return absl::OkStatus();
}

void Daemon::UpdateHealth() {
  const absl::Status health = state_->health();
  if (health.ok() || !serving_) return;
  // For good: only a restart mends it.
  serving_ = false;
  server_->GetHealthCheckService()->SetServingStatus(false);
  Log(LogLevel::kError, health.message());
}

Daemon::~Daemon() {
  if (server_ == nullptr) return;
  stopping_.Notify();
  if (pool_watch_.joinable()) pool_watch_.join();
  // Their streams would stay open for as long as volumes are attached.
  tasks_->Stop();
  server_->GetHealthCheckService()->Shutdown();
  server_->Shutdown(std::chrono::system_clock::now() + kDrain);
  server_->Wait();
}

}  // namespace braid
