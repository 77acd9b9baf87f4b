#include "tools/attach/handshake.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace braid::attach {

namespace {

// From the NBD protocol, doc/proto.md of the NetworkBlockDevice project.
constexpr uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
constexpr uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
constexpr uint64_t kReplyMagic = 0x0003e889045565a9;
constexpr uint16_t kFlagFixedNewstyle = 1;
constexpr uint16_t kFlagNoZeroes = 2;
constexpr uint32_t kOptionGo = 7;
constexpr uint32_t kReplyAck = 1;
constexpr uint32_t kReplyInfo = 3;
constexpr uint32_t kReplyErrorBit = 0x80000000;
constexpr uint16_t kInfoExport = 0;
constexpr uint16_t kInfoBlockSize = 3;
constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint16_t kCommandDisconnect = 2;

constexpr size_t kReplyHeadBytes = 20;
// Error text is free-form; the protocol allows strings of 4096 bytes.
constexpr uint32_t kMaxReplyBytes = 4096 + 64;
// A server sends one message per kind of information; far more is a server gone wrong.
constexpr unsigned kMaxReplies = 64;

template <typename T>
T Read(absl::string_view bytes, size_t offset) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>((static_cast<uint64_t>(value) << 8) |
                           static_cast<uint8_t>(bytes[offset + i]));
  }
  return value;
}

template <typename T>
void Append(std::string& out, T value) {
  for (size_t i = sizeof(T); i-- > 0;) {
    out.push_back(static_cast<char>((static_cast<uint64_t>(value) >> (8 * i)) & 0xff));
  }
}

absl::Status Refused(uint32_t type, absl::string_view text) {
  constexpr absl::string_view kReasons[] = {"",
                                            "it does not know NBD_OPT_GO",
                                            "forbidden by its policy",
                                            "it found our option invalid",
                                            "not supported on its platform",
                                            "it requires TLS",
                                            "it has no such export",
                                            "it is shutting down",
                                            "it requires block sizes",
                                            "too big"};
  const uint32_t code = type & ~kReplyErrorBit;
  std::string reason = code > 0 && code < std::size(kReasons) ? std::string(kReasons[code])
                                                              : absl::StrCat("reply ", code);
  if (!text.empty()) absl::StrAppend(&reason, ": ", absl::CHexEscape(text));
  return absl::UnavailableError(absl::StrCat("the server refused: ", reason));
}

}  // namespace

std::string Handshake::TakeOutput() { return std::exchange(output_, {}); }

void Handshake::Expect(State state, size_t bytes) {
  state_ = state;
  wanted_ = bytes;
  buffer_.clear();
}

absl::Status Handshake::Take(absl::string_view bytes) {
  if (bytes.size() > wanted_) return absl::InternalError("more bytes than were wanted");
  buffer_.append(bytes.data(), bytes.size());
  wanted_ -= bytes.size();
  if (wanted_ > 0) return absl::OkStatus();
  switch (state_) {
    case State::kGreeting:
      return OnGreeting();
    case State::kReplyHead:
      return OnReplyHead();
    case State::kReplyBody:
      return OnReplyBody();
    case State::kDone:
      break;
  }
  return absl::OkStatus();
}

absl::Status Handshake::OnGreeting() {
  const uint16_t flags = Read<uint16_t>(buffer_, 16);
  if (Read<uint64_t>(buffer_, 0) != kMagic || Read<uint64_t>(buffer_, 8) != kOptionMagic ||
      (flags & kFlagFixedNewstyle) == 0) {
    return absl::UnavailableError("what answers there does not speak NBD (fixed newstyle)");
  }
  Append<uint32_t>(output_, flags & (kFlagFixedNewstyle | kFlagNoZeroes));
  Append<uint64_t>(output_, kOptionMagic);
  Append<uint32_t>(output_, kOptionGo);
  Append<uint32_t>(output_, 4 + 2 + 2);
  Append<uint32_t>(output_, 0);  // length of the export's name
  Append<uint16_t>(output_, 1);  // information requests
  Append<uint16_t>(output_, kInfoBlockSize);
  Expect(State::kReplyHead, kReplyHeadBytes);
  return absl::OkStatus();
}

absl::Status Handshake::OnReplyHead() {
  const uint32_t length = Read<uint32_t>(buffer_, 16);
  reply_type_ = Read<uint32_t>(buffer_, 12);
  if (Read<uint64_t>(buffer_, 0) != kReplyMagic || Read<uint32_t>(buffer_, 8) != kOptionGo ||
      length > kMaxReplyBytes || ++replies_ > kMaxReplies) {
    return absl::UnavailableError("the server's answer to NBD_OPT_GO is damaged");
  }
  Expect(State::kReplyBody, length);
  return length == 0 ? OnReplyBody() : absl::OkStatus();
}

absl::Status Handshake::OnReplyBody() {
  if ((reply_type_ & kReplyErrorBit) != 0) return Refused(reply_type_, buffer_);
  if (reply_type_ == kReplyAck) {
    if (!sized_) return absl::UnavailableError("the server did not say how large the export is");
    Expect(State::kDone, 0);
    return absl::OkStatus();
  }
  if (reply_type_ == kReplyInfo && buffer_.size() >= 2) {
    const uint16_t kind = Read<uint16_t>(buffer_, 0);
    if (kind == kInfoExport && buffer_.size() == 12) {
      info_.size_bytes = Read<uint64_t>(buffer_, 2);
      info_.flags = Read<uint16_t>(buffer_, 10);
      sized_ = true;
    } else if (kind == kInfoBlockSize && buffer_.size() == 14) {
      info_.minimum_block_bytes = Read<uint32_t>(buffer_, 2);
    }
  }
  Expect(State::kReplyHead, kReplyHeadBytes);
  return absl::OkStatus();
}

std::string DisconnectRequest() {
  std::string out;
  Append<uint32_t>(out, kRequestMagic);
  Append<uint16_t>(out, 0);
  Append<uint16_t>(out, kCommandDisconnect);
  Append<uint64_t>(out, 0);  // cookie
  Append<uint64_t>(out, 0);  // offset
  Append<uint32_t>(out, 0);  // length
  return out;
}

}  // namespace braid::attach
