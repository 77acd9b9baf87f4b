#include "controlplane/core/pools.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controlplane/core/resize.h"
#include "lib/base/checked.h"
#include "lib/base/size_text.h"

namespace braid {
namespace {

constexpr int64_t kRateSeconds = 3600;
constexpr int64_t kSampleSeconds = 60;
// Of capacity: a pool that swings by less about a threshold makes one event.
constexpr uint32_t kHysteresisPercent = 2;
constexpr size_t kMaxEvents = 1000;
// Longer than anyone plans; and so that a rate of nearly nothing overflows nothing.
constexpr double kMaxSecondsToFull = 100.0 * 365 * 24 * 3600;

uint64_t AddOrMost(uint64_t a, uint64_t b) { return CheckedAdd(a, b).value_or(UINT64_MAX); }

// Device space that a thin volume takes when every byte of it was written.
uint64_t FullBytes(const VolumeEntry& volume) {
  uint64_t units = 0;
  for (uint32_t column = 0; column < volume.geometry.columns(); ++column) {
    units += DivideUp(ColumnBytes(volume.geometry, column), kSmallExtentBytes);
  }
  return CheckedMul(units * volume.geometry.legs(), kSmallExtentBytes).value_or(UINT64_MAX);
}

bool UsesPercent(const PoolUsage& usage, uint32_t percent) {
  // Capacity is below 2^56 bytes a device; this many devices do not come together.
  return static_cast<double>(usage.allocated + usage.reserved) * 100 >=
         static_cast<double>(usage.capacity) * percent;
}

const char* NameOf(PoolState state) {
  switch (state) {
    case PoolState::kGood:
      return "good";
    case PoolState::kLow:
      return "low on space";
    case PoolState::kCritical:
      return "critically low on space";
    case PoolState::kFull:
      return "full";
  }
  return "unknown";
}

std::string Describe(const PoolUsage& usage) {
  const uint64_t used = usage.allocated + usage.reserved;
  return absl::StrCat("pool ", usage.device_class, " is ", NameOf(usage.state), ": ",
                      FormatSize(used), " of ", FormatSize(usage.capacity), " used",
                      usage.state == PoolState::kGood
                          ? ""
                          : "; add devices, delete volumes, or reclaim unused space");
}

}  // namespace

Pools::Pools(SiteState* state, const Thresholds& thresholds)
    : state_(*state), thresholds_(thresholds) {
  Look();
}

Pools::Usages Pools::UsageOfDevices() const {
  Usages usages;
  for (const DeviceUse& use : state_.Devices()) {
    PoolUsage& usage = usages[use.record->device_class];
    usage.device_class = use.record->device_class;
    ++usage.device_count;
    usage.capacity += use.capacity_bytes;
    usage.reserved += use.reserved_bytes;
    usage.free += use.free_bytes;
    usage.allocated += use.capacity_bytes - use.free_bytes - use.reserved_bytes;
    usage.largest_free = std::max(usage.largest_free, use.largest_free_bytes);
  }
  return usages;
}

PoolState Pools::StateOf(const PoolUsage& usage, PoolState before) const {
  // The threshold of a state that it is in, or past, is lower.
  const auto past = [&](PoolState state, uint32_t percent) {
    const uint32_t slack = before >= state ? std::min(kHysteresisPercent, percent) : 0;
    return UsesPercent(usage, percent - slack);
  };
  if (past(PoolState::kCritical, thresholds_.critical_percent)) return PoolState::kCritical;
  if (past(PoolState::kLow, thresholds_.low_percent)) return PoolState::kLow;
  return PoolState::kGood;
}

std::vector<std::string> Pools::Update(const Usages& usages, int64_t now) {
  // A clock that was set back leaves samples of the future.
  while (!samples_.empty() && samples_.back().unix_seconds > now) samples_.pop_back();
  if (samples_.empty() || now - samples_.back().unix_seconds >= kSampleSeconds) {
    Sample sample{.unix_seconds = now, .allocated = {}};
    for (const auto& [name, usage] : usages) sample.allocated[name] = usage.allocated;
    samples_.push_back(std::move(sample));
  }
  while (now - samples_.front().unix_seconds > kRateSeconds) samples_.pop_front();

  std::vector<std::string> warnings;
  absl::erase_if(watched_, [&](const auto& watch) { return !usages.contains(watch.first); });
  for (const auto& [name, usage] : usages) {
    Watch& watch = watched_[name];
    if (watch.full) {
      watch.lowest_free = std::min(watch.lowest_free, usage.free);
      watch.full = usage.free < watch.lowest_free + kExtentBytes;
    }
    const PoolState state = watch.full ? PoolState::kFull : StateOf(usage, watch.state);
    if (state == watch.state) continue;
    watch.state = state;
    PoolUsage shown = usage;
    shown.state = state;
    events_.push_back({now, state, braid::Describe(shown)});
    if (events_.size() > kMaxEvents) events_.pop_front();
    warnings.push_back(events_.back().what);
  }
  return warnings;
}

void Pools::Look() {
  const int64_t now = state_.host().NowUnixSeconds();
  const Usages usages = UsageOfDevices();
  std::vector<std::string> warnings;
  {
    absl::MutexLock lock(&mu_);
    warnings = Update(usages, now);
  }
  for (const std::string& warning : warnings) state_.host().Warn(warning);
}

void Pools::NoteFull(absl::string_view device_class) {
  const Usages usages = UsageOfDevices();
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [name, usage] : usages) {
      if (!device_class.empty() && name != device_class) continue;
      watched_[name].full = true;
      watched_[name].lowest_free = usage.free;
    }
  }
  Look();
}

