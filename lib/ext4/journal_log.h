// Reads the journal's log as recovery would, and says what is in it. Writes nothing.
//
// The log is a ring. A transaction is revoke blocks, and descriptors each followed by the blocks
// they name, in any order, then a commit block. It counts when its commit block is there; then
// all of it is there, since the kernel writes that block last (asynchronous commits, which do
// not, are refused). The live part begins at the tail, which the superblock names; what lies
// before the tail is in place, and its blocks may be written over at any time.
//
// So while the file system is in use: what is read from the live part holds if the superblock,
// read again after that, has the same tail. That the log has grown meanwhile does no harm.
#ifndef BRAID_LIB_EXT4_JOURNAL_LOG_H_
#define BRAID_LIB_EXT4_JOURNAL_LOG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/ext4/jbd2_format.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {

// Where the journal lies. Immutable: so for any number of threads.
class JournalReader {
 public:
  struct Run {
    uint64_t volume_offset = 0;
    uint32_t first = 0, count = 0;  // blocks of the journal
  };
  // `runs` cover blocks 0, 1, … of the journal without a gap, in order.
  JournalReader(ReadVolume read, std::vector<Run> runs, uint32_t block_bytes);

  uint32_t block_bytes() const { return block_bytes_; }
  uint32_t block_count() const { return block_count_; }
  const std::vector<Run>& runs() const { return runs_; }
  // OutOfRange where the journal has no such block.
  absl::Status Read(uint32_t block, absl::Span<char> data) const;
  absl::StatusOr<JournalSuperblock> ReadSuperblock() const;

 private:
  const ReadVolume read_;
  const std::vector<Run> runs_;
  const uint32_t block_bytes_, block_count_;
};

// Between two transactions of the log.
struct LogPosition {
  uint32_t sequence = 0;  // of the transaction that begins here
  uint32_t block = 0;     // 0: unknown, since the log was empty
};

// A file system's block as the log has it last.
struct LoggedBlock {
  uint32_t log_block = 0;
  uint32_t sequence = 0;
  JournalTag tag;
};

struct LogContents {
  LogPosition begin;
  LogPosition end;  // after the last committed transaction
  // Every block that a transaction from `begin` on wrote, revoked or not.
  absl::flat_hash_map<uint64_t, LoggedBlock> blocks;
  // The last transaction that revoked a block: what it and earlier ones logged is not replayed.
  absl::flat_hash_map<uint64_t, uint32_t> revoked;
  // True when the log went by the position `passes`.
  bool passed = false;
};

// Reads transactions from `begin` to the last committed one. DataLoss: a transaction that has
// a commit block is damaged (or, in use, was being written).
absl::StatusOr<LogContents> ReadLog(const JournalReader& reader, const JournalSuperblock& journal,
                                    LogPosition begin, LogPosition passes);

// What a logged block holds, as it is to stand in place. DataLoss: its checksum is wrong.
absl::StatusOr<std::string> ReadLogged(const JournalReader& reader,
                                       const JournalSuperblock& journal, const LoggedBlock& logged);

// True when the first block of fast commits holds one that recovery would replay.
absl::StatusOr<bool> HasPendingFastCommit(const JournalReader& reader,
                                          const JournalSuperblock& journal, uint32_t sequence);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_JOURNAL_LOG_H_
