#include "tools/attach/nbd_netlink.h"

#include <linux/nbd-netlink.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "lib/base/errno_status.h"

namespace braid::attach {

namespace {

struct Answer {
  bool complete = false;
  int error = 0;  // errno, 0 for success
  bool has_index = false;
  uint32_t index = 0;
};

int OnData(nl_msg* message, void* context) {
  auto* answer = static_cast<Answer*>(context);
  nlattr* attributes[NBD_ATTR_MAX + 1] = {};
  if (genlmsg_parse(nlmsg_hdr(message), 0, attributes, NBD_ATTR_MAX, nullptr) == 0 &&
      attributes[NBD_ATTR_INDEX] != nullptr &&
      nla_len(attributes[NBD_ATTR_INDEX]) >= static_cast<int>(sizeof(uint32_t))) {
    answer->has_index = true;
    answer->index = nla_get_u32(attributes[NBD_ATTR_INDEX]);
  }
  return NL_OK;
}

int OnAck(nl_msg*, void* context) {
  static_cast<Answer*>(context)->complete = true;
  return NL_STOP;
}

int OnError(sockaddr_nl*, nlmsgerr* error, void* context) {
  auto* answer = static_cast<Answer*>(context);
  answer->complete = true;
  answer->error = -error->error;
  return NL_STOP;
}

absl::Status PutSockets(nl_msg* message, const std::vector<int>& sockets) {
  nlattr* list = nla_nest_start(message, NBD_ATTR_SOCKETS);
  if (list == nullptr) return ErrnoStatus(EMSGSIZE, "netlink");
  for (const int socket : sockets) {
    nlattr* item = nla_nest_start(message, NBD_SOCK_ITEM);
    if (item == nullptr || nla_put_u32(message, NBD_SOCK_FD, static_cast<uint32_t>(socket)) < 0) {
      return ErrnoStatus(EMSGSIZE, "netlink");
    }
    nla_nest_end(message, item);
  }
  nla_nest_end(message, list);
  return absl::OkStatus();
}

}  // namespace

void NbdNetlink::FreeSocket::operator()(nl_sock* socket) const { nl_socket_free(socket); }

absl::StatusOr<NbdNetlink> NbdNetlink::Open() {
  NbdNetlink made;
  made.socket_.reset(nl_socket_alloc());
  if (made.socket_ == nullptr) return ErrnoStatus(ENOMEM, "netlink");
  if (const int failed = genl_connect(made.socket_.get()); failed < 0) {
    return absl::UnavailableError(absl::StrCat("generic netlink: ", nl_geterror(failed)));
  }
  // A kernel that never answers must not hold the supervisor for ever.
  const timeval limit{10, 0};
  (void)setsockopt(nl_socket_get_fd(made.socket_.get()), SOL_SOCKET, SO_RCVTIMEO, &limit,
                   sizeof limit);
  made.family_ = genl_ctrl_resolve(made.socket_.get(), NBD_GENL_FAMILY_NAME);
  if (made.family_ < 0) {
    return absl::FailedPreconditionError(
        "this kernel has no NBD client loaded; run \"modprobe nbd\", or attach --via fuse or "
        "--via socket");
  }
  return made;
}

absl::StatusOr<nl_msg*> NbdNetlink::Message(uint8_t command) const {
  nl_msg* message = nlmsg_alloc();
  if (message == nullptr || genlmsg_put(message, NL_AUTO_PORT, NL_AUTO_SEQ, family_, 0, 0, command,
                                        NBD_GENL_VERSION) == nullptr) {
    nlmsg_free(message);
    return ErrnoStatus(ENOMEM, "netlink");
  }
  return message;
}

absl::Status NbdNetlink::Transact(nl_msg* message, uint32_t* index) {
  Answer answer;
  nl_cb* callbacks = nl_cb_alloc(NL_CB_DEFAULT);
  if (callbacks == nullptr) return ErrnoStatus(ENOMEM, "netlink");
  const absl::Cleanup put = [callbacks] { nl_cb_put(callbacks); };
  nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, OnData, &answer);
  nl_cb_set(callbacks, NL_CB_ACK, NL_CB_CUSTOM, OnAck, &answer);
  nl_cb_err(callbacks, NL_CB_CUSTOM, OnError, &answer);
  int result = nl_send_auto(socket_.get(), message);
  while (result >= 0 && !answer.complete) result = nl_recvmsgs(socket_.get(), callbacks);
  if (!answer.complete) {
    return absl::UnavailableError(absl::StrCat("generic netlink: ", nl_geterror(result)));
  }
  if (answer.error != 0) return ErrnoStatus(answer.error, "the kernel's NBD client");
  if (index != nullptr) {
    if (!answer.has_index) return absl::InternalError("the kernel did not name the device");
    *index = answer.index;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> NbdNetlink::Connect(const Device& device,
                                             const std::vector<int>& sockets) {
  const absl::StatusOr<nl_msg*> message = Message(NBD_CMD_CONNECT);
  if (!message.ok()) return message.status();
  const absl::Cleanup free = [&] { nlmsg_free(*message); };
  if (nla_put_u64(*message, NBD_ATTR_SIZE_BYTES, device.size_bytes) < 0 ||
      nla_put_u64(*message, NBD_ATTR_BLOCK_SIZE_BYTES, device.block_bytes) < 0 ||
      nla_put_u64(*message, NBD_ATTR_SERVER_FLAGS, device.server_flags) < 0 ||
      nla_put_u64(*message, NBD_ATTR_TIMEOUT, device.request_timeout_seconds) < 0 ||
      nla_put_u64(*message, NBD_ATTR_DEAD_CONN_TIMEOUT, device.dead_timeout_seconds) < 0 ||
      nla_put_string(*message, NBD_ATTR_BACKEND_IDENTIFIER, device.backend.c_str()) < 0) {
    return ErrnoStatus(EMSGSIZE, "netlink");
  }
  if (absl::Status put = PutSockets(*message, sockets); !put.ok()) return put;
  uint32_t index = 0;
  if (absl::Status done = Transact(*message, &index); !done.ok()) return done;
  return index;
}

absl::Status NbdNetlink::Reconfigure(uint32_t index, const std::string& backend,
                                     const std::vector<int>& sockets) {
  const absl::StatusOr<nl_msg*> message = Message(NBD_CMD_RECONFIGURE);
  if (!message.ok()) return message.status();
  const absl::Cleanup free = [&] { nlmsg_free(*message); };
  if (nla_put_u32(*message, NBD_ATTR_INDEX, index) < 0 ||
      nla_put_string(*message, NBD_ATTR_BACKEND_IDENTIFIER, backend.c_str()) < 0) {
    return ErrnoStatus(EMSGSIZE, "netlink");
  }
  if (absl::Status put = PutSockets(*message, sockets); !put.ok()) return put;
  return Transact(*message, nullptr);
}

absl::Status NbdNetlink::Disconnect(uint32_t index) {
  const absl::StatusOr<nl_msg*> message = Message(NBD_CMD_DISCONNECT);
  if (!message.ok()) return message.status();
  const absl::Cleanup free = [&] { nlmsg_free(*message); };
  if (nla_put_u32(*message, NBD_ATTR_INDEX, index) < 0) return ErrnoStatus(EMSGSIZE, "netlink");
  return Transact(*message, nullptr);
}

bool NbdNetlink::Taken(int socket) {
  timeval set{};
  socklen_t length = sizeof set;
  return getsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &set, &length) == 0 &&
         (set.tv_sec != 0 || set.tv_usec != 0);
}

}  // namespace braid::attach