void Pools::AddRate(int64_t now, PoolUsage& usage) const {
  const Sample& oldest = samples_.front();
  const int64_t seconds = now - oldest.unix_seconds;
  // In the first minute a volume just made would be the trend.
  if (seconds < kSampleSeconds) return;
  // A class that came later had nothing allocated then.
  const auto found = oldest.allocated.find(usage.device_class);
  const uint64_t before = found == oldest.allocated.end() ? 0 : found->second;
  usage.allocation_per_second =
      (static_cast<double>(usage.allocated) - static_cast<double>(before)) /
      static_cast<double>(seconds);
  if (usage.allocation_per_second <= 0) return;
  const double to_full = static_cast<double>(usage.free) / usage.allocation_per_second;
  usage.seconds_to_full =
      std::max<uint64_t>(1, static_cast<uint64_t>(std::ceil(std::min(to_full, kMaxSecondsToFull))));
}

std::vector<PoolUsage> Pools::List() {
  Look();
  const int64_t now = state_.host().NowUnixSeconds();
  const std::vector<VolumePtr> volumes =
      state_.VolumesAfter("", std::numeric_limits<size_t>::max());
  Usages usages = UsageOfDevices();
  std::string largest;
  for (const auto& [name, usage] : usages) {
    if (largest.empty() || usage.capacity > usages[largest].capacity) largest = name;
  }
  absl::flat_hash_map<Uuid, std::string> class_of;
  for (const DeviceUse& use : state_.Devices()) {
    class_of[use.record->id] = use.record->device_class;
  }
  // Of devices, and of volumes: the class they were made for, that they lie on, or the largest.
  const auto of_device = [&](const Uuid& device) -> PoolUsage* {
    const auto found = class_of.find(device);
    if (found == class_of.end()) return nullptr;
    const auto usage = usages.find(found->second);
    return usage == usages.end() ? nullptr : &usage->second;
  };
  const auto of_volume = [&](const VolumeRecord& record) -> PoolUsage* {
    if (!record.device_class.empty()) {
      const auto usage = usages.find(record.device_class);
      return usage == usages.end() ? nullptr : &usage->second;
    }
    if (!record.devices.empty()) return of_device(record.devices[0]);
    return largest.empty() ? nullptr : &usages[largest];
  };
  absl::flat_hash_map<std::string, uint64_t> thick;
  absl::flat_hash_map<Uuid, PoolUsage*> thin;
  for (const VolumePtr& volume : volumes) {
    if (volume->thin != nullptr) {
      PoolUsage* usage = of_volume(volume->record);
      if (usage == nullptr) continue;
      usage->promised = AddOrMost(usage->promised, FullBytes(*volume));
      thin[volume->record.id] = usage;
      continue;
    }
    for (const MapRun& run : *volume->runs) {
      const PoolUsage* usage = of_device(volume->record.devices[run.device.value()]);
      if (usage != nullptr) thick[usage->device_class] += run.count * kSmallExtentBytes;
    }
  }

  std::vector<PoolUsage> all;
  absl::MutexLock lock(&mu_);
  absl::erase_if(reclaimable_, [&](const auto& known) { return !thin.contains(known.first); });
  for (const auto& [volume, reclaimable] : reclaimable_) {
    PoolUsage& usage = *thin.at(volume);
    usage.reclaimable = AddOrMost(usage.reclaimable, reclaimable.bytes);
  }
  for (auto& [name, usage] : usages) {
    usage.commitment_ratio =
        (static_cast<double>(thick[name]) + static_cast<double>(usage.promised)) /
        static_cast<double>(usage.capacity);
    AddRate(now, usage);
    const auto watch = watched_.find(name);
    if (watch != watched_.end()) usage.state = watch->second.state;
    all.push_back(std::move(usage));
  }
  return all;
}

void Pools::NoteReclaimable(const Uuid& volume, uint64_t bytes) {
  const int64_t now = state_.host().NowUnixSeconds();
  if (!state_.FindVolume(volume).ok()) return;
  absl::MutexLock lock(&mu_);
  reclaimable_[volume] = {bytes, now};
}

Pools::Reclaimable Pools::ReclaimableOf(const Uuid& volume) const {
  absl::MutexLock lock(&mu_);
  const auto found = reclaimable_.find(volume);
  return found == reclaimable_.end() ? Reclaimable() : found->second;
}

std::vector<PoolEvent> Pools::Events() const {
  absl::MutexLock lock(&mu_);
  return {events_.begin(), events_.end()};
}

}  // namespace braid
