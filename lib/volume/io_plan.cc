#include "lib/volume/io_plan.h"

#include <climits>

namespace braid {

void IoPlan::Add(const Piece& piece, uint32_t leg, DeviceIndex device, uint64_t device_offset,
                 char* buffer) {
  // The latest request on a device is the only one that can still grow: parts arrive in
  // volume order, and a column's offsets rise with the volume's.
  uint32_t at = static_cast<uint32_t>(requests_.size());
  for (uint32_t i = at; i-- > 0;) {
    if (requests_[i].device != device) continue;
    const DeviceIo& io = requests_[i].io;
    if (io.offset + io.length == device_offset && requests_[i].parts < IOV_MAX) at = i;
    break;
  }
  if (at == requests_.size()) {
    requests_.push_back({device, 0, request_});
    requests_.back().io.offset = device_offset;
    requests_.back().io.length = 0;
  }
  requests_[at].io.length += piece.length;
  ++requests_[at].parts;
  parts_.push_back({piece, leg, at, {buffer, piece.length}});
}

void IoPlan::GatherData() {
  vectors_.resize(parts_.size());
  absl::InlinedVector<size_t, 4> next(requests_.size());
  size_t sum = 0;
  for (size_t i = 0; i < requests_.size(); ++i) {
    next[i] = sum;
    requests_[i].io.data = absl::MakeConstSpan(vectors_).subspan(sum, requests_[i].parts);
    sum += requests_[i].parts;
  }
  for (const Part& part : parts_) vectors_[next[part.io]++] = part.data;
}

bool IoPlan::Run(absl::FunctionRef<BlockDevice&(DeviceIndex)> device_of) {
  if (request_.kind == IoKind::kRead || request_.kind == IoKind::kWrite) GatherData();
  IoGroup group(static_cast<uint32_t>(requests_.size()));
  for (DeviceRequest& request : requests_) device_of(request.device).Submit(request.io, group);
  group.Wait();
  for (const DeviceRequest& request : requests_) {
    if (request.io.error != 0) return false;
  }
  return true;
}

}  // namespace braid
