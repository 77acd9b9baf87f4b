// The client's side of NBD's fixed newstyle handshake, to where requests may be sent.
// The kernel takes over a socket only in that state, and whoever gets that far knows that
// the server serves.
#ifndef BRAID_TOOLS_ATTACH_HANDSHAKE_H_
#define BRAID_TOOLS_ATTACH_HANDSHAKE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace braid::attach {

struct ExportInfo {
  uint64_t size_bytes = 0;
  uint16_t flags = 0;  // NBD_FLAG_*, as linux/nbd.h and the protocol number them
  // 0 where the server did not say.
  uint32_t minimum_block_bytes = 0;
};

// The bytes only; no I/O. Wants the default export ("").
//
//   server: greeting (18 bytes)
//   client: flags, NBD_OPT_GO with one information request (NBD_INFO_BLOCK_SIZE)
//   server: replies: any NBD_REP_INFO, then NBD_REP_ACK, or an error
class Handshake {
 public:
  // What may be read next, at most: never a byte that belongs to the transmission phase.
  size_t wanted_bytes() const { return wanted_; }
  // Takes at most wanted_bytes() that came; an error ends the handshake. Whole messages
  // need not come at once.
  absl::Status Take(absl::string_view bytes);
  // What is to be sent now; the caller has it once.
  std::string TakeOutput();

  bool done() const { return state_ == State::kDone; }
  const ExportInfo& info() const { return info_; }

 private:
  enum class State { kGreeting, kReplyHead, kReplyBody, kDone };

  absl::Status OnGreeting();
  absl::Status OnReplyHead();
  absl::Status OnReplyBody();
  void Expect(State state, size_t bytes);

  static constexpr size_t kGreetingBytes = 18;
  State state_ = State::kGreeting;
  size_t wanted_ = kGreetingBytes;
  std::string buffer_;
  std::string output_;
  uint32_t reply_type_ = 0;
  unsigned replies_ = 0;
  bool sized_ = false;
  ExportInfo info_;
};

// The 28 bytes that end a transmission politely (NBD_CMD_DISC).
std::string DisconnectRequest();

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_HANDSHAKE_H_
