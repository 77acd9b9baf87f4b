// Judges what a volume answered under concurrent requests.
//
// Every changing request has an id of its own and fills each sector it writes with it (a
// zeroing request leaves zeros), and every request, reads too, notes a stamp before it is
// sent and one after it was answered. Afterwards the judge knows, for each word read,
// which writes it may have come from:
//
//   a write W may explain a read R when W began before R ended, and no other write of that
//   sector lay wholly between them (began after W ended, ended before R began).
//
// The content before the history, zeros, counts as a write that ended before all others. A
// request that failed may have happened or not; so may a trim.
//
// This is the rule of an atomic register, sector by sector. That a value once read never
// turns back is stricter (it orders reads among each other), and is judged too: when two
// reads R1, R2 of a sector do not overlap, R2 may not return a write that ended before the
// write R1 returned began.
// Power cuts. A change is durable when it was answered before a flush began that succeeded,
// or went through to the disk itself. A cut leaves of each sector the last durable change
// or any one begun since, so afterwards the changes that were not durable may have
// happened or not, whatever was read of them before; and which it was, reads agree on.
#ifndef BRAID_LIB_TESTING_SECTOR_HISTORY_H_
#define BRAID_LIB_TESTING_SECTOR_HISTORY_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"

namespace braid {

class SectorHistory {
 public:
  // `reads_exclude_writes`: a read must return whole sectors even while they are written
  // (a mirrored volume's promise); else a read may return a mixture then, as from any disk
  // behind a page cache.
  // `power_cuts`: there may be some, which takes remembering more.
  SectorHistory(uint64_t sectors, bool reads_exclude_writes, bool power_cuts = false)
      : sectors_(sectors), reads_exclude_writes_(reads_exclude_writes), power_cuts_(power_cuts) {}

  // Thread-safe; call right before sending and right after the answer.
  uint64_t Now() { return clock_.fetch_add(1) + 1; }

  // A fresh id, never 0.
  uint64_t NewId() { return ids_.fetch_add(1) + 1; }
  // What a write of `id` puts into sectors from `first_sector` on: every 8-byte word holds
  // the id mixed with the sector, so that a misplaced sector shows.
  static void Fill(uint64_t id, uint64_t first_sector, absl::Span<char> data);

  struct Change {
    uint64_t id = 0;  // content; 0 for zeros
    uint64_t first_sector = 0, sectors = 0;
    uint64_t began = 0, ended = 0;
    bool certain = true;   // false: it failed, or was a trim
    bool durable = false;  // answered, and went through to the disk
  };
  void AddChange(const Change& change);
  // A flush that began then has succeeded.
  void AddFlush(uint64_t began);
  // `data` is what a read of these sectors returned.
  void AddRead(uint64_t first_sector, uint64_t began, uint64_t ended, absl::Span<const char> data);

  // "" when everything read can be explained, else what cannot, in words. Forgets the
  // history but for what explains the reads to come: call it while nothing is in flight.
  std::string Judge();
  // After Judge, with nothing in flight: power was lost and is back.
  void PowerCut();

 private:
  struct SectorRead {
    uint64_t sector, began, ended;
    uint64_t id;        // decoded
    bool whole = true;  // all words alike
  };
  static uint64_t Encode(uint64_t id, uint64_t sector);
  std::string JudgeSector(uint64_t sector, std::vector<Change>& changes,
                          std::vector<SectorRead>& reads) const;

  const uint64_t sectors_;
  const bool reads_exclude_writes_;
  const bool power_cuts_;
  std::atomic<uint64_t> clock_{0};
  std::atomic<uint64_t> ids_{0};
  Mutex mu_;
  std::vector<Change> changes_ ABSL_GUARDED_BY(mu_);
  std::vector<SectorRead> reads_ ABSL_GUARDED_BY(mu_);
  uint64_t last_flush_ ABSL_GUARDED_BY(mu_) = 0;  // when the latest that succeeded began
  // Changes of earlier histories that may still be what a sector holds.
  std::vector<std::vector<Change>> carried_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_LIB_TESTING_SECTOR_HISTORY_H_
