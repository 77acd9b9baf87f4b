// How long a look-up takes: from a volume offset, through stripes and legs, to a device and
// an offset on it; beside what one might use instead, and beside the bare array that is
// the limit.
//
// Names, in fields between slashes:
//
//   ORDER/STRUCTURE/VOLUME/EXTENTS/SHAPE/threads:N
//
//   ORDER      RandomLookup      independent look-ups all over the volume: the processor
//                                overlaps them, as many requests in flight do
//              ChainedLookup     the same, each begun after the one before has ended: the
//                                time that one request waits
//              SequentialLookup  every 64 KiB in order, from the start or, for further
//                                threads, from their share of the volume
//   STRUCTURE  page_table        lib/mapping
//              bare_array        one word per extent in a vector, indexed by offset / extent
//                                size: the limit. No holes, tables, stripes, legs or flags,
//                                so it asks nothing. All else is the page table's: huge
//                                pages, the words and their unpacking into device and byte
//                                on it, offsets in the same order, and what is constant held
//                                in local variables
//              btree_map         absl::btree_map from first byte to length and place, asked
//                                by upper_bound, as maps of ranges are
//              std_map           std::map, asked alike
//              no_map            nothing: what the loop and its offsets cost
//   VOLUME     4GiB 1TiB 64TiB   every extent mapped, none continuing its neighbour
//   EXTENTS    large (4 MiB) or small (64 KiB, all of them)
//   SHAPE      linear; CxL: C stripes of 64 KiB, L copies, of which each look-up takes one
//
// and Enter/page_table/VOLUME: making the table and entering the whole map as one run.
//
// The time of an iteration (cpu_time) is that of one look-up on one thread; N threads make
// N times as many in it. bytes_per_extent_and_leg is how much the resident memory of the
// process grew while the structure was built. Structures of one volume run next to each
// other; ratios want --benchmark_repetitions and medians, or, to alternate,
// --benchmark_enable_random_interleaving=true with a filter for one volume.
#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/container/btree_map.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "lib/base/units.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/page_table.h"
#include "lib/mapping/reserved_memory.h"

namespace braid {
namespace {

struct Volume {
  const char* size_name = "";
  uint64_t size_bytes = 0;
  bool small_extents = false;
  uint32_t columns = 1;
  uint32_t legs = 1;

  uint64_t extent_bytes() const { return small_extents ? kSmallExtentBytes : kExtentBytes; }
  std::string Name() const {
    return absl::StrCat(size_name, small_extents ? "/small/" : "/large/",
                        columns * legs == 1 ? "linear" : absl::StrCat(columns, "x", legs));
  }
  friend bool operator==(const Volume&, const Volume&) = default;
};

// A failure here is the benchmark's, not the reader's: say it and stop.
template <class T>
T OrDie(absl::StatusOr<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "mapping_benchmark: %s\n", result.status().ToString().c_str());
    std::abort();
  }
  return *std::move(result);
}

// Where the nth extent of a leg lies: on one of eight devices, never after its neighbour.
MapWord WordOf(uint64_t extent, uint32_t leg, uint64_t units) {
  return MapWord::Extent(DeviceIndex(static_cast<uint16_t>(extent % 8 + uint64_t{8} * leg)),
                         DeviceUnit((extent ^ 5) * units));
}

// Each structure is built from a Volume, and its reader() finds where one leg keeps a byte:
// device and byte on it, added up.
uint64_t Answer(LegPlace place) {
  uint64_t device = place.device().value();
  // Both must be worked out: a compiler that sees the sum takes both from the word at once.
  asm("" : "+r"(device));
  return device + place.device_offset();
}

// A volume's copies are few and known to its request path: a single one needs no choice.
template <uint32_t kLegs>
class PageTableMap {
 public:
  explicit PageTableMap(const Volume& volume)
      : table_(OrDie(PageTable::Create(OrDie(Geometry::Make(volume.size_bytes, volume.columns,
                                                            kDefaultStripeBytes, volume.legs))))) {
    for (uint64_t row = 0; row < table_->geometry().rows(); ++row) {
      for (uint32_t leg = 0; leg < volume.legs; ++leg) {
        if (!volume.small_extents) {
          table_->SetLarge(row, leg, WordOf(row, leg, kSmallPerExtent));
          continue;
        }
        for (uint32_t small = 0; small < kSmallPerExtent; ++small) {
          const absl::Status status =
              table_->SetSmall(row, leg, small, WordOf(row * kSmallPerExtent + small, leg, 1));
          if (!status.ok()) OrDie(absl::StatusOr<int>(status));
        }
      }
    }
  }
  struct Reader {
    PageTable::Reader table;
    ABSL_ATTRIBUTE_ALWAYS_INLINE uint64_t Find(uint64_t offset) const {
      // As reads spread over copies.
      const uint32_t leg = static_cast<uint32_t>(offset / kSectorBytes) % kLegs;
      return Answer(table.Look(table.geometry().Locate(offset), leg));
    }
  };
  Reader reader() const { return {table_->reader()}; }

