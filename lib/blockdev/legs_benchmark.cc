// Two legs in one group: one after the other in place, or at once through io_uring. Where
// the second wins is FileDeviceOptions::ring_from_bytes. docs/PERFORMANCE.md, "Legs at once".
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "lib/base/units.h"
#include "lib/blockdev/file_device.h"
#include "lib/blockdev/test_files.h"

namespace braid {
namespace {

constexpr uint64_t kFileBytes = 64 * kMiB;

// Two legs; `at_once` says which way they are written.
class Legs {
 public:
  explicit Legs(bool at_once) : at_once_(at_once), file_a_(kFileBytes), file_b_(kFileBytes) {
    const FileDeviceOptions options{.ring_from_bytes = at_once ? 0 : UINT64_MAX};
    a_ = OpenFileDevice(file_a_.path(), options).value();
    b_ = OpenFileDevice(file_b_.path(), options).value();
    const std::string ones(kMiB, '1');
    for (uint64_t at = 0; at < kFileBytes; at += kMiB) {
      if (!a_->Write(at, ones).ok() || !b_->Write(at, ones).ok()) abort();
    }
    if (!a_->Flush().ok() || !b_->Flush().ok()) abort();
  }

  // Nanoseconds until both legs have done it.
  double Run(const DeviceIo& io) {
    DeviceIo a = io;
    DeviceIo b = io;
    const auto start = std::chrono::steady_clock::now();
    if (at_once_) {
      IoGroup group(2);
      a_->Submit(a, group);
      b_->Submit(b, group);
      group.Wait();
    } else {
      IoGroup first(1);
      a_->Submit(a, first);
      IoGroup second(1);
      b_->Submit(b, second);
    }
    const auto end = std::chrono::steady_clock::now();
    if (a.error != 0 || b.error != 0) abort();
    return std::chrono::duration<double, std::nano>(end - start).count();
  }

 private:
  const bool at_once_;
  TestFile file_a_;
  TestFile file_b_;
  std::unique_ptr<BlockDevice> a_;
  std::unique_ptr<BlockDevice> b_;
};

double MedianUs(std::vector<double>& ns) {
  std::nth_element(ns.begin(), ns.begin() + static_cast<ptrdiff_t>(ns.size() / 2), ns.end());
  return ns[ns.size() / 2] / 1000;
}

// Alternates the two ways and reports the median of each, since on a busy machine means of
// one way after the other say more about the neighbours.
void Compare(benchmark::State& state, const DeviceIo& io, const DeviceIo* prepare) {
  Legs in_place(false);
  Legs at_once(true);
  std::string data(static_cast<size_t>(state.range(0)), 'x');
  const iovec part{.iov_base = data.data(), .iov_len = data.size()};
  std::vector<double> in_place_ns;
  std::vector<double> at_once_ns;
  uint64_t offset = 0;
  Legs* order[] = {&in_place, &at_once};
  for (auto _ : state) {
    std::swap(order[0], order[1]);
    for (Legs* legs : order) {
      for (const DeviceIo* step : {prepare, &io}) {
        if (step == nullptr) continue;
        DeviceIo copy = *step;
        if (copy.kind != IoKind::kFlush) {
          copy.offset = offset;
          copy.length = data.size();
          copy.data = absl::MakeConstSpan(&part, 1);
        }
        const double ns = legs->Run(copy);
        if (step == &io) (legs == &in_place ? in_place_ns : at_once_ns).push_back(ns);
      }
    }
    offset = (offset + data.size()) % kFileBytes;
  }
  const double a = MedianUs(in_place_ns);
  const double b = MedianUs(at_once_ns);
  state.counters["in_place_us"] = a;
  state.counters["at_once_us"] = b;
  state.counters["speedup"] = a / b;
}

void BM_Read(benchmark::State& state) { Compare(state, {.kind = IoKind::kRead}, nullptr); }
void BM_Write(benchmark::State& state) { Compare(state, {.kind = IoKind::kWrite}, nullptr); }
void BM_WriteFua(benchmark::State& state) {
  Compare(state, {.kind = IoKind::kWrite, .fua = true}, nullptr);
}
// Of legs with so many dirty bytes each.
void BM_Flush(benchmark::State& state) {
  const DeviceIo write{.kind = IoKind::kWrite};
  Compare(state, {.kind = IoKind::kFlush}, &write);
}

BENCHMARK(BM_Read)->RangeMultiplier(4)->Range(4 * kKiB, 4 * kMiB)->UseRealTime();
BENCHMARK(BM_Write)->RangeMultiplier(4)->Range(4 * kKiB, 4 * kMiB)->UseRealTime();
BENCHMARK(BM_WriteFua)->RangeMultiplier(4)->Range(4 * kKiB, 4 * kMiB)->UseRealTime();
BENCHMARK(BM_Flush)->RangeMultiplier(4)->Range(4 * kKiB, 4 * kMiB)->UseRealTime();

}  // namespace
}  // namespace braid

BENCHMARK_MAIN();
