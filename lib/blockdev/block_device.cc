#include "lib/blockdev/block_device.h"

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"

namespace braid {

bool IsWellFormed(const DeviceIo& io, const DeviceTraits& traits) {
  if (io.kind == IoKind::kFlush) return true;
  if (!RangeFits(io.offset, io.length, traits.size_bytes)) return false;
  const uint64_t align = traits.required_alignment;
  if (align > 1 && (io.offset % align != 0 || io.length % align != 0)) return false;
  if (io.kind != IoKind::kRead && io.kind != IoKind::kWrite) return true;
  uint64_t left = io.length;
  for (const iovec& part : io.data) {
    if (part.iov_len > left) return false;
    left -= part.iov_len;
    if (align > 1 &&
        (part.iov_len % align != 0 || reinterpret_cast<uintptr_t>(part.iov_base) % align != 0)) {
      return false;
    }
  }
  return left == 0;
}

absl::Status BlockDevice::RunOne(DeviceIo& io, const char* verb) {
  IoGroup group(1);
  Submit(io, group);
  group.Wait();
  if (io.error == 0) return absl::OkStatus();
  return ErrnoStatus(io.error, absl::StrCat("cannot ", verb, " device ", name(), " at ", io.offset,
                                            ", ", io.length, " bytes"));
}

absl::Status BlockDevice::Read(uint64_t offset, absl::Span<char> data) {
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  DeviceIo io{.kind = IoKind::kRead,
              .offset = offset,
              .length = data.size(),
              .data = absl::MakeConstSpan(&part, 1)};
  return RunOne(io, "read");
}

absl::Status BlockDevice::Write(uint64_t offset, absl::Span<const char> data) {
  const iovec part{.iov_base = const_cast<char*>(data.data()), .iov_len = data.size()};
  DeviceIo io{.kind = IoKind::kWrite,
              .offset = offset,
              .length = data.size(),
              .data = absl::MakeConstSpan(&part, 1)};
  return RunOne(io, "write");
}

absl::Status BlockDevice::Zero(uint64_t offset, uint64_t length, bool may_unmap) {
  DeviceIo io{.kind = IoKind::kZero, .may_unmap = may_unmap, .offset = offset, .length = length};
  return RunOne(io, "zero");
}

absl::Status BlockDevice::Flush() {
  DeviceIo io{.kind = IoKind::kFlush};
  return RunOne(io, "flush");
}

}  // namespace braid
