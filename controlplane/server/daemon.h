// braidd, assembled: store, state machines, services, listeners.
#ifndef BRAID_CONTROLPLANE_SERVER_DAEMON_H_
#define BRAID_CONTROLPLANE_SERVER_DAEMON_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/host.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/preparer.h"
#include "controlplane/core/site_state.h"
#include "controlplane/core/spaces.h"
#include "controlplane/core/volumes.h"
#include "controlplane/server/holder_tasks.h"
#include "controlplane/server/options.h"
#include "controlplane/server/services.h"
#include "lib/base/unique_fd.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

// Requests are names and numbers; the longest is a path.
inline constexpr int kMaxRequestBytes = 1024 * 1024;
// The longest answers are pages of volumes and the heads of grants, with every device's path.
inline constexpr int kMaxAnswerBytes = 256 * 1024 * 1024;

class Daemon {
 public:
  // Opens the data directory, loads the site, and answers requests when it returns.
  // `host` outlives it.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options, Host* host);
  // Lets requests end for a moment, then ends them.
  ~Daemon();

  // Tells the health service, and the log, when the site takes no more changes. To be
  // called now and then.
  void UpdateHealth();

  const SiteState& state() const { return *state_; }
  // As given, with ports that were chosen by the kernel filled in.
  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  Daemon() = default;
  absl::Status ClaimAddresses(const DaemonOptions& options);
  absl::Status Listen();

  // In the order in which each needs the ones above.
  std::unique_ptr<MetadataStore> store_;
  std::unique_ptr<SiteState> state_;
  std::unique_ptr<Attachments> attachments_;
  std::unique_ptr<Preparer> preparer_;
  std::unique_ptr<Inventory> inventory_;
  std::unique_ptr<Volumes> volumes_;
  std::unique_ptr<Pools> pools_;
  std::unique_ptr<Spaces> spaces_;
  std::unique_ptr<HolderTasks> tasks_;
  std::unique_ptr<InventoryService> inventory_service_;
  std::unique_ptr<VolumeService> volume_service_;
  std::unique_ptr<AttachmentService> attachment_service_;
  std::unique_ptr<SiteService> site_service_;
  std::vector<ListenAddress> places_;
  std::vector<std::string> addresses_;
  std::vector<UniqueFd> socket_locks_;
  std::unique_ptr<grpc::Server> server_;
  // Looks at the pools now and then, until told to stop.
  absl::Notification stopping_;
  std::thread pool_watch_;
  bool serving_ = true;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_DAEMON_H_
