#include "lib/testing/crash_device.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "lib/base/checked.h"
#include "lib/base/errno_status.h"

namespace braid {

PowerSupply::Draw PowerSupply::Take() {
  const uint64_t number = requests_.fetch_add(1);
  const uint64_t cut_at = cut_at_.load();
  if (number < cut_at) return Draw::kServed;
  return number == cut_at ? Draw::kUnderWay : Draw::kRefused;
}

void PowerSupply::Restore(uint64_t seed) {
  MutexLock lock(&mutex_);
  std::mt19937_64 random(seed);
  for (CrashDevice* device : devices_) device->PowerCut(random());
  requests_.store(0);
  cut_at_.store(UINT64_MAX);
}

CrashDevice::CrashDevice(std::string name, uint64_t size_bytes, PowerSupply* power,
                         const Options& options)
    : name_(std::move(name)),
      traits_{.size_bytes = size_bytes, .can_trim = true, .can_zero_fast = true},
      options_(options),
      power_(power),
      random_(options.seed) {
  assert(size_bytes % kSectorBytes == 0);
  if (power_ == nullptr) return;
  MutexLock lock(&power_->mutex_);
  power_->devices_.push_back(this);
}

CrashDevice::~CrashDevice() {
  if (power_ == nullptr) return;
  MutexLock lock(&power_->mutex_);
  std::erase(power_->devices_, this);
}

void CrashDevice::PowerCut(uint64_t seed) {
  MutexLock lock(&mutex_);
  std::mt19937_64 random(seed);
  for (const auto& [sector, versions] : unflushed_) {
    const uint64_t pick = random() % (versions.size() + 1);
    if (pick > 0) durable_[sector] = versions[pick - 1];
  }
  unflushed_.clear();
}

void CrashDevice::Overwrite(uint64_t offset, uint64_t length, char byte) {
  const std::string bytes(length, byte);
  MutexLock lock(&mutex_);
  Change(offset, length, bytes.data(), /*fua=*/true);
}

uint64_t CrashDevice::unflushed_sectors() const {
  MutexLock lock(&mutex_);
  return unflushed_.size();
}

void CrashDevice::Submit(DeviceIo& io, IoGroup& group) {
  io.error = 0;
  const PowerSupply::Draw draw = power_ == nullptr ? PowerSupply::Draw::kServed : power_->Take();
  if (draw == PowerSupply::Draw::kRefused) {
    io.error = EIO;
  } else if (!IsWellFormed(io, traits_)) {
    io.error = EINVAL;
  } else {
    const bool power_goes = draw == PowerSupply::Draw::kUnderWay;
    Run(io, power_goes);
    if (power_goes) io.error = EIO;
  }
  group.Complete();
}

void CrashDevice::Run(const DeviceIo& io, bool power_goes) {
  const bool fua = io.fua && !power_goes;
  MutexLock lock(&mutex_);
  uint64_t offset = io.offset;
  switch (io.kind) {
    case IoKind::kRead:
      for (const iovec& part : io.data) {
        ReadInto(offset, part.iov_len, static_cast<char*>(part.iov_base));
        offset += part.iov_len;
      }
      break;
    case IoKind::kWrite:
      for (const iovec& part : io.data) {
        Change(offset, part.iov_len, static_cast<const char*>(part.iov_base), fua);
        offset += part.iov_len;
      }
      break;
    case IoKind::kZero:
      Change(io.offset, io.length, nullptr, fua);
      break;
    case IoKind::kTrim:
      Trim(io.offset, io.length, fua);
      break;
    case IoKind::kFlush:
      if (!power_goes) FlushAll();
      break;
    case IoKind::kCache:
      break;
  }
}

const CrashDevice::Sector& CrashDevice::Current(uint64_t sector) const {
  static const Sector kZeros{};
  if (auto it = unflushed_.find(sector); it != unflushed_.end()) return it->second.back();
  if (auto it = durable_.find(sector); it != durable_.end()) return it->second;
  return kZeros;
}

void CrashDevice::ReadInto(uint64_t offset, uint64_t length, char* data) const {
  while (length > 0) {
    const uint64_t within = offset % kSectorBytes;
    const uint64_t step = std::min(length, kSectorBytes - within);
    memcpy(data, Current(offset / kSectorBytes).data() + within, step);
    offset += step;
    data += step;
    length -= step;
  }
}

void CrashDevice::Change(uint64_t offset, uint64_t length, const char* data, bool fua) {
  while (length > 0) {
    const uint64_t number = offset / kSectorBytes;
    const uint64_t within = offset % kSectorBytes;
    const uint64_t step = std::min(length, kSectorBytes - within);
    Sector sector = Current(number);
    if (data == nullptr) {
      memset(sector.data() + within, 0, step);
    } else {
      memcpy(sector.data() + within, data, step);
      data += step;
    }
    if (fua) {
      durable_[number] = sector;
      unflushed_.erase(number);
    } else {
      unflushed_[number].push_back(sector);
    }
    offset += step;
    length -= step;
  }
}

void CrashDevice::Trim(uint64_t offset, uint64_t length, bool fua) {
  // Sectors that are only partly within the range keep their bytes.
  const uint64_t first = DivideUp(offset, kSectorBytes);
  const uint64_t end = (offset + length) / kSectorBytes;
  for (uint64_t sector = first; sector < end; ++sector) {
    if (options_.erratic_trim && random_() % 2 == 0) continue;
    Change(sector * kSectorBytes, kSectorBytes, nullptr, fua);
  }
}

void CrashDevice::FlushAll() {
  for (auto& [sector, versions] : unflushed_) durable_[sector] = versions.back();
  unflushed_.clear();
}

absl::Status CrashDevice::Extents(uint64_t offset, uint64_t length,
                                  absl::FunctionRef<bool(uint64_t, uint64_t, bool)> fn) {
  if (!RangeFits(offset, length, traits_.size_bytes)) {
    return ErrnoStatus(EINVAL, "extents beyond the end of " + name_);
  }
  if (length > 0) fn(offset, length, false);
  return absl::OkStatus();
}

}  // namespace braid
