// What of an ext4 superblock must hold before libext2fs is given the file system, and which
// file systems are not understood.
#ifndef BRAID_LIB_EXT4_SUPERBLOCK_H_
#define BRAID_LIB_EXT4_SUPERBLOCK_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "lib/ext4/ext2fs_c.h"

namespace braid::ext4 {

inline constexpr uint64_t kSuperblockOffset = 1024;
inline constexpr size_t kSuperblockBytes = 1024;

// Some of them an ext4 superblock could not have, so that what only has the magic number by
// chance is passed over.
bool LooksLikeSuperblock(absl::Span<const char> superblock);

// Sizes that contradict each other or the `length_bytes` of the place, and more groups than this
// code makes room for: DataLoss. Features and states that are refused: FailedPrecondition, with
// the reason in words.
absl::Status CheckSuperblock(const ext2_super_block& superblock, uint64_t length_bytes);

uint64_t BlockCount(const ext2_super_block& superblock);
uint32_t BlockBytes(const ext2_super_block& superblock);
uint64_t GroupCount(const ext2_super_block& superblock);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_SUPERBLOCK_H_
