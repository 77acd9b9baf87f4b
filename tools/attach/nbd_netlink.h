// The kernel's NBD client, by generic netlink (linux/nbd-netlink.h). Every call is one
// request and one answer and does not wait for the server.
#ifndef BRAID_TOOLS_ATTACH_NBD_NETLINK_H_
#define BRAID_TOOLS_ATTACH_NBD_NETLINK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct nl_sock;
struct nl_msg;

namespace braid::attach {

class NbdNetlink {
 public:
  struct Device {
    uint64_t size_bytes = 0;
    uint32_t block_bytes = 512;
    uint16_t server_flags = 0;
    // Until a request that got no answer is taken from its link and sent on another; not 0,
    // which has a meaning of its own to the kernel.
    uint64_t request_timeout_seconds = 0;
    // How long the device waits without any link before it fails requests.
    uint64_t dead_timeout_seconds = 0;
    // What /sys/block/nbdN/backend shows and every later request must name. Kernels before
    // 5.14 ignore it.
    std::string backend;
  };

  // FailedPrecondition when this kernel has no NBD client (or it is not loaded).
  static absl::StatusOr<NbdNetlink> Open();

  // Makes a device of sockets in transmission phase and returns its number. The kernel picks
  // a free one itself, so nothing races for it; it keeps its own references to the sockets.
  absl::StatusOr<uint32_t> Connect(const Device& device, const std::vector<int>& sockets);
  // Offers sockets in the place of dead ones. OK says nothing about how many were taken: the
  // kernel drops what it does not need without a word, see Taken(). InvalidArgument (EINVAL)
  // when the device is not connected any more or belongs to another backend.
  absl::Status Reconfigure(uint32_t index, const std::string& backend,
                           const std::vector<int>& sockets);
  absl::Status Disconnect(uint32_t index);

  // Whether the kernel took this socket: it sets the request timeout on those it does, and
  // only those (an experiment's result, 6.1 and 6.12).
  static bool Taken(int socket);

 private:
  struct FreeSocket {
    void operator()(nl_sock* socket) const;
  };

  // Sends and waits for the answer; the device number in it, if there was one, in *index.
  absl::Status Transact(nl_msg* message, uint32_t* index);
  absl::StatusOr<nl_msg*> Message(uint8_t command) const;

  std::unique_ptr<nl_sock, FreeSocket> socket_;
  int family_ = 0;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_NBD_NETLINK_H_