 private:
  std::unique_ptr<PageTable> table_;
};

// A vector's memory, with the page table's alignment and advice.
template <class T>
struct HugePageAllocator {
  using value_type = T;
  HugePageAllocator() = default;
  template <class U>
  explicit HugePageAllocator(const HugePageAllocator<U>&) {}
  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    const size_t align = bytes >= kHugePageBytes ? kHugePageBytes : size_t{4096};
    void* const memory = std::aligned_alloc(align, (bytes + align - 1) / align * align);
    if (memory == nullptr) throw std::bad_alloc();
    if (align == kHugePageBytes) madvise(memory, bytes, MADV_HUGEPAGE);
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }
  friend bool operator==(HugePageAllocator, HugePageAllocator) { return true; }
};

template <uint64_t kBytes>  // of an extent
class BareArray {
 public:
  explicit BareArray(const Volume& volume) : words_(volume.size_bytes / kBytes) {
    for (uint64_t i = 0; i < words_.size(); ++i) {
      words_[i] = WordOf(i, 0, kBytes / kSmallExtentBytes);
    }
  }
  struct Reader {
    const MapWord* words;
    ABSL_ATTRIBUTE_ALWAYS_INLINE uint64_t Find(uint64_t offset) const {
      return Answer({words[offset / kBytes], offset % kBytes});
    }
  };
  Reader reader() const { return {words_.data()}; }

 private:
  std::vector<MapWord, HugePageAllocator<MapWord>> words_;
};

struct Range {
  uint64_t length_bytes = 0;
  MapWord word;
};

template <class Map>
class RangeMap {
 public:
  explicit RangeMap(const Volume& volume) {
    const uint64_t step = volume.extent_bytes();
    for (uint64_t first = 0; first < volume.size_bytes; first += step) {
      map_.emplace_hint(map_.end(), first,
                        Range{step, WordOf(first / step, 0, step / kSmallExtentBytes)});
    }
  }
  const RangeMap& reader() const { return *this; }
  ABSL_ATTRIBUTE_ALWAYS_INLINE uint64_t Find(uint64_t offset) const {
    auto found = map_.upper_bound(offset);
    if (found == map_.begin()) return 0;
    --found;
    const uint64_t in_extent = offset - found->first;
    if (in_extent >= found->second.length_bytes) return 0;
    return Answer({found->second.word, in_extent});
  }

 private:
  Map map_;
};
using BtreeMap = RangeMap<absl::btree_map<uint64_t, Range>>;
using StdMap = RangeMap<std::map<uint64_t, Range>>;

struct NoMap {
  explicit NoMap(const Volume&) {}
  const NoMap& reader() const { return *this; }
  ABSL_ATTRIBUTE_ALWAYS_INLINE uint64_t Find(uint64_t offset) const { return offset; }
};

// As the kernel counts when it walks the pages; statm's figure is off by a batch.
uint64_t ResidentBytes() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string word; rollup >> word;) {
    uint64_t kib = 0;
    if (word == "Rss:" && rollup >> kib) return kib * kKiB;
  }
  return 0;
}

// Keeps each structure's last volume, since one is built in seconds and asked many times.
template <class Map>
struct Built {
  Volume volume;
  std::unique_ptr<Map> map;
  double bytes = 0;

  static const Built& Of(const Volume& volume) {
    static std::mutex mu;
    static Built built;
    const std::lock_guard lock(mu);
    if (built.map == nullptr || !(built.volume == volume)) {
      built.map.reset();
      malloc_trim(0);
      const uint64_t before = ResidentBytes();
      built.map = std::make_unique<Map>(volume);
      const uint64_t after = ResidentBytes();
      built.bytes = after > before ? static_cast<double>(after - before) : 0;
      built.volume = volume;
    }
    return built;
  }
};

// The same offsets for every structure: a congruential generator, of whose product with
// the volume's size the upper half is taken. It costs about a nanosecond.
class RandomOffsets {
 public:
  RandomOffsets(uint64_t size_bytes, int thread)
      : size_bytes_(size_bytes), state_(0x9e3779b97f4a7c15 * (1 + static_cast<uint64_t>(thread))) {}
  uint64_t Next(uint64_t mix) {
    state_ = state_ * 6364136223846793005 + 1442695040888963407 + mix;
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((Wide{state_} * size_bytes_) >> 64);
  }

 private:
  uint64_t size_bytes_;
  uint64_t state_;
};

class SequentialOffsets {
 public:
  SequentialOffsets(uint64_t size_bytes, int thread, int threads)
      : size_bytes_(size_bytes),
        next_(size_bytes / static_cast<uint64_t>(threads) * static_cast<uint64_t>(thread) /
              kSmallExtentBytes * kSmallExtentBytes) {}
  uint64_t Next(uint64_t) {
    const uint64_t offset = next_;
    next_ += kSmallExtentBytes;
    if (next_ >= size_bytes_) next_ = 0;
    return offset;
  }

