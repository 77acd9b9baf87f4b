#include "controlplane/core/zeroer.h"

#include <algorithm>
#include <map>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "controlplane/core/labelled_device.h"
#include "lib/base/checked.h"

namespace braid {
namespace {

// Zeroed between two looks at whether to stop: a second or so on a disk that must write
// every zero, microseconds where a hole is punched.
constexpr uint64_t kStepBytes = kGiB;
// Devices zeroed at once. A grant is of few; a grown striped mirror may be of 256.
constexpr size_t kMaxThreads = 8;

// Neighbours joined.
std::vector<UnitRun> Join(std::vector<UnitRun> runs) {
  std::sort(runs.begin(), runs.end(),
            [](const UnitRun& a, const UnitRun& b) { return a.first < b.first; });
  std::vector<UnitRun> joined;
  for (const UnitRun& run : runs) {
    if (!joined.empty() && joined.back().first + joined.back().count == run.first) {
      joined.back().count += run.count;
    } else {
      joined.push_back(run);
    }
  }
  return joined;
}

// The labels, and whatever lies behind the data, are never ours to zero.
absl::Status CheckInside(const DeviceRecord& device, const UnitRun& run) {
  const uint64_t begin = device.data_offset / kSmallExtentBytes;
  if (run.count > 0 && run.first.value() >= begin &&
      RangeFits(run.first.value() - begin, run.count, device.data_bytes / kSmallExtentBytes)) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(run.count, " units from ", run.first.value(),
                                          " lie outside of the data of device '", device.name,
                                          "'; restart braidd and report this"));
}

}  // namespace

absl::Status ZeroOnDevice(SiteState& state, const Uuid& id, std::vector<UnitRun> units,
                          ZeroProgress& progress) {
  const DevicePtr record = state.FindDevice(id);
  if (record == nullptr) {
    return absl::InternalError(absl::StrCat("device ", id.ToString(), " went while it was in use"));
  }
  units = Join(std::move(units));
  for (const UnitRun& run : units) {
    if (absl::Status s = CheckInside(*record, run); !s.ok()) return s;
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      OpenLabelled(state.host(), state.cluster(), *record, {});
  if (!device.ok()) return device.status();
  for (const UnitRun& run : units) {
    uint64_t offset = run.first.value() * kSmallExtentBytes;
    const uint64_t end = offset + run.count * kSmallExtentBytes;
    while (offset < end) {
      if (progress.stop) return absl::CancelledError("stopped");
      const uint64_t step = std::min(kStepBytes, end - offset);
      absl::Status status = (*device)->Zero(offset, step, /*may_unmap=*/true);
      if (!status.ok()) return status;
      offset += step;
      progress.zeroed_bytes += step;
    }
  }
  return (*device)->Flush();
}

absl::Status ZeroUnits(SiteState& state, absl::Span<const std::pair<Uuid, UnitRun>> units,
                       std::vector<Uuid>* failed) {
  std::map<Uuid, std::vector<UnitRun>> by_device;
  for (const auto& [device, run] : units) by_device[device].push_back(run);
  struct Part {
    Uuid device;
    std::vector<UnitRun> runs;
    absl::Status status;
  };
  std::vector<Part> parts;
  for (auto& [device, runs] : by_device) parts.push_back({device, std::move(runs), {}});

  ZeroProgress progress;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < parts.size(); i = next++) {
      parts[i].status = ZeroOnDevice(state, parts[i].device, std::move(parts[i].runs), progress);
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(parts.size(), kMaxThreads); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();

  absl::Status first;
  for (const Part& part : parts) {
    if (part.status.ok()) continue;
    if (failed != nullptr) failed->push_back(part.device);
    if (!first.ok()) continue;
    const DevicePtr record = state.FindDevice(part.device);
    first = absl::Status(
        part.status.code(),
        absl::StrCat("device '", record == nullptr ? part.device.ToString() : record->name,
                     "' cannot be zeroed: ", part.status.message()));
  }
  return first;
}

}  // namespace braid
