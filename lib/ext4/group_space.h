// Which blocks of a block group are free. Pure: works on what was read.
#ifndef BRAID_LIB_EXT4_GROUP_SPACE_H_
#define BRAID_LIB_EXT4_GROUP_SPACE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/ext4/ext2fs_c.h"

namespace braid::ext4 {

struct BlockRange {
  uint64_t first = 0, count = 0;
  uint64_t end() const { return first + count; }
  friend bool operator==(const BlockRange&, const BlockRange&) = default;
};

// Sorted, and joined where they touch or overlap.
std::vector<BlockRange> Normalize(std::vector<BlockRange> ranges);

// Everything that is in use whatever the bitmaps say: superblocks, descriptors and what is
// reserved for them, bitmaps, inode tables, and `also`. DataLoss: a descriptor points outside
// of the file system.
absl::StatusOr<std::vector<BlockRange>> MetadataRanges(ext2_filsys fs,
                                                       std::vector<BlockRange> also);

// What says that a group's free blocks may have changed, apart from its bitmap.
struct GroupDescriptor {
  uint64_t bitmap_block = 0;
  uint32_t free_blocks = 0, bitmap_checksum = 0;
  bool uninitialized = false;  // the bitmap was never written: only metadata is in use
  friend bool operator==(const GroupDescriptor&, const GroupDescriptor&) = default;
};
GroupDescriptor DescriptorOf(ext2_filsys fs, dgrp_t group);

// The free blocks of `group`, without those in `metadata`, numbered from the group's first.
// `bitmap`: its bitmap block (not looked at when uninitialized). DataLoss: checksum or count do
// not fit; in use, that may be the bitmap and its descriptor having been read at different times.
struct GroupRun {
  uint32_t first = 0, count = 0;
};
absl::StatusOr<std::vector<GroupRun>> FreeRuns(ext2_filsys fs, dgrp_t group,
                                               absl::Span<const BlockRange> metadata,
                                               absl::Span<const char> bitmap);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_GROUP_SPACE_H_
