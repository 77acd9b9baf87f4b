// A file system's superblock, descriptors and log as they stood at one commit.
//
// In place, a block holds what the last transaction but those in the log's live part left in
// it, or something newer: the kernel writes a block in place only with what has committed
// (a block that belongs to a running transaction is not written back), and moves the tail only
// after that. So, with S the last committed transaction in the log that was read: the live log's
// last copy of a block, or else what is in place whenever that is read, is the block as of S or
// of a later commit. The copies of descriptors and block bitmaps in the log are read first, then
// the journal's superblock again: if the tail has not moved, no copy was written over. From
// there on only blocks in place are read, for as long as it takes.
//
// Blocks read in place may thus be newer than each other. A bit in a bitmap holds for its own
// block as of S or later, whatever the other blocks say; that a bitmap and its descriptor are of
// the same transaction is for the caller to check, by checksum and count.
#ifndef BRAID_LIB_EXT4_SNAPSHOT_H_
#define BRAID_LIB_EXT4_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "lib/ext4/ext2fs_c.h"
#include "lib/ext4/journal_log.h"
#include "lib/ext4/reclaim.h"
#include "lib/ext4/volume_io.h"

namespace braid::ext4 {

class Snapshot {
 public:
  // `since`: the end of an earlier snapshot; see ChangedSince. `offline`: nobody writes; then
  // the log must be one that recovery would replay, whole. Not offline, what looks damaged is
  // looked at again a few times before that is said. Aborted: the log was written over
  // each time.
  static absl::StatusOr<std::unique_ptr<Snapshot>> Take(const ReadVolume& read, const Place& place,
                                                        const JournalReader& journal,
                                                        std::optional<LogPosition> since,
                                                        bool offline);

  ext2_filsys fs() const { return fs_.get(); }
  // The last committed transaction that it holds.
  uint32_t sequence() const { return end_.sequence - 1; }
  LogPosition end() const { return end_; }

  // Whether a transaction wrote `block` between `since` and this snapshot; nullopt where the
  // log does not tell any more.
  std::optional<bool> ChangedSince(uint64_t block) const;

  // A block bitmap that is in the log; null for those that are in place.
  const std::string* LoggedBitmap(uint64_t block) const;

 private:
  Snapshot(const ReadVolume& read, const Place& place, const JournalReader& journal)
      : bytes_(read, place), place_(place), journal_(journal) {}

  absl::Status Fill(std::optional<LogPosition> since, bool offline);
  absl::Status ReadLogSince(std::optional<LogPosition> since);
  absl::Status PinSuperblock();
  absl::Status CheckOffline();
  absl::Status LoadBitmaps();
  // What the log has for `block`, read when first asked for; null when it is in place.
  absl::StatusOr<const std::string*> Find(uint64_t block);
  const LoggedBlock* LiveCopy(uint64_t block) const;

  FileSystemBytes bytes_;
  const Place place_;
  const JournalReader& journal_;
  JournalSuperblock superblock_;
  LogContents log_;
  LogPosition end_;
  std::optional<uint32_t> since_sequence_;  // set: the log tells what changed from there on
  absl::flat_hash_map<uint64_t, std::unique_ptr<const std::string>> copies_;
  Ext2 fs_;  // reads through bytes_
};

// The last committed transaction in the log, now.
absl::StatusOr<uint32_t> LastCommitted(const JournalReader& journal);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_SNAPSHOT_H_
