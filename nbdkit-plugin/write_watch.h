// When each part of a thin volume was last written, reckoned in commits of the file systems in
// it: what releasing space under a mounted file system stands on (lib/ext4/reclaim.h).
//
// The clock. Every commit record that a client sends to a journal turns it one tick on, before
// the record reaches the volume. Every write stamps the extents it touches with the present
// tick, before it reaches the volume. For each journal the last commits and their ticks are
// remembered. So for a view of a file system whose last commit is v, an extent is settled if
// its stamp is below the tick of commit v - 1: when it was last written, v - 2 was the last one
// committed, or an older one. Commits have numbers without a gap; where v - 1 was not seen,
// nothing is settled.
//
//   - A write that is under way, or comes later than the view, has a stamp that is not below:
//     the view holds v, so v's tick was there before the view was read.
//   - What was written before the journal was watched counts as written when watching began:
//     the first commit seen after that is only the next one, so two must be seen before
//     anything is settled.
//   - Whatever is not understood - a record out of order, a journal block written in part or
//     zeroed, a commit that failed - forgets all that was seen of that journal, and the
//     tick turns on: all counts as written now.
//
// One clock serves all journals, and survives a mkfs, as stamps never have to be taken back. It
// stops after 2^32 - 2 ticks (seven weeks of a thousand commits a second); from there on
// everything counts as written now, until the volume is attached again.
#ifndef BRAID_NBDKIT_PLUGIN_WRITE_WATCH_H_
#define BRAID_NBDKIT_PLUGIN_WRITE_WATCH_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "lib/base/mutex.h"
#include "lib/mapping/reserved_memory.h"

namespace braid {

// Thread-safe.
class WriteWatch {
 public:
  // A stamp of 4 bytes for each of these: 64 MiB of address space for 64 TiB.
  static constexpr uint64_t kStampBytes = uint64_t{4} << 20;
  // Commits remembered of each journal; a view is younger by far.
  static constexpr size_t kCommits = 4096;

  // ResourceExhausted: no address space.
  static absl::StatusOr<std::unique_ptr<WriteWatch>> Create(uint64_t volume_bytes);
  WriteWatch(const WriteWatch&) = delete;
  WriteWatch& operator=(const WriteWatch&) = delete;

  // A client's change of the volume while it is under way: begins before the volume sees it,
  // ends after.
  class Change {
   public:
    // A write of `data`. `watch` may be null: then nothing is done.
    Change(WriteWatch* watch, uint64_t offset, absl::Span<const char> data);
    // Zeroes. A trim leaves no data behind, but in a journal it is one too.
    enum class Kind : uint8_t { kZero, kTrim };
    Change(WriteWatch* watch, uint64_t offset, uint64_t length, Kind kind);
    ~Change();
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;
    // Without it the change counts as failed.
    void Succeeded() { ok_ = true; }

   private:
    WriteWatch* const watch_;
    bool ok_ = false;
    struct Commit {
      uint64_t journal;
      uint32_t sequence;
    };
    std::vector<Commit> commits_;  // in this write; nearly always none
    friend class WriteWatch;
  };

  struct Range {
    uint64_t offset = 0;
    uint64_t length = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };
  struct Journal {
    std::vector<Range> places;  // in volume bytes, whole blocks
    uint32_t block_bytes = 0;   // a power of two
    // The sequence of the commit record that a block is, if it is one. May take another
    // block for one: a commit that is thought to come early only defers more.
    std::function<std::optional<uint32_t>(absl::Span<const char> block)> commit_in;
  };
  // Watches from now on; the number to ask with.
  uint64_t Add(Journal journal) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(uint64_t journal) ABSL_LOCKS_EXCLUDED(mu_);

  // For a view that ends with commit `sequence`: extents with a stamp below are settled. 0
  // where nothing is.
  uint32_t SettledBelow(uint64_t journal, uint32_t sequence) const ABSL_LOCKS_EXCLUDED(mu_);
  // Whether each of the extents that the range touches has a stamp below `tick`.
  bool StampedBelow(uint32_t tick, uint64_t offset, uint64_t length) const;

  // The last commit seen.
  std::optional<uint32_t> Newest(uint64_t journal) const ABSL_LOCKS_EXCLUDED(mu_);
  // Whether the record of a commit up to `sequence` is being written. Once none is, a flush
  // makes them durable.
  bool UnderWay(uint64_t journal, uint32_t sequence) const ABSL_LOCKS_EXCLUDED(mu_);

  // Whether there was a write or a zeroing since the last call: what a file system was found
  // to be may have changed.
  bool TakeChanged() { return changed_.exchange(false, std::memory_order_relaxed); }

 private:
  struct Seen {
    uint32_t sequence;
    uint32_t tick;
    uint32_t under_way;
  };
  struct Watched {
    Journal journal;
    std::deque<Seen> seen;  // ascending in both; the last ones
  };

  WriteWatch(uint64_t volume_bytes, ReservedMemory stamps);
  void Stamp(uint64_t offset, uint64_t length);
  bool MayTouchJournal(uint64_t offset, uint64_t length) const;
  void Look(Change& change, uint64_t offset, absl::Span<const char> data) ABSL_LOCKS_EXCLUDED(mu_);
  void Spoil(uint64_t offset, uint64_t length) ABSL_LOCKS_EXCLUDED(mu_);
  void End(const Change& change) ABSL_LOCKS_EXCLUDED(mu_);
  void SeeCommit(Watched& watched, uint32_t sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(Watched& watched) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Tick() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SpanJournals() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const uint64_t volume_bytes_;
  const ReservedMemory stamps_;  // one atomic uint32_t each
  // Stamps of 0 are of extents not written since the start. Turned on under mu_.
  std::atomic<uint32_t> tick_{1};
  std::atomic<bool> changed_{false};
  // All journals lie in here: writes elsewhere take no lock.
  std::atomic<uint64_t> journals_begin_{UINT64_MAX};
  std::atomic<uint64_t> journals_end_{0};

  mutable Mutex mu_;
  std::map<uint64_t, Watched> journals_ ABSL_GUARDED_BY(mu_);
  uint64_t next_journal_ ABSL_GUARDED_BY(mu_) = 1;
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_WRITE_WATCH_H_
