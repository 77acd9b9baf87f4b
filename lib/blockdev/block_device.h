// A device that holds bytes: the one interface below the volume.
//
// A request is a DeviceIo, kept by the caller until it completes, and belongs to an
// IoGroup, which waits for all of its requests. A device may complete a request inside
// Submit (a page-cache read does) or later, from any thread; a caller that submits to
// several devices and then waits has them all in flight at once.
//
//   IoGroup group(2);
//   DeviceIo a{.kind = IoKind::kWrite, …}, b = a;
//   leg0.Submit(a, group); leg1.Submit(b, group);
//   group.Wait();                       // then a.error and b.error are set
#ifndef BRAID_LIB_BLOCKDEV_BLOCK_DEVICE_H_
#define BRAID_LIB_BLOCKDEV_BLOCK_DEVICE_H_

#include <sys/uio.h>

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "lib/blockdev/io_group.h"

namespace braid {

enum class IoKind : uint8_t {
  kRead,
  kWrite,
  kZero,   // reads as zeros afterwards
  kTrim,   // may read as zeros or as before; the space may go back; never EOPNOTSUPP
  kFlush,  // all requests completed before this one was submitted are durable after
  kCache,  // a hint that the range will be read soon
};

struct DeviceIo {
  IoKind kind = IoKind::kRead;
  // kWrite, kZero, kTrim: durable before it completes.
  bool fua = false;
  // kZero: the space may be given back (thin), rather than kept allocated.
  bool may_unmap = false;
  // kZero: complete with EOPNOTSUPP rather than write the zeros out one by one.
  bool only_fast = false;
  uint64_t offset = 0;  // bytes from the device's first byte
  uint64_t length = 0;  // bytes; the sum of `data` for kRead and kWrite; 0 is no work
  // kRead, kWrite: memory that outlives the request. At most IOV_MAX parts.
  absl::Span<const iovec> data;
  // Result: 0, or an errno. A short read or write is EIO, never a short count.
  int error = 0;
};

struct DeviceTraits {
  uint64_t size_bytes = 0;
  // Offsets, lengths and memory of requests must be multiples of this (1: any).
  uint32_t required_alignment = 1;
  // kTrim does something. Where false it completes with success and no effect.
  bool can_trim = false;
  // kZero with only_fast has a chance.
  bool can_zero_fast = false;
  bool rotational = false;
};

// The range lies within the device, the parts of `data` make up `length`, and all are
// aligned as required: what a device checks before it looks at a request.
bool IsWellFormed(const DeviceIo& io, const DeviceTraits& traits);

class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  // Constant while the device is open. Thread-safe.
  virtual const DeviceTraits& traits() const = 0;
  // For people: a path or a URI.
  virtual const std::string& name() const = 0;

  // Starts `io`, which completes exactly once by group.Complete(). What is not
  // IsWellFormed completes with EINVAL. Thread-safe; requests that overlap and are in flight
  // together take effect in any order.
  virtual void Submit(DeviceIo& io, IoGroup& group) = 0;

  // Calls fn(offset, length, is_hole) over [offset, offset + length) in order, until fn
  // returns false; a hole reads as zeros. May report data where there is a hole.
  // Thread-safe.
  virtual absl::Status Extents(uint64_t offset, uint64_t length,
                               absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) = 0;

  // For callers off the request path: one request, waited for.
  absl::Status Read(uint64_t offset, absl::Span<char> data);
  absl::Status Write(uint64_t offset, absl::Span<const char> data);
  absl::Status Zero(uint64_t offset, uint64_t length, bool may_unmap);
  absl::Status Flush();

 private:
  absl::Status RunOne(DeviceIo& io, const char* verb);
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_BLOCK_DEVICE_H_
