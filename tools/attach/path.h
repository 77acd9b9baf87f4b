// How the volume shows itself on this machine besides the NBD socket: the seam between the
// supervisor and each kind of path.
#ifndef BRAID_TOOLS_ATTACH_PATH_H_
#define BRAID_TOOLS_ATTACH_PATH_H_

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace braid::attach {

enum class Urgency {
  kAsk,    // refuse while somebody uses the path
  kForce,  // take it from them
  kExit,   // we end in any case; leave as much standing as can stand without us
};

// At most one of Up and Down is under way at a time. Nothing blocks; `done` is called once,
// from the loop or from within the call.
class ClientPath {
 public:
  using Done = std::function<void(absl::Status)>;

  virtual ~ClientPath() = default;

  // The server answers: make the path, or, when it was made before, put this server behind
  // it. `done` is not called when ServerLost() or Down() comes before.
  virtual void Up(Done done) = 0;
  // The server has ended; another may follow.
  virtual void ServerLost() = 0;
  // FailedPrecondition, naming who uses it, leaves everything as it was.
  virtual void Down(Urgency urgency, Done done) = 0;
  // Absolute; "" while there is none.
  virtual std::string path() const = 0;
};

// The socket itself is all the client wants. It is in use while a client is connected.
class SocketPath : public ClientPath {
 public:
  // `user` says who is connected; "" for nobody.
  explicit SocketPath(std::function<std::string()> user) : user_(std::move(user)) {}

  void Up(Done done) override { done(absl::OkStatus()); }
  void ServerLost() override {}
  void Down(Urgency urgency, Done done) override {
    const std::string user = urgency == Urgency::kAsk ? user_() : "";
    if (user.empty()) return done(absl::OkStatus());
    done(absl::FailedPreconditionError("the socket is in use: " + user +
                                       "; release it first, or detach with force"));
  }
  std::string path() const override { return ""; }

 private:
  const std::function<std::string()> user_;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_PATH_H_
