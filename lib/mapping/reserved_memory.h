// Address space for large tables: taken whole at once, filled by the kernel with zeros
// page by page as it is touched.
#ifndef BRAID_LIB_MAPPING_RESERVED_MEMORY_H_
#define BRAID_LIB_MAPPING_RESERVED_MEMORY_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"

namespace braid {

// What the kernel calls a transparent huge page on x86-64 and, with 4 KiB pages, on arm64.
inline constexpr uint64_t kHugePageBytes = uint64_t{1} << 21;

// Owns the pages; gives them back when it ends.
//
// The pages are not reserved (MAP_NORESERVE), so that the table of a 64 TiB volume with
// nothing mapped costs nothing. Under vm.overcommit_memory 0 and 1 that holds, and a
// machine that runs out of memory ends a process. Under 2 the kernel ignores the flag and
// counts the whole size against its commit limit: tables of thin volumes count as if they
// were full, and Allocate fails when they do not fit, but no process is ended later.
class ReservedMemory {
 public:
  ReservedMemory() = default;  // none
  // `bytes` zero bytes, at least 1, aligned to kHugePageBytes where that many are asked
  // for, else to a page. Memory of that size asks for huge pages: look-ups in tables of
  // many MiB wait mostly for the translation of addresses (docs/PERFORMANCE.md).
  // ResourceExhausted when the address space cannot be had.
  static absl::StatusOr<ReservedMemory> Allocate(uint64_t bytes);
  ~ReservedMemory();
  ReservedMemory(ReservedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  ReservedMemory& operator=(ReservedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  void* data() const { return data_; }

 private:
  ReservedMemory(void* data, uint64_t bytes) : data_(data), bytes_(bytes) {}

  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace braid

#endif  // BRAID_LIB_MAPPING_RESERVED_MEMORY_H_
