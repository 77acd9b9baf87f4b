// The attachment's control socket, for the `braid` command: lines in, lines out.
//
//   status\n         one line of JSON
//   detach\n         "progress …" lines, then "ok" or "error …"
//   detach force\n   the same
//
// Whoever talks here costs the supervisor nothing it could miss: at most kMaxClients, each
// with one line of kMaxLineBytes, kIdleLimit to say it, and kMaxPendingBytes of answers it
// has not read; who exceeds any of these is hung up on.
#ifndef BRAID_TOOLS_ATTACH_CONTROL_SOCKET_H_
#define BRAID_TOOLS_ATTACH_CONTROL_SOCKET_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/unix_socket.h"

namespace braid::attach {

class ControlSocket {
 public:
  static constexpr size_t kMaxClients = 32;
  static constexpr size_t kMaxLineBytes = 256;
  static constexpr size_t kMaxPendingBytes = size_t{64} * 1024;
  static constexpr absl::Duration kIdleLimit = absl::Seconds(10);

  struct Commands {
    std::function<std::string()> status;
    // The answers come by Progress and EndDetach.
    std::function<void(bool force)> detach;
  };

  ControlSocket(EventLoop* loop, Commands commands);
  ~ControlSocket() { Close(); }
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

  absl::Status Listen(const std::string& path);
  // Removes the socket; who is connected stays.
  void StopListening();
  void Close();

  // To every client that asked for the detach.
  void Progress(absl::string_view text);
  void EndDetach(const absl::Status& status);

 private:
  struct Client {
    UniqueFd fd;
    std::string input;
    std::string output;
    bool detaching = false;
    EventLoop::TimerId idle = 0;
  };

  void OnAccept();
  void OnClient(uint64_t id, short revents);
  void RunLine(uint64_t id, const std::string& line);
  void Send(uint64_t id, absl::string_view line);
  void Flush(uint64_t id);
  void RestartIdle(uint64_t id);
  void Drop(uint64_t id);

  EventLoop* const loop_;
  const Commands commands_;
  ListeningSocket listening_;
  std::map<uint64_t, Client> clients_;  // by order of arrival
  uint64_t next_id_ = 1;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_CONTROL_SOCKET_H_
