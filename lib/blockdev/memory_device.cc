// Chunks that exist once written, spread over shards by index; a request holds one shard's
// lock for one chunk at a time. So requests that overlap are each whole within a chunk and
// in any order across chunks, as on a disk that tears at chunk boundaries.
#include "lib/blockdev/memory_device.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "lib/base/checked.h"
#include "lib/base/errno_status.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"

namespace braid {
namespace {

constexpr uint64_t kChunkBytes = 64 * kKiB;
constexpr size_t kShards = 64;

class MemoryDevice final : public BlockDevice {
 public:
  MemoryDevice(std::string name, uint64_t size_bytes)
      : name_(std::move(name)),
        traits_{.size_bytes = size_bytes, .can_trim = true, .can_zero_fast = true} {}

  const DeviceTraits& traits() const override { return traits_; }
  const std::string& name() const override { return name_; }

  void Submit(DeviceIo& io, IoGroup& group) override {
    io.error = IsWellFormed(io, traits_) ? 0 : EINVAL;
    if (io.error == 0) Run(io);
    group.Complete();
  }

  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) override {
    if (!RangeFits(offset, length, traits_.size_bytes)) {
      return ErrnoStatus(EINVAL, "extents beyond the end of memory device " + name_);
    }
    const uint64_t end = offset + length;
    while (offset < end) {
      const bool hole = IsHole(offset / kChunkBytes);
      const uint64_t from = offset;
      do {
        offset = std::min(end, (offset / kChunkBytes + 1) * kChunkBytes);
      } while (offset < end && IsHole(offset / kChunkBytes) == hole);
      if (!fn(from, offset - from, hole)) break;
    }
    return absl::OkStatus();
  }

 private:
  struct Shard {
    Mutex mutex;
    absl::flat_hash_map<uint64_t, std::unique_ptr<char[]>> chunks ABSL_GUARDED_BY(mutex);
  };

  Shard& ShardOf(uint64_t chunk) { return shards_[chunk % kShards]; }

  bool IsHole(uint64_t chunk) {
    Shard& shard = ShardOf(chunk);
    MutexLock lock(&shard.mutex);
    return !shard.chunks.contains(chunk);
  }

  void Run(const DeviceIo& io) {
    switch (io.kind) {
      case IoKind::kRead:
      case IoKind::kWrite: {
        uint64_t offset = io.offset;
        for (const iovec& part : io.data) {
          Copy(io.kind, offset, static_cast<char*>(part.iov_base), part.iov_len);
          offset += part.iov_len;
        }
        return;
      }
      case IoKind::kZero:
      case IoKind::kTrim:
        Clear(io.offset, io.length);
        return;
      case IoKind::kFlush:
      case IoKind::kCache:
        return;
    }
  }

  void Copy(IoKind kind, uint64_t offset, char* data, uint64_t length) {
    while (length > 0) {
      const uint64_t within = offset % kChunkBytes;
      const uint64_t step = std::min(length, kChunkBytes - within);
      Shard& shard = ShardOf(offset / kChunkBytes);
      {
        MutexLock lock(&shard.mutex);
        if (kind == IoKind::kWrite) {
          std::unique_ptr<char[]>& chunk = shard.chunks[offset / kChunkBytes];
          if (chunk == nullptr) chunk = std::make_unique<char[]>(kChunkBytes);
          memcpy(chunk.get() + within, data, step);
        } else if (auto it = shard.chunks.find(offset / kChunkBytes); it != shard.chunks.end()) {
          memcpy(data, it->second.get() + within, step);
        } else {
          memset(data, 0, step);
        }
      }
      offset += step;
      data += step;
      length -= step;
    }
  }

  void Clear(uint64_t offset, uint64_t length) {
    while (length > 0) {
      const uint64_t within = offset % kChunkBytes;
      const uint64_t step = std::min(length, kChunkBytes - within);
      Shard& shard = ShardOf(offset / kChunkBytes);
      {
        MutexLock lock(&shard.mutex);
        auto it = shard.chunks.find(offset / kChunkBytes);
        if (it != shard.chunks.end()) {
          if (step == kChunkBytes) {
            shard.chunks.erase(it);
          } else {
            memset(it->second.get() + within, 0, step);
          }
        }
      }
      offset += step;
      length -= step;
    }
  }

  const std::string name_;
  const DeviceTraits traits_;
  std::array<Shard, kShards> shards_;
};

class MissingDevice final : public BlockDevice {
 public:
  MissingDevice(std::string name, uint64_t size_bytes)
      : name_(std::move(name)),
        traits_{.size_bytes = size_bytes, .can_trim = true, .can_zero_fast = true} {}

  const DeviceTraits& traits() const override { return traits_; }
  const std::string& name() const override { return name_; }

  void Submit(DeviceIo& io, IoGroup& group) override {
    io.error = ENXIO;
    group.Complete();
  }

  absl::Status Extents(uint64_t, uint64_t,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)>) override {
    return ErrnoStatus(ENXIO, "device " + name_ + " is missing");
  }

 private:
  const std::string name_;
  const DeviceTraits traits_;
};

}  // namespace

std::unique_ptr<BlockDevice> MakeMemoryDevice(std::string name, uint64_t size_bytes) {
  return std::make_unique<MemoryDevice>(std::move(name), size_bytes);
}

std::unique_ptr<BlockDevice> MakeMissingDevice(std::string name, uint64_t size_bytes) {
  return std::make_unique<MissingDevice>(std::move(name), size_bytes);
}

}  // namespace braid
