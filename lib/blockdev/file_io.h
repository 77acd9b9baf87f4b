// One request on one file descriptor, done in place by the calling thread.
//
// After a failed sync the kernel may have dropped the pages it could not write, reports
// that once, to whichever sync on this descriptor comes first, and then says "clean". So
// the first failed sync (fdatasync, or a write with RWF_DSYNC) closes the file for
// durability: every later flush and FUA request fails with EIO until the device is opened
// again. Plain reads and writes go on.
//
// One gap remains: of two syncs in flight at once the kernel may tell one of a failure,
// and the other succeed and complete before the first has noted it here. Whoever lets
// flushes and FUA writes of one device run at once takes a sync's success as final only
// when none that overlapped it failed.
#ifndef BRAID_LIB_BLOCKDEV_FILE_IO_H_
#define BRAID_LIB_BLOCKDEV_FILE_IO_H_

#include <atomic>
#include <cstdint>

#include "lib/base/unique_fd.h"
#include "lib/blockdev/block_device.h"
#include "lib/blockdev/sync_handles.h"

namespace braid {

class FileIo {
 public:
  struct Facts {
    bool block_device = false;
    // What fallocate on this file wants offsets and lengths to be multiples of.
    uint32_t zero_alignment = 1;
    bool can_trim = false;
    bool can_zero_fast = false;
  };

  FileIo(UniqueFd fd, const Facts& facts);

  // Runs what is left of `io` after its first `done` bytes (kRead, kWrite) and returns
  // its error. `io` is well formed. Thread-safe.
  int Run(const DeviceIo& io, uint64_t done = 0);

  // kRead: what the page cache has, without waiting; the count of bytes, from 0.
  uint64_t ReadCached(const DeviceIo& io);

  // For a caller that issues the system calls otherwise (io_uring):
  int fd() const { return fd_.get(); }
  // What syncs (kFlush, and anything with FUA) use instead, each its own.
  SyncHandles& sync_handles() { return sync_handles_; }
  // 0 as long as no sync failed.
  int sync_error() const { return sync_failed_.load(std::memory_order_acquire) ? EIO : 0; }
  // Notes a failed write with RWF_DSYNC or fdatasync. Returns `error`.
  int NoteSyncFailure(int error, bool by_write);
  // The fallocate mode that does this kZero or kTrim whole, or -1 when Run has to find a way.
  int FallocateMode(const DeviceIo& io) const;

 private:
  int Transfer(const DeviceIo& io, uint64_t done);
  int Zero(const DeviceIo& io);
  int ZeroRange(uint64_t offset, uint64_t length, const DeviceIo& io);
  int WriteZeros(uint64_t offset, uint64_t length);
  int Trim(const DeviceIo& io);
  int Fallocate(int mode, uint64_t offset, uint64_t length);
  int Sync();

  const UniqueFd fd_;
  SyncHandles sync_handles_;
  const Facts facts_;
  // Cleared when the kernel says EOPNOTSUPP, so as not to ask again.
  std::atomic<bool> can_punch_;
  std::atomic<bool> can_zero_range_{true};
  std::atomic<bool> can_read_nowait_{true};
  std::atomic<bool> sync_failed_{false};
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_FILE_IO_H_
