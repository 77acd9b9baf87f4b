// Open files of one device, of which each sync uses one alone.
//
// Linux tells of a page that could not be written back once for each open file
// (Documentation/filesystems/vfs.rst, "Handling errors during writeback"). Were two syncs
// under way on one open file, one of them would take the error and the other would answer
// success for data that is lost, before anybody could note it. On open files of their own
// both are told.
#ifndef BRAID_LIB_BLOCKDEV_SYNC_HANDLES_H_
#define BRAID_LIB_BLOCKDEV_SYNC_HANDLES_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"
#include "lib/base/unique_fd.h"

namespace braid {

class SyncHandles {
 public:
  // At first; more are opened as syncs meet. Few, for a striped volume has hundreds of
  // devices. A sync that opens its own in the moment between another's being told of an
  // error and noting it can still miss it.
  static constexpr int kReady = 4;

  // `fd` is open for writing and outlives this.
  explicit SyncHandles(int fd);

  // A file that nobody else syncs on until Return. Where no more can be opened (no /proc,
  // too many open files) it is `fd` itself, and others may have it too. Never waits.
  // Thread-safe.
  int Take();
  void Return(int handle);

 private:
  UniqueFd OpenAnother() const;

  const int fd_;
  Mutex mu_;
  std::vector<UniqueFd> all_ ABSL_GUARDED_BY(mu_);
  std::vector<int> free_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_SYNC_HANDLES_H_
