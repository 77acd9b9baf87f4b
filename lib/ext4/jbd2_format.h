// The journal's format on disk (jbd2), as the kernel's Documentation/filesystems/ext4/journal.rst
// describes it: what its blocks say. All numbers are big-endian. Pure; knows nothing of where
// the blocks lie.
#ifndef BRAID_LIB_EXT4_JBD2_FORMAT_H_
#define BRAID_LIB_EXT4_JBD2_FORMAT_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace braid::ext4 {

inline constexpr uint32_t kJournalMagic = 0xc03b3998;
// Where it stands at the head of a block that is logged, the log has zeros and a flag.
inline constexpr std::array<uint8_t, 4> kJournalMagicBytes = {0xc0, 0x3b, 0x39, 0x98};
inline constexpr size_t kJournalSuperblockBytes = 1024;

enum class JournalBlock : uint32_t { kDescriptor = 1, kCommit = 2, kRevoke = 5 };

// What the journal's superblock says, checked.
struct JournalSuperblock {
  // The log is blocks [first, end) of the journal. What follows is the fast commits', which
  // begin one block later (jbd2 takes `end` for the log's last block there).
  uint32_t first = 0, end = 0, total = 0;
  uint32_t sequence = 0;  // of the oldest transaction in the log, or the next when it is empty
  uint32_t start = 0;     // where that one begins; 0: the log is empty
  uint32_t seed = 0;      // of checksums
  bool wide_blocks = false, revokes = false;
  bool checksum_v1 = false;  // one CRC-32 over a transaction, in its commit block
  bool checksum_v2 = false, checksum_v3 = false;  // one CRC-32C in each block and tag
  bool fast_commit = false;

  bool BlocksHaveChecksums() const { return checksum_v2 || checksum_v3; }
  // Of the position `count` after `block`; both within the log's area.
  uint32_t Advance(uint32_t block, uint64_t count) const {
    return first + static_cast<uint32_t>((block - first + count) % (end - first));
  }
};
// `block`: the journal's first block. FailedPrecondition: a feature that is not understood, or
// an error that the kernel noted. DataLoss: damaged.
absl::StatusOr<JournalSuperblock> ParseJournalSuperblock(absl::Span<const char> block,
                                                         uint64_t journal_blocks);

struct JournalHeader {
  uint32_t type = 0, sequence = 0;
};
// nullopt: not a block of the log's own.
std::optional<JournalHeader> ParseJournalHeader(absl::Span<const char> block);

// One block that a descriptor says follows it.
struct JournalTag {
  uint64_t block = 0;     // of the file system
  uint32_t checksum = 0;  // 16 bits with version 2
  bool escaped = false;
};
// The tags of a descriptor block, in order.
std::vector<JournalTag> ParseTags(const JournalSuperblock& journal, absl::Span<const char> block);

// Calls `revoke` for each block number. False: the count contradicts the block's size.
bool ParseRevokes(const JournalSuperblock& journal, absl::Span<const char> block,
                  absl::FunctionRef<void(uint64_t block)> revoke);

uint64_t CommitSeconds(absl::Span<const char> commit_block);

// Each is true where the journal has no such checksum. Blocks are whole.
bool ControlBlockChecksumHolds(const JournalSuperblock& journal, absl::Span<const char> block);
bool CommitBlockChecksumHolds(uint32_t seed, absl::Span<const char> block);
// Of a logged block as the log has it, still escaped.
bool TagChecksumHolds(const JournalSuperblock& journal, const JournalTag& tag, uint32_t sequence,
                      absl::Span<const char> block);

// The checksum of version 1: of a transaction's descriptors and logged blocks, in log order.
inline constexpr uint32_t kTransactionChecksumStart = 0xffffffff;
uint32_t AddToTransactionChecksum(uint32_t checksum, absl::Span<const char> block);
bool TransactionChecksumHolds(uint32_t checksum, absl::Span<const char> commit_block);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_JBD2_FORMAT_H_
