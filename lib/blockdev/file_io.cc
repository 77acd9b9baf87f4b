#include "lib/blockdev/file_io.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "lib/base/units.h"

namespace braid {
namespace {

constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int kZeroRange = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

// A volume has up to a few stripes' worth of parts in one request.
using Parts = absl::InlinedVector<iovec, 16>;

Parts Skip(absl::Span<const iovec> parts, uint64_t done) {
  Parts rest;
  for (const iovec& part : parts) {
    const uint64_t skip = std::min<uint64_t>(done, part.iov_len);
    done -= skip;
    if (skip == part.iov_len) continue;
    rest.push_back({.iov_base = static_cast<char*>(part.iov_base) + skip,
                    .iov_len = static_cast<size_t>(part.iov_len - skip)});
  }
  return rest;
}

int PartCount(absl::Span<const iovec> parts) {
  return static_cast<int>(std::min<size_t>(parts.size(), IOV_MAX));
}

}  // namespace

FileIo::FileIo(UniqueFd fd, const Facts& facts)
    : fd_(std::move(fd)),
      // By descriptor, not by path, which may lead elsewhere by now.
      witness_(open(absl::StrCat("/proc/self/fd/", fd_.get()).c_str(), O_RDONLY | O_CLOEXEC)),
      facts_(facts),
      can_punch_(facts.can_zero_fast) {}

int FileIo::Run(const DeviceIo& io, uint64_t done) {
  if (io.kind == IoKind::kFlush) return Sync();
  if (io.length == 0) return 0;
  switch (io.kind) {
    case IoKind::kRead:
    case IoKind::kWrite:
      return Transfer(io, done);
    case IoKind::kZero:
      return Zero(io);
    case IoKind::kTrim:
      return Trim(io);
    case IoKind::kCache:
      // A hint: what the kernel thinks of it is nobody's failure.
      posix_fadvise(fd_.get(), static_cast<off_t>(io.offset), static_cast<off_t>(io.length),
                    POSIX_FADV_WILLNEED);
      return 0;
    case IoKind::kFlush:
      break;
  }
  return EINVAL;
}

int FileIo::Transfer(const DeviceIo& io, uint64_t done) {
  const bool durable = io.kind == IoKind::kWrite && io.fua;
  if (durable && sync_error() != 0) return sync_error();
  const int fd = fd_.get();
  Parts rest;
  absl::Span<const iovec> parts = io.data;
  while (done < io.length) {
    if (done > 0) {
      rest = Skip(io.data, done);
      parts = rest;
    }
    const auto at = static_cast<off_t>(io.offset + done);
    const ssize_t n = io.kind == IoKind::kRead ? preadv(fd, parts.data(), PartCount(parts), at)
                                               : pwritev2(fd, parts.data(), PartCount(parts), at,
                                                          durable ? RWF_DSYNC : 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      return durable ? NoteSyncFailure(errno, /*by_write=*/true) : errno;
    }
    // The file is shorter than it was when it was opened.
    if (n == 0) return EIO;
    done += static_cast<uint64_t>(n);
  }
  return durable ? AskWitness() : 0;
}

uint64_t FileIo::ReadCached(const DeviceIo& io) {
  if (!can_read_nowait_.load(std::memory_order_relaxed)) return 0;
  const ssize_t n = preadv2(fd_.get(), io.data.data(), PartCount(io.data),
                            static_cast<off_t>(io.offset), RWF_NOWAIT);
  if (n >= 0) return static_cast<uint64_t>(n);
  if (errno == EOPNOTSUPP) can_read_nowait_.store(false, std::memory_order_relaxed);
  return 0;
}

int FileIo::Zero(const DeviceIo& io) {
  if (io.fua && sync_error() != 0) return sync_error();
  if (io.only_fast && !facts_.can_zero_fast) return EOPNOTSUPP;
  // A block device zeroes whole blocks only; the edges are written. The middle goes first,
  // so that a refusal of only_fast has changed nothing.
  const uint64_t align = facts_.zero_alignment;
  const uint64_t end = io.offset + io.length;
  const uint64_t head = (align - io.offset % align) % align;
  const uint64_t middle_end = end - end % align;
  int error = 0;
  if (head >= io.length || io.offset + head >= middle_end) {
    error = WriteZeros(io.offset, io.length);
  } else {
    error = ZeroRange(io.offset + head, middle_end - io.offset - head, io);
    if (error == 0 && head > 0) error = WriteZeros(io.offset, head);
    if (error == 0 && middle_end < end) error = WriteZeros(middle_end, end - middle_end);
  }
  if (error == 0 && io.fua) error = Sync();
  return error;
}

int FileIo::ZeroRange(uint64_t offset, uint64_t length, const DeviceIo& io) {
  if (io.may_unmap && can_punch_.load(std::memory_order_relaxed)) {
    const int error = Fallocate(kPunch, offset, length);
    if (error != EOPNOTSUPP) return error;
    can_punch_.store(false, std::memory_order_relaxed);
  }
  // Not the other way round: a hole is no answer to a caller who wants to keep the space.
  if (can_zero_range_.load(std::memory_order_relaxed)) {
    const int error = Fallocate(kZeroRange, offset, length);
    if (error != EOPNOTSUPP) return error;
    can_zero_range_.store(false, std::memory_order_relaxed);
  }
  return io.only_fast ? EOPNOTSUPP : WriteZeros(offset, length);
}

int FileIo::WriteZeros(uint64_t offset, uint64_t length) {
  // 16 parts of 64 KiB: 1 MiB a call, few calls and a buffer that stays in the L2 cache.
  static constexpr size_t kPartBytes = 64 * kKiB;
  static constexpr size_t kParts = 16;
  static char zeros[kPartBytes];
  while (length > 0) {
    std::array<iovec, kParts> parts{};
    int count = 0;
    for (uint64_t left = length; left > 0 && count < static_cast<int>(kParts); ++count) {
      const size_t bytes = std::min<uint64_t>(left, kPartBytes);
      parts[static_cast<size_t>(count)] = {.iov_base = zeros, .iov_len = bytes};
      left -= bytes;
    }
    const ssize_t n = pwritev(fd_.get(), parts.data(), count, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;
    offset += static_cast<uint64_t>(n);
    length -= static_cast<uint64_t>(n);
  }
  return 0;
}

int FileIo::Trim(const DeviceIo& io) {
  if (io.fua && sync_error() != 0) return sync_error();
  if (!facts_.can_trim || !can_punch_.load(std::memory_order_relaxed)) return 0;
  // Blocks that are only partly within the range keep their bytes.
  const uint64_t align = facts_.zero_alignment;
  const uint64_t from = io.offset + (align - io.offset % align) % align;
  const uint64_t end = (io.offset + io.length) / align * align;
  if (from >= end) return 0;
  const int error = Fallocate(kPunch, from, end - from);
  if (error == EOPNOTSUPP) {
    can_punch_.store(false, std::memory_order_relaxed);
    return 0;
  }
  if (error != 0) return error;
  return io.fua ? Sync() : 0;
}

int FileIo::Fallocate(int mode, uint64_t offset, uint64_t length) {
  // Starting over after a signal zeroes some of it twice.
  int error = 0;
  do {
    error = fallocate(fd_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0
                ? 0
                : errno;
  } while (error == EINTR);
  return error;
}

int FileIo::FallocateMode(const DeviceIo& io) const {
  const uint64_t align = facts_.zero_alignment;
  if (io.offset % align != 0 || io.length % align != 0 || io.length == 0) return -1;
  const bool punch = can_punch_.load(std::memory_order_relaxed);
  if (io.kind == IoKind::kTrim) return punch && facts_.can_trim ? kPunch : -1;
  if (io.only_fast && !facts_.can_zero_fast) return -1;
  if (io.may_unmap && punch) return kPunch;
  return can_zero_range_.load(std::memory_order_relaxed) ? kZeroRange : -1;
}

int FileIo::Sync() {
  if (sync_error() != 0) return sync_error();
  // Not again after EINTR either: the first call may have taken the error with it.
  if (fdatasync(fd_.get()) != 0) return NoteSyncFailure(errno, /*by_write=*/false);
  return AskWitness();
}

int FileIo::AskWitness() {
  // Of a range where no file has pages: it waits for nothing, and tells of all the file.
  constexpr off_t kBeyond = off_t{1} << 62;
  if (!witness_.valid()) return sync_error();
  const MutexLock lock(&witness_mu_);
  if (sync_file_range(witness_.get(), kBeyond, 1, SYNC_FILE_RANGE_WAIT_BEFORE) != 0) {
    NoteSyncFailure(errno, /*by_write=*/false);
  }
  return sync_error();
}

int FileIo::NoteSyncFailure(int error, bool by_write) {
  // A regular file's space is set aside before a write is taken, so a FUA write that finds
  // none was refused in the copy and nothing that was taken before is lost.
  const bool refused = by_write && !facts_.block_device && (error == ENOSPC || error == EDQUOT);
  if (!refused) sync_failed_.store(true, std::memory_order_release);
  return error;
}

}  // namespace braid
