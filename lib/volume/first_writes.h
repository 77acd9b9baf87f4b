// First writes of a thin volume: gives units space before data goes there, and keeps the
// reservation that they are served from filled.
//
// A request takes space for all of its units or for none, so that one that fails for want
// of space has changed nothing. Where there is not enough it waits, holding nothing that
// another request could wait for, while a thread asks the authority: ahead of need by
// about what two seconds took lately, so that a steady writer never waits, and gives back
// what is left when nothing was bound for some seconds.
#ifndef BRAID_LIB_VOLUME_FIRST_WRITES_H_
#define BRAID_LIB_VOLUME_FIRST_WRITES_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "lib/base/mutex.h"
#include "lib/volume/column_units.h"
#include "lib/volume/thin_state.h"

namespace braid {

// What a first write does when there is no space to be had.
enum class WhenFull : uint8_t {
  kFail,  // fails with ENOSPC
  kWait,  // is held until there is
};

// How much would happen in two seconds at the highest rate of the last two, by quarters of a
// second: so that one who has just begun is known by what he does, not by what he has done.
class RecentCount {
 public:
  using Clock = std::chrono::steady_clock;

  void Add(uint64_t amount, Clock::time_point now);
  uint64_t AtPeak(Clock::time_point now) const;

 private:
  static constexpr std::chrono::milliseconds kSlice{250};
  struct Slice {
    int64_t number = -1;
    uint64_t amount = 0;
  };
  std::array<Slice, 8> slices_;
};

// Thread-safe.
class FirstWrites {
 public:
  struct Options {
    WhenFull when_full = WhenFull::kWait;
    // Of kWait: how long a write is held by a full pool before it fails all the same.
    absl::Duration full_timeout = absl::InfiniteDuration();
    // May be empty. Asked about once a second on the thread of a request that waits, and once
    // more before it binds what it waited for: false makes it fail with ESHUTDOWN.
    std::function<bool()> wanted;
  };
  // `state` outlives it. `stopped` is called, from a thread, when the authority refuses for
  // good.
  FirstWrites(ThinState* state, const Options& options,
              std::function<void(const absl::Status&)> stopped);
  ~FirstWrites();
  FirstWrites(const FirstWrites&) = delete;
  FirstWrites& operator=(const FirstWrites&) = delete;

  // Binds every unit of the range that has no space and where `data` is not all zeros; all
  // of them or none. Returns at once when there are none. Not inside a pass. ENOSPC: there
  // is no space (see WhenFull); other errors: the volume has stopped.
  absl::Status EnsureMapped(uint64_t offset, absl::Span<const char> data);

  // Fails those that wait, and all that would, with `why`.
  void End(const absl::Status& why);
  // Ends the thread, as the destructor does.
  void Stop();
  // The thread looks again: there is something unwanted, or a fold needs a row.
  void Nudge();

 private:
  using Clock = RecentCount::Clock;

  // What one row of the map lacks for a request.
  struct RowNeed {
    ThinState::Row row;
    UnitRanges units;  // without space, and to be written
    uint64_t count = 0;
    bool large = false;  // better served by a whole row
  };
  // All that a request lacks.
  struct Needs {
    std::vector<RowNeed> rows;
    uint64_t least_units = 0;   // when no row is served whole
    uint64_t wanted_units = 0;  // when those that had better be are
  };
  // What is bound to what.
  struct Binding {
    UnitRange units;
    Grant grant;
  };

  // Units of the range without space whose new content is not all zeros, ordered by column
  // and unit, in ranges that do not touch. Looks without the lock.
  std::vector<UnitRange> Lacking(uint64_t offset, absl::Span<const char> data) const;
  // Those of them that still have none.
  Needs NeedsOf(absl::Span<const UnitRange> lacking) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  bool BetterLarge(const RowNeed& need) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // Takes all of `needs` from the reservation, or nothing: empty.
  std::vector<Binding> Take(const Needs& needs) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  bool TakeRow(const RowNeed& need, std::vector<Binding>& taken)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::Status Bind(const std::vector<Binding>& bindings) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // Waits once, until something may have changed. An error: do not go on waiting.
  absl::Status AwaitSpace(const Needs& needs, std::optional<Clock::time_point>& give_up)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // The thread.
  void Refill();
  // Units to ask for now; 0 none.
  uint64_t Wanted(Clock::time_point now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  uint64_t Target(Clock::time_point now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // When to look again though nobody calls; max() when that need not be.
  Clock::time_point NextLook(Clock::time_point now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void Ask(uint64_t units) ABSL_LOCKS_EXCLUDED(state_.mu);
  absl::Status TakeIn(MapAuthority::Space space) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  ThinState& state_;
  const Options options_;
  const std::function<void(const absl::Status&)> stopped_;
  const uint64_t least_reserve_;  // units

  // All guarded by state_.mu.
  CondVar space_changed_;                                  // for those who wait
  CondVar refill_;                                         // for the thread
  uint64_t waiting_ ABSL_GUARDED_BY(state_.mu) = 0;        // requests
  uint64_t waiting_units_ ABSL_GUARDED_BY(state_.mu) = 0;  // what they lack
  bool full_ ABSL_GUARDED_BY(state_.mu) = false;           // so said the last answer
  bool ending_ ABSL_GUARDED_BY(state_.mu) = false;
  absl::Status ended_ ABSL_GUARDED_BY(state_.mu);
  Clock::time_point asked_ ABSL_GUARDED_BY(state_.mu);  // when an answer last was no
  bool refused_ ABSL_GUARDED_BY(state_.mu) = false;     // the last answer was no, of any kind
  RecentCount bound_ ABSL_GUARDED_BY(state_.mu);
  Clock::time_point last_bound_ ABSL_GUARDED_BY(state_.mu);

  std::thread thread_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_FIRST_WRITES_H_
