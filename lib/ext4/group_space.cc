#include "lib/ext4/group_space.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid::ext4 {
namespace {

absl::Status Damaged(dgrp_t group, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("block group ", group, " is damaged: ", what, "; unmount and run e2fsck"));
}

// libext2fs declares a function for this, and does not export it.
uint32_t BitmapChecksum(ext2_filsys fs, dgrp_t group) {
  const auto* const descriptor =
      reinterpret_cast<const ext4_group_desc*>(ext2fs_group_desc(fs, fs->group_desc, group));
  const bool wide = EXT2_DESC_SIZE(fs->super) >= sizeof(ext4_group_desc);
  return descriptor->bg_block_bitmap_csum_lo |
         (wide ? uint32_t{descriptor->bg_block_bitmap_csum_hi} << 16 : 0);
}

// Appends `run` without what of it lies in `metadata`, from the group's first block on.
void AppendOutside(BlockRange run, absl::Span<const BlockRange> metadata, uint64_t group_first,
                   std::vector<GroupRun>* runs) {
  const auto append = [&](uint64_t first, uint64_t end) {
    if (first < end) {
      runs->push_back({.first = static_cast<uint32_t>(first - group_first),
                       .count = static_cast<uint32_t>(end - first)});
    }
  };
  auto used =
      std::upper_bound(metadata.begin(), metadata.end(), run.first,
                       [](uint64_t block, const BlockRange& range) { return block < range.end(); });
  uint64_t at = run.first;
  for (; used != metadata.end() && used->first < run.end(); ++used) {
    append(at, std::min(used->first, run.end()));
    at = std::max(at, std::min(used->end(), run.end()));
  }
  append(at, run.end());
}

}  // namespace

std::vector<BlockRange> Normalize(std::vector<BlockRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const BlockRange& a, const BlockRange& b) { return a.first < b.first; });
  std::vector<BlockRange> joined;
  for (const BlockRange& range : ranges) {
    if (range.count == 0) continue;
    if (!joined.empty() && range.first <= joined.back().end()) {
      joined.back().count = std::max(joined.back().end(), range.end()) - joined.back().first;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

absl::StatusOr<std::vector<BlockRange>> MetadataRanges(ext2_filsys fs,
                                                       std::vector<BlockRange> also) {
  std::vector<BlockRange> ranges = std::move(also);
  const uint64_t blocks = ext2fs_blocks_count(fs->super);
  const uint64_t first_block = fs->super->s_first_data_block;
  for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
    // Superblock and descriptors, if any, begin the group.
    blk_t base_blocks = 0;
    ext2fs_super_and_bgd_loc2(fs, group, nullptr, nullptr, nullptr, &base_blocks);
    const uint64_t begin = ext2fs_group_first_block2(fs, group);
    ranges.push_back({.first = begin, .count = std::min<uint64_t>(base_blocks, blocks - begin)});
    const BlockRange own[] = {
        {.first = ext2fs_block_bitmap_loc(fs, group), .count = 1},
        {.first = ext2fs_inode_bitmap_loc(fs, group), .count = 1},
        {.first = ext2fs_inode_table_loc(fs, group), .count = fs->inode_blocks_per_group}};
    for (const BlockRange& range : own) {
      if (range.first < first_block || !RangeFits(range.first, range.count, blocks)) {
        return Damaged(group, "its bitmaps or inode table lie outside of the file system");
      }
      ranges.push_back(range);
    }
  }
  return Normalize(std::move(ranges));
}

GroupDescriptor DescriptorOf(ext2_filsys fs, dgrp_t group) {
  return {.bitmap_block = ext2fs_block_bitmap_loc(fs, group),
          .free_blocks = ext2fs_bg_free_blocks_count(fs, group),
          .bitmap_checksum = BitmapChecksum(fs, group),
          // Without checksums of descriptors the flag has no meaning (the kernel ignores it).
          .uninitialized = ext2fs_has_group_desc_csum(fs) != 0 &&
                           ext2fs_bg_flags_test(fs, group, EXT2_BG_BLOCK_UNINIT) != 0};
}

absl::StatusOr<std::vector<GroupRun>> FreeRuns(ext2_filsys fs, dgrp_t group,
                                               absl::Span<const BlockRange> metadata,
                                               absl::Span<const char> bitmap) {
  if (ext2fs_group_desc_csum_verify(fs, group) == 0) {
    return Damaged(group, "the checksum of its descriptor is wrong");
  }
  const GroupDescriptor descriptor = DescriptorOf(fs, group);
  const uint64_t begin = ext2fs_group_first_block2(fs, group);
  // Not past the last block: the rest of the last bitmap is padding.
  const auto blocks = static_cast<uint32_t>(ext2fs_group_blocks_count(fs, group));
  std::vector<GroupRun> runs;
  if (descriptor.uninitialized) {
    AppendOutside({.first = begin, .count = blocks}, metadata, begin, &runs);
    uint64_t free = 0;
    for (const GroupRun& run : runs) free += run.count;
    if (free > descriptor.free_blocks) {
      return Damaged(group, "its bitmap was never written, and its free blocks are fewer");
    }
    return runs;
  }
  // The checksum is over the bits of a whole group, also of a short last one.
  const auto bitmap_bytes = static_cast<int>(EXT2_CLUSTERS_PER_GROUP(fs->super) / 8);
  // libext2fs takes it without const and does not change it.
  if (ext2fs_block_bitmap_csum_verify(fs, group, const_cast<char*>(bitmap.data()), bitmap_bytes) ==
      0) {
    return Damaged(group, "the checksum of its block bitmap is wrong");
  }
  const auto is_used = [&](uint32_t block) { return (bitmap[block / 8] >> block % 8 & 1) != 0; };
  uint32_t free = 0;
  for (uint32_t block = 0; block < blocks;) {
    if (is_used(block)) {
      ++block;
      continue;
    }
    const uint32_t first = block;
    while (block < blocks && !is_used(block)) ++block;
    free += block - first;
    AppendOutside({.first = begin + first, .count = block - first}, metadata, begin, &runs);
  }
  if (free != descriptor.free_blocks) {
    return Damaged(group, absl::StrCat("its bitmap has ", free, " free blocks, its descriptor ",
                                       descriptor.free_blocks));
  }
  return runs;
}

}  // namespace braid::ext4
