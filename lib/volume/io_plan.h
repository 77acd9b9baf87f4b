// Gathers the parts of a client request into as few device requests as it takes, and
// runs them all at once.
#ifndef BRAID_LIB_VOLUME_IO_PLAN_H_
#define BRAID_LIB_VOLUME_IO_PLAN_H_

#include <sys/uio.h>

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"
#include "lib/mapping/split.h"

namespace braid {

class IoPlan {
 public:
  // One piece on one leg.
  struct Part {
    Piece piece;
    uint32_t leg = 0;
    uint32_t io = 0;  // index of the device request it went into
    iovec data{};
  };

  // Every device request of the plan is a copy of `request` with its own range and data.
  explicit IoPlan(const DeviceIo& request) : request_(request) {}

  // A part of piece.length bytes at `device_offset`. It joins the request before it on
  // that device when it follows on there. `buffer` is null for requests without data.
  void Add(const Piece& piece, uint32_t leg, DeviceIndex device, uint64_t device_offset,
           char* buffer);

  // Submits every request, then waits for all. `device_of` gives the device of an index.
  // Returns whether all succeeded.
  bool Run(absl::FunctionRef<BlockDevice&(DeviceIndex)> device_of);

  // After Run.
  struct DeviceRequest {
    DeviceIndex device;
    uint32_t parts = 0;
    DeviceIo io;
  };
  absl::Span<const Part> parts() const { return parts_; }
  absl::Span<const DeviceRequest> requests() const { return requests_; }
  int error(const Part& part) const { return requests_[part.io].io.error; }
  DeviceIndex device(const Part& part) const { return requests_[part.io].device; }

 private:
  void GatherData();

  // Inline sizes: four legs of a request in one extent need no allocation.
  const DeviceIo request_;
  absl::InlinedVector<Part, 4> parts_;
  absl::InlinedVector<DeviceRequest, 4> requests_;
  absl::InlinedVector<iovec, 4> vectors_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_IO_PLAN_H_
