#include "lib/blockdev/file_device.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"
#include "lib/base/units.h"
#include "lib/blockdev/device_probe.h"
#include "lib/blockdev/file_io.h"
#include "lib/blockdev/thread_ring.h"

namespace braid {
namespace {

class FileDevice final : public BlockDevice, private RingClient {
 public:
  FileDevice(UniqueFd fd, const std::string& path, const DeviceProbe& probe,
             const FileDeviceOptions& options)
      : io_(std::move(fd), probe.facts),
        name_(path),
        options_(options),
        traits_{.size_bytes = probe.size_bytes,
                .can_trim = probe.facts.can_trim,
                .can_zero_fast = probe.facts.can_zero_fast,
                .rotational = probe.rotational} {}

  const DeviceTraits& traits() const override { return traits_; }
  const std::string& name() const override { return name_; }

  void Submit(DeviceIo& io, IoGroup& group) override {
    io.error = Check(io);
    Way way = Way::kDone;
    if (io.error == 0) way = group.expected() > 1 ? ChooseWay(io) : Way::kInPlace;
    if (way == Way::kRing && StartOnRing(io, group)) return;
    if (way != Way::kDone) io.error = io_.Run(io);
    group.Complete();
  }

  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) override;

 private:
  // The steps of a request on the ring.
  enum Step { kMain = 0, kSyncAfter = 1 };

  int Check(const DeviceIo& io) const {
    if (!IsWellFormed(io, traits_)) return EINVAL;
    const bool changes =
        io.kind == IoKind::kWrite || io.kind == IoKind::kZero || io.kind == IoKind::kTrim;
    return changes && options_.read_only ? EROFS : 0;
  }

  enum class Way : uint8_t { kDone, kInPlace, kRing };
  // For a request that has company in its group.
  Way ChooseWay(const DeviceIo& io);
  bool StartOnRing(DeviceIo& io, IoGroup& group);
  void RingDone(ThreadRing& ring, RingOp& op, int result) override;
  int AfterMain(const RingOp& op, int result);

