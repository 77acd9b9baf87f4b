#include "lib/mapping/reserved_memory.h"

#include <sys/mman.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace braid {

absl::StatusOr<ReservedMemory> ReservedMemory::Allocate(uint64_t bytes) {
  const bool huge = bytes >= kHugePageBytes;
  // mmap aligns to small pages only: take one huge page more, and return what lies
  // outside the aligned part.
  const uint64_t slack = huge ? kHugePageBytes : 0;
  void* const mapped = bytes > UINT64_MAX - slack
                           ? MAP_FAILED
                           : mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no address space for a table of ", bytes,
        " bytes; look at ulimit -v and, where vm.overcommit_memory is 2, at the commit limit"));
  }
  if (!huge) return ReservedMemory(mapped, bytes);

  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = (begin + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  constexpr uint64_t kPageBytes = 4096;  // the least; munmap takes whole pages
  const uintptr_t aligned_end = (aligned + bytes + kPageBytes - 1) & ~(kPageBytes - 1);
  const uintptr_t end = (begin + bytes + slack + kPageBytes - 1) & ~(kPageBytes - 1);
  // Neither failure loses more than address space, and a kernel without huge pages, which
  // refuses the advice, serves the table as well.
  if (aligned > begin) munmap(mapped, aligned - begin);
  if (end > aligned_end) munmap(reinterpret_cast<void*>(aligned_end), end - aligned_end);
  void* const data = reinterpret_cast<void*>(aligned);
  madvise(data, bytes, MADV_HUGEPAGE);
  return ReservedMemory(data, bytes);
}

ReservedMemory::~ReservedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace braid
