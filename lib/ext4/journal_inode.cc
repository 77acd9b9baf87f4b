#include "lib/ext4/journal_inode.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid::ext4 {
namespace {

// Block numbers of a journal have 32 bits; mkfs makes none longer than 10,240,000 blocks. What
// is read of it is kept by block, so this also bounds memory.
constexpr uint64_t kMaxJournalBlocks = uint64_t{1} << 24;

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the journal's inode is damaged: ", what, "; unmount and run e2fsck"));
}

struct Walk {
  uint64_t block_limit = 0;  // of the file system
  uint64_t first_block = 0;
  uint64_t next = 0;  // block of the journal
  JournalBlocks found;
  bool damaged = false;
};

// Called for each block in order, those of the tree with a negative `index`.
int Visit(ext2_filsys, blk64_t* block, e2_blkcnt_t index, blk64_t, int, void* argument) {
  Walk& walk = *static_cast<Walk*>(argument);
  const bool of_tree = index < 0;
  std::vector<BlockRange>& ranges = of_tree ? walk.found.tree : walk.found.in_order;
  const bool fits =
      *block > walk.first_block && *block < walk.block_limit &&
      (of_tree ? walk.found.tree.size() < kMaxJournalBlocks
               : static_cast<uint64_t>(index) == walk.next && walk.next < kMaxJournalBlocks);
  if (!fits) {
    walk.damaged = true;
    return BLOCK_ABORT;
  }
  if (!of_tree) ++walk.next;
  if (!ranges.empty() && ranges.back().end() == *block) {
    ++ranges.back().count;
  } else {
    ranges.push_back({.first = *block, .count = 1});
  }
  return 0;
}

}  // namespace

absl::StatusOr<JournalBlocks> FindJournal(FileSystemBytes& bytes, ext2_filsys fs) {
  ext2_inode inode{};
  absl::Status s =
      bytes.Call(/*max_reads=*/64, [&] { return ext2fs_read_inode(fs, EXT2_JOURNAL_INO, &inode); });
  if (!s.ok()) return s;
  if (!LINUX_S_ISREG(inode.i_mode) || inode.i_links_count == 0) return Damaged("it is no file");

  Walk walk{.block_limit = ext2fs_blocks_count(fs->super),
            .first_block = fs->super->s_first_data_block};
  // As many leaves as there can be, were they of one block each.
  s = bytes.Call(kMaxJournalBlocks / 64, [&] {
    return ext2fs_block_iterate3(fs, EXT2_JOURNAL_INO, BLOCK_FLAG_READ_ONLY, nullptr, Visit, &walk);
  });
  if (walk.damaged) return Damaged("its blocks are not in order, or outside of the file system");
  if (!s.ok()) return s;
  // Bytes past the last block, or blocks past the last byte, are no journal.
  if (EXT2_I_SIZE(&inode) / fs->blocksize > walk.next) return Damaged("it has holes");
  if (walk.next == 0) return Damaged("it has no blocks");
  return std::move(walk.found);
}

}  // namespace braid::ext4
