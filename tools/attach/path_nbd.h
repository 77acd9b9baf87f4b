// The volume as /dev/nbdN, the kernel's own NBD client behind it.
//
// The device outlives its server: when links die, the kernel holds requests until new
// sockets are put in their place (NBD_CMD_RECONFIGURE) or the dead-connection timeout runs
// out. A link is a slot: dead ones are dialled again and offered until the kernel has taken
// one for each, because it drops an offer silently while it still thinks the old link lives.
//
// The kernel's connect and close of the device are not tied to our life either. A device
// that a killed braid-attach left is found by its backend identifier and adopted: all of its
// links died with the server, which died with its braid-attach.
#ifndef BRAID_TOOLS_ATTACH_PATH_NBD_H_
#define BRAID_TOOLS_ATTACH_PATH_NBD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/dialer.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/log.h"
#include "tools/attach/nbd_netlink.h"
#include "tools/attach/path.h"

namespace braid::attach {

class NbdPath : public ClientPath {
 public:
  struct Options {
    std::string socket_path;
    std::string backend;
    size_t connections = 1;
    absl::Duration request_timeout;
    absl::Duration dead_timeout;
  };
  // `broken` is called when a link died though the server lives, and cannot be replaced.
  NbdPath(EventLoop* loop, Log* log, Options options, Done broken);
  ~NbdPath() override;

  absl::Status Prepare();

  void Up(Done done) override;
  void ServerLost() override;
  void Down(Urgency urgency, Done done) override;
  std::string path() const override;

 private:
  void OnDialled(absl::StatusOr<std::vector<Connection>> dialled);
  absl::Status Connect(std::vector<Connection> connections);
  // Puts connections into dead slots. True when none is left dead.
  absl::StatusOr<bool> Offer(std::vector<Connection> connections);
  void Repair();
  void RetryLater();
  void WatchLinks();
  void UnwatchLinks();
  absl::Status Refusal(UniqueFd* exclusive) const;
  void AwaitGone(Done done, int tries_left, bool forced);
  void Finish(absl::Status status);

  EventLoop* const loop_;
  Log* const log_;
  const Options options_;
  const Done broken_;
  std::optional<NbdNetlink> netlink_;
  Dialer dialer_;
  std::optional<uint32_t> index_;
  bool adopted_ = false;  // and its links have not been counted yet
  uint64_t size_bytes_ = 0;
  bool server_alive_ = false;
  std::vector<UniqueFd> links_;  // our references to the kernel's sockets; invalid: dead
  Done up_done_;
  EventLoop::TimerId retry_ = 0;
  absl::Duration retry_delay_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_PATH_NBD_H_