 private:
  uint64_t size_bytes_;
  uint64_t next_;
};

// Each batch of look-ups is a function of its own, with all that it uses in local variables,
// so that registers hold the look-up and nothing else. Long enough that calls and the
// benchmark's own count cost nothing.
constexpr int kBatch = 1024;

template <class Map, class Offsets>
ABSL_ATTRIBUTE_NOINLINE uint64_t Independent(const Map& map, Offsets& offsets_at) {
  const auto& reader = map.reader();
  Offsets offsets = offsets_at;
  uint64_t sum = 0;
  for (int i = 0; i < kBatch; ++i) sum += reader.Find(offsets.Next(0));
  offsets_at = offsets;
  return sum;
}

template <class Map, class Offsets>
ABSL_ATTRIBUTE_NOINLINE uint64_t Chained(const Map& map, Offsets& offsets_at) {
  const auto& reader = map.reader();
  Offsets offsets = offsets_at;
  uint64_t found = 0;
  for (int i = 0; i < kBatch; ++i) {
    found = reader.Find(offsets.Next(found >> 62));
    // No place sets those two bits, so nothing was added; but neither processor nor
    // compiler may know before it has found them.
    asm volatile("" : "+r"(found));
  }
  offsets_at = offsets;
  return found;
}

template <class Map, class Offsets>
void Run(benchmark::State& state, const Volume& volume, Offsets offsets, bool chained) {
  const Built<Map>& built = Built<Map>::Of(volume);
  while (state.KeepRunningBatch(kBatch)) {
    uint64_t found = chained ? Chained(*built.map, offsets) : Independent(*built.map, offsets);
    benchmark::DoNotOptimize(found);
  }
  state.SetItemsProcessed(state.iterations());
  if (state.thread_index() == 0) {
    const uint64_t extents = volume.size_bytes / volume.extent_bytes() * volume.legs;
    state.counters["bytes_per_extent_and_leg"] = built.bytes / static_cast<double>(extents);
  }
}

template <class Map>
void Register(const char* structure, const Volume& volume) {
  std::vector<int> thread_counts = {1};
  const auto all = static_cast<int>(std::thread::hardware_concurrency());
  if (all > 1) thread_counts.push_back(all);
  const std::string rest = absl::StrCat("/", structure, "/", volume.Name());
  for (const int threads : thread_counts) {
    benchmark::RegisterBenchmark(("RandomLookup" + rest).c_str(), [volume](auto& state) {
      Run<Map>(state, volume, RandomOffsets(volume.size_bytes, state.thread_index()), false);
    })->Threads(threads);
    benchmark::RegisterBenchmark(("ChainedLookup" + rest).c_str(), [volume](auto& state) {
      Run<Map>(state, volume, RandomOffsets(volume.size_bytes, state.thread_index()), true);
    })->Threads(threads);
    benchmark::RegisterBenchmark(("SequentialLookup" + rest).c_str(), [volume](auto& state) {
      Run<Map>(state, volume,
               SequentialOffsets(volume.size_bytes, state.thread_index(), state.threads()), false);
    })->Threads(threads);
  }
}

void Enter(benchmark::State& state, uint64_t size_bytes) {
  const Geometry geometry = OrDie(Geometry::Make(size_bytes, 1, kDefaultStripeBytes, 1));
  const MapRun whole{
      0, 0, ColumnUnit(0), geometry.units_per_column(), DeviceIndex(0), DeviceUnit(0)};
  for ([[maybe_unused]] auto _ : state) {
    const std::unique_ptr<PageTable> table = OrDie(PageTable::Create(geometry));
    const absl::Status status = table->Enter(whole, 1);
    if (!status.ok()) state.SkipWithError("the run was refused");
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(geometry.rows()));
}

void RegisterAll() {
  const std::pair<const char*, uint64_t> sizes[] = {
      {"4GiB", 4 * kGiB}, {"1TiB", kTiB}, {"64TiB", 64 * kTiB}};
  for (const auto& [name, bytes] : sizes) {
    for (const bool small : {false, true}) {
      // 64 TiB of small extents are 10^9: no structure here is meant to hold that.
      if (small && bytes > kTiB) continue;
      const Volume volume{name, bytes, small};
      if (!small) Register<NoMap>("no_map", volume);
      small ? Register<BareArray<kSmallExtentBytes>>("bare_array", volume)
            : Register<BareArray<kExtentBytes>>("bare_array", volume);
      Register<PageTableMap<1>>("page_table", volume);
      Register<BtreeMap>("btree_map", volume);
      Register<StdMap>("std_map", volume);
    }
    Register<PageTableMap<1>>("page_table", Volume{name, bytes, false, 3, 1});
    Register<PageTableMap<2>>("page_table", Volume{name, bytes, false, 4, 2});
    benchmark::RegisterBenchmark(absl::StrCat("Enter/page_table/", name).c_str(), [size = bytes](
                                                                                      auto& state) {
      Enter(state, size);
    })->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  braid::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
