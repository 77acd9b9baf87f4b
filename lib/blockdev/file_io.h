// One request on one file descriptor, done in place by the calling thread.
//
// After a failed sync the kernel may have dropped the pages it could not write, and calls
// them clean. So the first failed sync (fdatasync, or a write with RWF_DSYNC) closes the
// file for durability: every later flush and FUA request fails with EIO until the device is
// opened again. Plain reads and writes go on.
//
// Linux tells of a lost page once for each open file (Documentation/filesystems/vfs.rst,
// "Handling errors during writeback"). Of two syncs under way on one open file, one takes
// the error and the other may answer success, and do so before the first has noted it here.
// Therefore a sync that the kernel calls good then asks a second open file, the witness, on
// which nobody syncs and which every page lost since it was opened is still news to: asking
// and noting are one step. A page is known as lost before anybody's wait for it ends, so a
// sync whose data are lost finds either the news or the note.
#ifndef BRAID_LIB_BLOCKDEV_FILE_IO_H_
#define BRAID_LIB_BLOCKDEV_FILE_IO_H_

#include <atomic>
#include <cstdint>

#include "lib/base/mutex.h"
#include "lib/base/unique_fd.h"
#include "lib/blockdev/block_device.h"

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
  // 0 as long as no sync failed.
  int sync_error() const { return sync_failed_.load(std::memory_order_acquire) ? EIO : 0; }
  // Notes a failed write with RWF_DSYNC or fdatasync. Returns `error`.
  int NoteSyncFailure(int error, bool by_write);
  // To be called when a sync has succeeded, before that is believed; its error.
  int AskWitness();
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
  // Not valid where it cannot be opened (no /proc, too many open files): then a sync that
  // overlaps a failed one may be told that all is well.
  const UniqueFd witness_;
  Mutex witness_mu_;  // held from an answer of the witness until it is noted
  const Facts facts_;
  // Cleared when the kernel says EOPNOTSUPP, so as not to ask again.
  std::atomic<bool> can_punch_;
  std::atomic<bool> can_zero_range_{true};
  std::atomic<bool> can_read_nowait_{true};
  std::atomic<bool> sync_failed_{false};
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_FILE_IO_H_
