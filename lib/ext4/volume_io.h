// Lets libext2fs read an ext4 file system that lies in a volume, with its log replayed in
// memory. Reads only: whatever would write is refused.
#ifndef BRAID_LIB_EXT4_VOLUME_IO_H_
#define BRAID_LIB_EXT4_VOLUME_IO_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/ext4/ext2fs_c.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {

// A file system's bytes. Not thread-safe.
class FileSystemBytes {
 public:
  // What stands in place of a block: null where the volume's own bytes do.
  using Replaced = std::function<absl::StatusOr<const std::string*>(uint64_t block)>;

  FileSystemBytes(ReadVolume read, const Place& place) : read_(std::move(read)), place_(place) {}

  // Blocks of `block_bytes` are looked for in `replaced` first.
  void Replace(uint32_t block_bytes, Replaced replaced) {
    block_bytes_ = block_bytes;
    replaced_ = std::move(replaced);
  }
  // Bytes from the file system's first. DataLoss beyond its place's end.
  absl::Status Read(uint64_t offset, absl::Span<char> data);

  // Opens it with libext2fs, descriptors included. The result reads through this object, which
  // outlives it. What is found on disk must have passed CheckSuperblock.
  absl::StatusOr<Ext2> Open();

  // Runs `call`, a call of libext2fs that may read. Its error, or that of the volume behind it.
  // A structure that leads in a circle ends at `max_reads`.
  absl::Status Call(uint64_t max_reads, const std::function<errcode_t()>& call);

  // For the I/O manager: as Read, and remembers why it failed.
  errcode_t ReadForLibrary(uint64_t offset, absl::Span<char> data);

 private:
  const ReadVolume read_;
  const Place place_;
  uint32_t block_bytes_ = 0;
  Replaced replaced_;
  uint64_t reads_left_ = 0;
  absl::Status failure_;
};

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_VOLUME_IO_H_
