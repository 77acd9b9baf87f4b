// The volume as one file, by nbdfuse.
//
// nbdfuse aborts the connection to a server that died and never makes another, so its mount
// goes with its server: whoever has the file open gets errors, and the next server gets a
// new nbdfuse and a new mount at the same place. (Issue 4 puts something in between.)
#ifndef BRAID_TOOLS_ATTACH_PATH_FUSE_H_
#define BRAID_TOOLS_ATTACH_PATH_FUSE_H_

#include <string>

#include "absl/status/status.h"
#include "lib/base/unique_fd.h"
#include "tools/attach/child.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/log.h"
#include "tools/attach/path.h"

namespace braid::attach {

class FusePath : public ClientPath {
 public:
  struct Options {
    std::string socket_path;
    // The file to appear. With `own_folder`, in that folder, which is ours, made and removed
    // here; else the file itself is mounted over, and made, empty, if it is missing.
    std::string file;
    std::string own_folder;
    bool read_only = false;
    int connections = 1;
  };
  // `broken` is called when nbdfuse ends though nobody asked it to and its server lives.
  FusePath(EventLoop* loop, Log* log, Options options, Done broken);
  ~FusePath() override;

  // Before the first Up: removes a mount that a braid-attach which was killed left, and makes
  // the place to mount on.
  absl::Status Prepare();

  void Up(Done done) override;
  void ServerLost() override;
  void Down(Urgency urgency, Done done) override;
  std::string path() const override { return shown() ? options_.file : ""; }

 private:
  enum class State {
    kIdle,      // nothing runs, nothing is mounted
    kStarting,  // nbdfuse runs, the mount has not appeared
    kMounted,
    kClearing,  // its server is dead: nbdfuse is being killed, then the mount removed
    kUnmounting,
    kLeaving,  // unmounted; nbdfuse is about to end
  };

  bool shown() const { return state_ == State::kMounted || state_ == State::kUnmounting; }
  const std::string& mount_point() const {
    return options_.own_folder.empty() ? options_.file : options_.own_folder;
  }
  void StartNbdfuse();
  void OnMountsChanged();
  void OnNbdfuseEnded(const absl::Status& how);
  void Unmount(bool lazy);
  void OnUnmounted(bool lazy, const absl::Status& how);
  void Detached();
  void Idle();
  void SetDeadline(absl::Duration limit, EventLoop::Callback late);

  EventLoop* const loop_;
  Log* const log_;
  const Options options_;
  const Done broken_;
  Child nbdfuse_;
  Child fusermount_;
  UniqueFd mounts_;  // /proc/self/mountinfo, which poll(2) reports changes of
  State state_ = State::kIdle;
  bool made_file_ = false;
  bool up_wanted_ = false;    // Up() came while clearing
  bool server_lost_ = false;  // it died while unmounting
  Done up_done_;
  Done down_done_;
  std::string failure_;  // why nbdfuse is being cleared away
  EventLoop::TimerId deadline_ = 0;
};

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_PATH_FUSE_H_
