#include "lib/blockdev/sync_handles.h"

#include <fcntl.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid {

SyncHandles::SyncHandles(int fd) : fd_(fd) {
  const MutexLock lock(&mu_);
  for (int i = 0; i < kReady; ++i) {
    UniqueFd handle = OpenAnother();
    if (!handle.valid()) break;
    free_.push_back(handle.get());
    all_.push_back(std::move(handle));
  }
}

UniqueFd SyncHandles::OpenAnother() const {
  // By descriptor, not by path, which may lead elsewhere by now.
  return UniqueFd(open(absl::StrCat("/proc/self/fd/", fd_).c_str(), O_RDWR | O_CLOEXEC));
}

int SyncHandles::Take() {
  {
    const MutexLock lock(&mu_);
    if (!free_.empty()) {
      const int handle = free_.back();
      free_.pop_back();
      return handle;
    }
  }
  UniqueFd handle = OpenAnother();
  if (!handle.valid()) return fd_;
  const int taken = handle.get();
  const MutexLock lock(&mu_);
  all_.push_back(std::move(handle));
  return taken;
}

void SyncHandles::Return(int handle) {
  if (handle == fd_) return;
  const MutexLock lock(&mu_);
  free_.push_back(handle);
}

}  // namespace braid
