// Finds what an ext4 file system no longer uses, from its bitmaps and its log, while it may
// be mounted and written by someone else. Reads only; who owns the volume releases.
//
// The danger. What is on disk is always a little old: a block that the committed bitmaps call
// free may just have been given to a file whose transaction has not committed, and its data
// may be on disk before the bitmap says so. The rule: a block may be released only if a
// view of the bitmaps calls it free whose journal sequence is at least two past the sequence
// that was last committed when the block was last written, and it was not written since.
// (Ordered data is written before its transaction commits; a block freed by transaction N can
// be reused from N + 1 on, and data of transaction N + 1 may be written while N commits.)
// Where nothing is known of when a block was written, it counts as written now.
#ifndef BRAID_LIB_EXT4_RECLAIM_H_
#define BRAID_LIB_EXT4_RECLAIM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace braid::ext4 {

// How the volume is read. Bytes from the volume's first. Thread-safe.
using ReadVolume = std::function<absl::Status(uint64_t offset, absl::Span<char> data)>;

// Where an ext4 file system lies in the volume.
struct Place {
  uint64_t offset = 0;
  uint64_t length = 0;      // of the partition, or the volume
  uint32_t partition = 0;   // 0: the whole volume
};
// The whole volume, or the partitions of a GPT (first or backup header) or MBR table that
// hold ext4 (others are passed over). Empty when there is none. DataLoss: a table that
// contradicts itself.
absl::StatusOr<std::vector<Place>> FindFileSystems(const ReadVolume& read, uint64_t volume_bytes);

// One ext4 file system in use. Keeps between passes what it needs to look only at block groups
// that changed. Not thread-safe, but for NoteWrite and CommittedSequence.
class FileSystem {
 public:
  // Where the journal's blocks lie, so that its owner can see writes to it.
  struct Extent { uint64_t offset = 0, length = 0; };

  // FailedPrecondition, with what is not understood in words: no journal, external journal,
  // unknown incompatible features, bigalloc, async commit, meta_bg is fine or refused as you
  // can show, an orphan or error state that a replay does not cure, 64 KiB blocks.
  static absl::StatusOr<std::unique_ptr<FileSystem>> Open(ReadVolume read, const Place& place);
  ~FileSystem();

  const std::string& description() const;   // "ext4 (UUID)"
  const Place& place() const;
  const std::vector<Extent>& journal() const;  // volume bytes
  uint32_t group_count() const;

  // The journal sequence (tid) last committed as its blocks say now: reads the log's tail.
  absl::StatusOr<uint32_t> ReadCommittedSequence();

  struct View {
    uint32_t sequence = 0;       // last commit that the view contains
    uint32_t groups_total = 0, groups_unchanged = 0;
    // Free ranges, ascending, not touching, bytes of the volume; of changed groups and of
    // unchanged ones alike (the latter from memory).
    std::vector<Extent> free;
  };
  // One consistent view: superblock, log, descriptors and bitmaps read, the log replayed over
  // them in memory (revocations, escaped blocks, checksums v1 to v3, 64-bit tags), BLOCK_UNINIT
  // groups computed, bitmap checksums checked. `offline`: nobody writes; then fast-commit
  // blocks that are pending are a refusal. Aborted: the log was overwritten meanwhile (the
  // superblock or log tail changed while reading); call again. DataLoss: damaged.
  absl::StatusOr<View> Look(bool offline, absl::FunctionRef<void(uint32_t groups_done)> progress);

 private:
  struct State;
  explicit FileSystem(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// When a commit counts: the block numbers a writer put into the journal, looked at as they
// are written. Given each write to the journal area, finds commit records.
// The sequence of a valid commit block (magic, type, checksum where the feature says) at the
// head of `block`, or nullopt.
std::optional<uint32_t> CommitSequence(absl::Span<const char> block, bool checksum_v2_or_3,
                                       uint32_t checksum_seed);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_RECLAIM_H_
