#include "controlplane/core/zeroer.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
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

// Of one device.
struct Range {
  uint64_t offset = 0;
  uint64_t length = 0;
};

std::vector<Range> JoinNeighbours(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.offset < b.offset; });
  std::vector<Range> joined;
  for (const Range& range : ranges) {
    if (!joined.empty() && joined.back().offset + joined.back().length == range.offset) {
      joined.back().length += range.length;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

Range RangeOf(const UnitRun& run) {
  return {run.first.value() * kSmallExtentBytes, run.count * kSmallExtentBytes};
}

absl::Status ZeroRange(BlockDevice& device, const Range& range, FileBlocks blocks) {
  if (blocks == FileBlocks::kKeep) {
    absl::Status status = device.Zero(range.offset, range.length, /*may_unmap=*/false);
    if (status.ok()) return status;
    // The file system below may lack the room for blocks that a sparse file does not have yet.
  }
  return device.Zero(range.offset, range.length, /*may_unmap=*/true);
}

absl::Status ZeroRanges(SiteState& state, const Uuid& id, std::vector<Range> ranges,
                        FileBlocks blocks, ZeroProgress& progress) {
  const DevicePtr record = state.FindDevice(id);
  if (record == nullptr) {
    return absl::InternalError(absl::StrCat("device ", id.ToString(), " went while it was in use"));
  }
  ranges = JoinNeighbours(std::move(ranges));
  // The labels, and whatever lies behind the data, are never ours to zero.
  for (const Range& range : ranges) {
    if (range.length == 0 || range.offset < record->data_offset ||
        !RangeFits(range.offset - record->data_offset, range.length, record->data_bytes)) {
      return absl::InternalError(absl::StrCat(range.length, " bytes at ", range.offset,
                                              " lie outside of the data of device '", record->name,
                                              "'; restart braidd and report this"));
    }
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      OpenLabelled(state.host(), state.cluster(), *record, {});
  if (!device.ok()) return device.status();
  for (const Range& range : ranges) {
    for (uint64_t done = 0; done < range.length;) {
      if (progress.stop) return absl::CancelledError("stopped");
      const uint64_t step = std::min(kStepBytes, range.length - done);
      absl::Status status = ZeroRange(**device, {range.offset + done, step}, blocks);
      if (!status.ok()) return status;
      done += step;
      progress.zeroed_bytes += step;
    }
  }
  return (*device)->Flush();
}

absl::Status ZeroSideBySide(SiteState& state, const std::map<Uuid, std::vector<Range>>& by_device,
                            FileBlocks blocks, std::vector<Uuid>* failed) {
  struct Part {
    Uuid device;
    std::vector<Range> ranges;
    absl::Status status;
  };
  std::vector<Part> parts;
  parts.reserve(by_device.size());
  for (const auto& [device, ranges] : by_device) parts.push_back({device, ranges, {}});

  ZeroProgress progress;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < parts.size(); i = next++) {
      parts[i].status =
          ZeroRanges(state, parts[i].device, std::move(parts[i].ranges), blocks, progress);
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
    const std::string name = record == nullptr ? part.device.ToString() : record->name;
    first =
        absl::Status(part.status.code(),
                     absl::StrCat("device '", name, "' cannot be zeroed: ", part.status.message()));
  }
  return first;
}

}  // namespace

absl::Status ZeroUnits(SiteState& state, absl::Span<const std::pair<Uuid, UnitRun>> units,
                       FileBlocks blocks, std::vector<Uuid>* failed) {
  std::map<Uuid, std::vector<Range>> by_device;
  for (const auto& [device, run] : units) by_device[device].push_back(RangeOf(run));
  return ZeroSideBySide(state, by_device, blocks, failed);
}

absl::Status ZeroBytes(SiteState& state, absl::Span<const DeviceBytes> ranges) {
  std::map<Uuid, std::vector<Range>> by_device;
  for (const DeviceBytes& r : ranges) by_device[r.device].push_back({r.offset, r.length});
  return ZeroSideBySide(state, by_device, FileBlocks::kGiveBack, nullptr);
}

absl::Status ZeroOnDevice(SiteState& state, const Uuid& device, absl::Span<const UnitRun> units,
                          ZeroProgress& progress) {
  std::vector<Range> ranges;
  ranges.reserve(units.size());
  for (const UnitRun& run : units) ranges.push_back(RangeOf(run));
  return ZeroRanges(state, device, std::move(ranges), FileBlocks::kGiveBack, progress);
}

}  // namespace braid
