#include "lib/ext4/superblock.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid::ext4 {
namespace {

// Descriptors are held in memory whole, 64 bytes each: 256 MiB. In blocks of 4 KiB this many
// groups hold 512 TiB.
constexpr uint64_t kMaxGroups = uint64_t{4} << 20;
constexpr uint32_t kMaxLogBlockBytes = 5;  // 32 KiB

constexpr uint32_t kKnownCompat =
    EXT2_FEATURE_COMPAT_DIR_PREALLOC | EXT2_FEATURE_COMPAT_IMAGIC_INODES |
    EXT3_FEATURE_COMPAT_HAS_JOURNAL | EXT2_FEATURE_COMPAT_EXT_ATTR |
    EXT2_FEATURE_COMPAT_RESIZE_INODE | EXT2_FEATURE_COMPAT_DIR_INDEX |
    EXT4_FEATURE_COMPAT_SPARSE_SUPER2 | EXT4_FEATURE_COMPAT_FAST_COMMIT |
    EXT4_FEATURE_COMPAT_STABLE_INODES | EXT4_FEATURE_COMPAT_ORPHAN_FILE;
constexpr uint32_t kKnownIncompat =
    EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_RECOVER | EXT2_FEATURE_INCOMPAT_META_BG |
    EXT3_FEATURE_INCOMPAT_EXTENTS | EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_MMP |
    EXT4_FEATURE_INCOMPAT_FLEX_BG | EXT4_FEATURE_INCOMPAT_EA_INODE |
    EXT4_FEATURE_INCOMPAT_CSUM_SEED | EXT4_FEATURE_INCOMPAT_LARGEDIR |
    EXT4_FEATURE_INCOMPAT_INLINE_DATA | EXT4_FEATURE_INCOMPAT_ENCRYPT |
    EXT4_FEATURE_INCOMPAT_CASEFOLD;
constexpr uint32_t kKnownReadOnlyCompat =
    EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
    EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_GDT_CSUM |
    EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE |
    EXT4_FEATURE_RO_COMPAT_QUOTA | EXT4_FEATURE_RO_COMPAT_METADATA_CSUM |
    EXT4_FEATURE_RO_COMPAT_READONLY | EXT4_FEATURE_RO_COMPAT_PROJECT |
    EXT4_FEATURE_RO_COMPAT_VERITY | EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT;

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the ext4 superblock is damaged: ", what, "; unmount and run e2fsck"));
}
absl::Status Refused(absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat(what, "; give space back with fstrim"));
}

absl::Status CheckFeatures(const ext2_super_block& s) {
  if ((s.s_feature_incompat & EXT3_FEATURE_INCOMPAT_JOURNAL_DEV) != 0) {
    return Refused("this is the journal of a file system elsewhere");
  }
  if ((s.s_feature_compat & EXT3_FEATURE_COMPAT_HAS_JOURNAL) == 0) {
    return Refused("the file system has no journal, so nothing says when its bitmaps hold");
  }
  if (s.s_journal_inum == 0 || s.s_journal_dev != 0) {
    return Refused("the file system's journal is on another device");
  }
  if (s.s_journal_inum != EXT2_JOURNAL_INO) return Damaged("its journal is not inode 8");
  if ((s.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_BIGALLOC) != 0) {
    return Refused("the file system allocates in clusters (bigalloc), which is not supported");
  }
  const uint32_t compat = s.s_feature_compat & ~kKnownCompat;
  const uint32_t incompat = s.s_feature_incompat & ~kKnownIncompat;
  const uint32_t read_only = s.s_feature_ro_compat & ~kKnownReadOnlyCompat;
  if (compat != 0 || incompat != 0 || read_only != 0) {
    return Refused(absl::StrCat(
        "the file system has features that this version of Braid does not know (compat ",
        absl::Hex(compat), ", incompat ", absl::Hex(incompat), ", ro_compat ", absl::Hex(read_only),
        ")"));
  }
  if ((s.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_GDT_CSUM) != 0 &&
      (s.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) != 0) {
    return Damaged("it names two kinds of checksum");
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const ext2_super_block& s, uint64_t length_bytes) {
  if (s.s_log_block_size > kMaxLogBlockBytes) {
    if (s.s_log_block_size == kMaxLogBlockBytes + 1) {
      return Refused("the file system has blocks of 64 KiB, which are not supported");
    }
    return Damaged("its block size is impossible");
  }
  const uint32_t block_bytes = BlockBytes(s);
  const std::optional<uint64_t> bytes = CheckedMul(BlockCount(s), block_bytes);
  if (!bytes || *bytes > length_bytes) {
    return Damaged("the file system is longer than the place it lies in");
  }
  if (s.s_first_data_block != (block_bytes == 1024 ? 1U : 0U)) {
    return Damaged("its first block is impossible");
  }
  if (BlockCount(s) <= s.s_first_data_block) return Damaged("it has no blocks");
  // A bitmap is one block.
  if (s.s_blocks_per_group == 0 || s.s_blocks_per_group % 8 != 0 ||
      s.s_blocks_per_group > uint64_t{block_bytes} * 8 ||
      s.s_clusters_per_group != s.s_blocks_per_group) {
    return Damaged("the size of its groups is impossible");
  }
  if (s.s_inodes_per_group == 0 || s.s_inodes_per_group > uint64_t{block_bytes} * 8) {
    return Damaged("the number of inodes in a group is impossible");
  }
  if (GroupCount(s) > kMaxGroups) {
    return Refused(absl::StrCat("the file system has more than ", kMaxGroups, " groups"));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t BlockCount(const ext2_super_block& s) {
  const bool wide = (s.s_feature_incompat & EXT4_FEATURE_INCOMPAT_64BIT) != 0;
  return s.s_blocks_count | (wide ? uint64_t{s.s_blocks_count_hi} << 32 : 0);
}

uint32_t BlockBytes(const ext2_super_block& s) { return 1024U << s.s_log_block_size; }

uint64_t GroupCount(const ext2_super_block& s) {
  return DivideUp(BlockCount(s) - s.s_first_data_block, s.s_blocks_per_group);
}

bool LooksLikeSuperblock(absl::Span<const char> superblock) {
  if (superblock.size() < kSuperblockBytes) return false;
  ext2_super_block s;
  std::memcpy(&s, superblock.data(), sizeof(s));
  return s.s_magic == EXT2_SUPER_MAGIC && s.s_log_block_size <= kMaxLogBlockBytes + 1 &&
         s.s_first_data_block <= 1 && BlockCount(s) != 0 && s.s_inodes_count != 0;
}

absl::Status CheckSuperblock(const ext2_super_block& s, uint64_t length_bytes) {
  if (s.s_magic != EXT2_SUPER_MAGIC) {
    return absl::FailedPreconditionError("there is no ext4 file system any more");
  }
  if (s.s_rev_level != EXT2_DYNAMIC_REV) {
    return Refused(absl::StrCat("the file system has revision ", s.s_rev_level));
  }
  if (absl::Status status = CheckFeatures(s); !status.ok()) return status;
  if (absl::Status status = CheckSizes(s, length_bytes); !status.ok()) return status;
  if ((s.s_state & EXT2_ERROR_FS) != 0) {
    return absl::FailedPreconditionError(
        "the kernel found errors in the file system; unmount and run e2fsck");
  }
  return absl::OkStatus();
}

}  // namespace braid::ext4