  FileIo io_;
  const std::string name_;
  const FileDeviceOptions options_;
  const DeviceTraits traits_;
};

FileDevice::Way FileDevice::ChooseWay(const DeviceIo& io) {
  if (io.kind == IoKind::kFlush) return Way::kRing;
  if (io.kind == IoKind::kCache || io.length == 0 || io.data.size() > IOV_MAX) {
    return Way::kInPlace;
  }
  switch (io.kind) {
    case IoKind::kRead:
      if (io.length >= options_.ring_from_bytes) return Way::kRing;
      return io_.ReadCached(io) == io.length ? Way::kDone : Way::kRing;
    case IoKind::kWrite:
      return io.fua || io.length >= options_.ring_from_bytes ? Way::kRing : Way::kInPlace;
    default:
      return io_.FallocateMode(io) >= 0 ? Way::kRing : Way::kInPlace;
  }
}

// False: it is to be done in place.
bool FileDevice::StartOnRing(DeviceIo& io, IoGroup& group) {
  const bool syncs = io.fua || io.kind == IoKind::kFlush;
  if (syncs && io_.sync_error() != 0) return false;
  ThreadRing* ring = ThreadRing::Get();
  if (ring == nullptr) return false;
  if (group.driven() > 0 && group.driven() + 1 == group.expected()) {
    // The last of the legs is this thread's own work while the kernel does the others.
    ring->Push();
    return false;
  }
  RingOp& op = ring->Start(*this, io, group);
  io_uring_sqe& sqe = ring->Sqe(op);
  switch (io.kind) {
    case IoKind::kRead:
      io_uring_prep_readv(&sqe, io_.fd(), io.data.data(), static_cast<unsigned>(io.data.size()),
                          io.offset);
      break;
    case IoKind::kWrite:
      io_uring_prep_writev2(&sqe, io_.fd(), io.data.data(), static_cast<unsigned>(io.data.size()),
                            io.offset, io.fua ? RWF_DSYNC : 0);
      break;
    case IoKind::kZero:
    case IoKind::kTrim:
      io_uring_prep_fallocate(&sqe, io_.fd(), io_.FallocateMode(io), static_cast<off_t>(io.offset),
                              static_cast<off_t>(io.length));
      break;
    case IoKind::kFlush:
      io_uring_prep_fsync(&sqe, io_.fd(), IORING_FSYNC_DATASYNC);
      break;
    case IoKind::kCache:
      break;
  }
  // Copies are not to be tried inline first, where they would follow one another in this
  // thread. A read that waits for the device needs no worker: the page cache wakes it.
  if (io.kind != IoKind::kRead || io.length >= options_.ring_from_bytes) {
    sqe.flags |= IOSQE_ASYNC;
  }
  return true;
}

void FileDevice::RingDone(ThreadRing& ring, RingOp& op, int result) {
  const DeviceIo& io = op.io();
  int error = 0;
  if (op.step == kSyncAfter || io.kind == IoKind::kFlush) {
    error = result < 0 ? io_.NoteSyncFailure(-result, /*by_write=*/false) : io_.AskWitness();
  } else {
    error = AfterMain(op, result);
    const bool range = io.kind == IoKind::kZero || io.kind == IoKind::kTrim;
    if (range && result == 0 && io.fua) {
      op.step = kSyncAfter;
      io_uring_sqe& sqe = ring.Sqe(op);
      io_uring_prep_fsync(&sqe, io_.fd(), IORING_FSYNC_DATASYNC);
      return;
    }
  }
  ring.Finish(op, error);
}

// What the ring did not do in one go is rare; the rest is done here and now.
int FileDevice::AfterMain(const RingOp& op, int result) {
  const DeviceIo& io = op.io();
  if (io.kind == IoKind::kZero || io.kind == IoKind::kTrim) {
    const bool again = result == -EOPNOTSUPP || result == -EINTR || result == -EAGAIN;
    return again ? io_.Run(io) : -result;
  }
  if (result < 0) {
    if (result == -EINTR || result == -EAGAIN) return io_.Run(io);
    const bool durable = io.kind == IoKind::kWrite && io.fua;
    return durable ? io_.NoteSyncFailure(-result, /*by_write=*/true) : -result;
  }
  if (result == 0) return EIO;
  return io_.Run(io, static_cast<uint64_t>(result));
}

absl::Status FileDevice::Extents(uint64_t offset, uint64_t length,
                                 absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) {
  if (!RangeFits(offset, length, traits_.size_bytes)) {
    return ErrnoStatus(EINVAL, "extents beyond the end of " + name_);
  }
  const uint64_t end = offset + length;
  while (offset < end) {
    // Block devices, and file systems that do not know, answer that all is data.
    const off_t data = lseek(io_.fd(), static_cast<off_t>(offset), SEEK_DATA);
    uint64_t data_at = offset;
    if (data >= 0) {
      data_at = std::max(offset, std::min(end, static_cast<uint64_t>(data)));
    } else if (errno == ENXIO) {
      data_at = end;  // no data from here to the end of the file
    } else if (errno != EINVAL) {
      return ErrnoStatus(errno, "cannot find the holes of " + name_);
    }
    if (data_at > offset && !fn(offset, data_at - offset, true)) break;
    if (data_at == end) break;
    const off_t hole = lseek(io_.fd(), static_cast<off_t>(data_at), SEEK_HOLE);
    uint64_t hole_at = end;
    if (hole >= 0) hole_at = std::min(end, static_cast<uint64_t>(hole));
    // Punched between the two questions: ask again from the same place.
    if (hole_at <= data_at) {
      offset = data_at;
      continue;
    }
    if (!fn(data_at, hole_at - data_at, false)) break;
    offset = hole_at;
  }
  return absl::OkStatus();
}

absl::Status OpenError(int error, const std::string& path) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ENXIO:
    case ENODEV:
      return absl::NotFoundError(absl::StrCat("there is no device ", path, "; check the path"));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(
          absl::StrCat("may not open device ", path, "; run as its owner or as root"));
    case EROFS:
      return absl::PermissionDeniedError(
          absl::StrCat("device ", path, " is read-only; make it writable or give another"));
    case EBUSY:
      return absl::FailedPreconditionError(absl::StrCat(
          "device ", path,
          " is in use (mounted, swap, RAID, or open elsewhere); release it or give another"));
    default:
      return ErrnoStatus(error, absl::StrCat("cannot open device ", path));
  }
}

absl::Status CheckType(const struct stat& st, const std::string& path) {
  if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is neither a regular file nor a block device; give one of these"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const std::string& path,
                                                            const FileDeviceOptions& options) {
  if (path.find('\0') != std::string::npos) return OpenError(ENOENT, absl::CHexEscape(path));
  // Looked at first: opening a FIFO blocks, and opening a tape or a terminal acts on it.
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) return OpenError(errno, path);
  if (absl::Status s = CheckType(st, path); !s.ok()) return s;

  int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (options.read_only ? O_RDONLY : O_RDWR);
  if (options.exclusive && S_ISBLK(st.st_mode)) flags |= O_EXCL;
  UniqueFd fd(open(path.c_str(), flags));
  if (!fd.valid()) return OpenError(errno, path);
  // Only the open was not to wait; io_uring would take it to mean the requests too.
  if (fcntl(fd.get(), F_SETFL, 0) != 0) return OpenError(errno, path);
  // And again: the path may mean something else by now.
  if (fstat(fd.get(), &st) != 0) return OpenError(errno, path);
  if (absl::Status s = CheckType(st, path); !s.ok()) return s;
  if (options.exclusive && S_ISREG(st.st_mode)) {
    if (absl::Status s = CheckFileUnused(st, path); !s.ok()) return s;
  }
  absl::StatusOr<DeviceProbe> probe = ProbeDevice(fd.get(), st, options.read_only, path);
  if (!probe.ok()) return probe.status();
  return std::make_unique<FileDevice>(std::move(fd), path, *probe, options);
}

}  // namespace braid
