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
// Where nothing is known of when a block was written, it counts as written now. Sequences are
// compared by SequenceAtLeast, since they go round at 2^32.
//
// A view may hold commits that are in the log but not yet safe from power loss. Before a
// release, the volume must have been flushed after the view was taken.
#ifndef BRAID_LIB_EXT4_RECLAIM_H_
#define BRAID_LIB_EXT4_RECLAIM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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
  uint64_t length = 0;     // of the partition, or the volume
  uint32_t partition = 0;  // as the kernel numbers them; 0: the whole volume
};
// The whole volume, or the partitions of a GPT (first or backup header) or MBR table that
// hold ext4 (others are passed over). Empty when there is none. DataLoss: a table that
// contradicts itself, or is one and a file system at once.
absl::StatusOr<std::vector<Place>> FindFileSystems(const ReadVolume& read, uint64_t volume_bytes);

// One ext4 file system in use. Keeps between passes what it needs to look only at block groups
// that changed. One thread at a time, but for ReadCommittedSequence.
class FileSystem {
 public:
  // Bytes of the volume.
  struct Extent {
    uint64_t offset = 0, length = 0;
    friend bool operator==(const Extent&, const Extent&) = default;
  };

  // FailedPrecondition, with what is not understood in words: no journal, external journal,
  // unknown features, bigalloc, asynchronous commits, blocks of 64 KiB, errors that the kernel
  // noted. DataLoss: damaged.
  static absl::StatusOr<std::unique_ptr<FileSystem>> Open(ReadVolume read, const Place& place);
  ~FileSystem();

  const std::string& description() const;  // "ext4 (UUID)"
  const Place& place() const;
  uint32_t block_bytes() const;
  // Where the journal's blocks lie, so that its owner can see writes to it. They do not move
  // while the file system is mounted.
  const std::vector<Extent>& journal() const;
  uint32_t group_count() const;  // as last seen

  // The sequence last committed, as the journal's blocks say now; never less than what was
  // committed when the call began. Aborted: the log was overwritten each time it was read.
  // Thread-safe.
  absl::StatusOr<uint32_t> ReadCommittedSequence() const;

  struct View {
    // A commit that the view contains; of a block it says what held as of this or a later one.
    uint32_t sequence = 0;
    uint32_t groups_total = 0, groups_unchanged = 0;
    // Free ranges, ascending, not touching; of changed groups and of unchanged ones alike (the
    // latter from memory). Whole blocks, never of metadata or the journal.
    std::vector<Extent> free;
  };
  // One consistent view: superblock, log, descriptors and bitmaps read, the log replayed over
  // them in memory (revocations, escaped blocks, checksums v1 to v3, 64-bit tags), BLOCK_UNINIT
  // groups computed, bitmap checksums and counts checked. `offline`: nobody writes; then
  // fast-commit blocks that are pending are a refusal, all groups are looked at, and the view
  // is what recovery will leave. Aborted: the log was overwritten, or groups changed, each
  // time they were read; call again, what was read is not read again. DataLoss: damaged.
  // FailedPrecondition: as Open; or another file system is there now (open it afresh).
  absl::StatusOr<View> Look(bool offline, absl::FunctionRef<void(uint32_t groups_done)> progress);

 private:
  struct State;
  explicit FileSystem(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// True when sequence `a` is `b` or follows it.
constexpr bool SequenceAtLeast(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) >= 0; }

// When a commit counts: the blocks a writer puts into the journal, looked at as they are
// written. The sequence, when `block`, one block of the file system, begins as a commit block
// does; whether its checksum holds is not asked, since to think a commit came too early only
// delays a release, and to miss one could allow it too early. (Logged data cannot begin so: the
// log escapes it.)
std::optional<uint32_t> CommitSequence(absl::Span<const char> block);

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_RECLAIM_H_
