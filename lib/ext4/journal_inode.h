// Where the journal lies: the blocks of inode 8, by extents or by indirect blocks.
#ifndef BRAID_LIB_EXT4_JOURNAL_INODE_H_
#define BRAID_LIB_EXT4_JOURNAL_INODE_H_

#include <vector>

#include "absl/status/statusor.h"
#include "lib/ext4/group_space.h"
#include "lib/ext4/volume_io.h"

namespace braid::ext4 {

struct JournalBlocks {
  std::vector<BlockRange> in_order;  // the journal's blocks 0, 1, … without a gap
  std::vector<BlockRange> tree;      // blocks that say where those are
};
// `fs` reads through `bytes`. DataLoss: damaged.
absl::StatusOr<JournalBlocks> FindJournal(FileSystemBytes& bytes, ext2_filsys fs);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_JOURNAL_INODE_H_
