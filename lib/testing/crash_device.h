// A device with a volatile write cache, and the power that may go.
//
// Fault model. When power goes, a device keeps what was flushed, or written with FUA,
// before. Of everything else each 512-byte sector on its own, in any combination, keeps
// what was last durable or has any one of the versions written to it since: a write may
// survive in part, a later one without an earlier one, on one device and not on another. A
// sector is never a mix of two versions. The request that power goes under fails, and what
// it changed is as if not flushed, FUA or not; all after it fail and change nothing. A flush
// covers what completed before it began; it or a FUA request that fails promises nothing.
//
// The same holds for a trim: until it is flushed its sectors may read, after a cut, as
// before. With `erratic_trim` each sector of a trim also decides at once whether it reads
// as zeros, since that is all that the device interface promises.
//
//   PowerSupply power;
//   CrashDevice a("a", size, &power), b("b", size, &power);
//   power.CutAtRequest(17);         // counted over all devices
//   … run; the 17th is caught under way, those after it do nothing …
//   power.Restore(seed);            // once nothing is in flight any more
//   … reopen, compare with what was flushed …
#ifndef BRAID_LIB_TESTING_CRASH_DEVICE_H_
#define BRAID_LIB_TESTING_CRASH_DEVICE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"
#include "lib/blockdev/block_device.h"

namespace braid {

class CrashDevice;

// What several devices lose at one moment. Outlives them. Thread-safe.
class PowerSupply {
 public:
  // Power goes under the request with this number, counted from 0 since construction or
  // Restore.
  void CutAtRequest(uint64_t number) { cut_at_.store(number); }
  void CutNow() { cut_at_.store(0); }
  // Requests seen since construction or Restore, refused ones too.
  uint64_t requests() const { return requests_.load(); }
  // Whether the next request will be served.
  bool on() const { return requests_.load() < cut_at_.load(); }

  // What power takes, it takes now, decided by `seed`, from every device; then power is
  // back, for good until the next cut. No request is in flight.
  void Restore(uint64_t seed);

 private:
  friend class CrashDevice;
  enum class Draw : uint8_t { kServed, kUnderWay, kRefused };
  // Counts one request and says what becomes of it.
  Draw Take();

  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> cut_at_{UINT64_MAX};
  Mutex mutex_;
  std::vector<CrashDevice*> devices_ ABSL_GUARDED_BY(mutex_);
};

// Thread-safe. Keeps every version since the last flush in memory.
class CrashDevice final : public BlockDevice {
 public:
  struct Options {
    bool erratic_trim = false;
    uint64_t seed = 1;
  };

  // `size_bytes` is whole sectors. `power` may be null: power that only PowerCut takes.
  CrashDevice(std::string name, uint64_t size_bytes, PowerSupply* power, const Options& options);
  CrashDevice(std::string name, uint64_t size_bytes, PowerSupply* power = nullptr)
      : CrashDevice(std::move(name), size_bytes, power, Options()) {}
  ~CrashDevice() override;

  // This device alone loses power and has it back.
  void PowerCut(uint64_t seed);
  // Fills a range with one byte, as another owner of this space would have: durable at
  // once, and no request of the power supply's.
  void Overwrite(uint64_t offset, uint64_t length, char byte);
  // Sectors that a power cut now might change.
  uint64_t unflushed_sectors() const;

  const DeviceTraits& traits() const override { return traits_; }
  const std::string& name() const override { return name_; }
  void Submit(DeviceIo& io, IoGroup& group) override;
  // All is data.
  absl::Status Extents(uint64_t offset, uint64_t length,
                       absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) override;

 private:
  using Sector = std::array<char, kSectorBytes>;

  const Sector& Current(uint64_t sector) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `data` null: zeros.
  void Change(uint64_t offset, uint64_t length, const char* data, bool fua)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReadInto(uint64_t offset, uint64_t length, char* data) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Trim(uint64_t offset, uint64_t length, bool fua) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FlushAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(const DeviceIo& io, bool power_goes) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string name_;
  const DeviceTraits traits_;
  const Options options_;
  PowerSupply* const power_;

  mutable Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  // By sector; what is absent is zeros.
  absl::flat_hash_map<uint64_t, Sector> durable_ ABSL_GUARDED_BY(mutex_);
  // Versions since the last flush, oldest first. Ordered, so that a seed always means the
  // same.
  std::map<uint64_t, std::vector<Sector>> unflushed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace braid

#endif  // BRAID_LIB_TESTING_CRASH_DEVICE_H_
