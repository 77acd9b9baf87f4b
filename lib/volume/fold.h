// Makes one large extent of a row that is full of small ones, while the volume is in use.
//
// Small extents that lie one after the other anyway are joined where they are. Others are
// copied to a granted row:
//
//   1. note where the copy goes (a row that was granted as zero is no longer; the next holder
//      must know should this process die here)
//   2. hold changes of the row; those under way have ended then, so all legs are equal
//   3. copy, to every leg; flush the devices it went to
//   4. under the map's lock: if no device of either place is failing, enter the new place and
//      note the move
//   5. forget the note of 1, release
//
// Reads go on all the time: until 4 they find the old place, then the new one, with the
// same bytes in both, and the log gives the old units away only when those that found them
// have ended. A crash of the machine before the move is committed leaves the old place, and
// the flush of 3 makes the new one good whenever that commit happens. What fails before 4
// leaves the map as it was; the copy's row is made zero again, or put aside.
//
// Also hands tables of small extents that are no longer used back to the page table.
#ifndef BRAID_LIB_VOLUME_FOLD_H_
#define BRAID_LIB_VOLUME_FOLD_H_

#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "lib/base/mutex.h"
#include "lib/base/units.h"
#include "lib/volume/thin_state.h"

namespace braid {

class Folder {
 public:
  // What the thread needs of the volume around it. All outlive it.
  struct Hooks {
    // A device did not take a flush: what that means for the volume (volume.h) happens here.
    std::function<void(DeviceIndex device, int error)> flush_failed;
    // There may be more in the reservation.
    std::function<void()> space_came_back;
  };
  Folder(ThinState* state, Hooks hooks);
  // Ends the thread, when a copy under way is done.
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void Stop();

 private:
  // Where a row's units lie, by leg and unit.
  using Places = std::vector<MapWord>;
  enum class Result : uint8_t { kNothing, kCopied, kNotNow };

  void Work();
  Result Fold(ThinState::Row row);
  // The row's places; empty unless every unit has space in sync on every leg, on devices that
  // are not failing, and the row is not large already.
  Places Look(ThinState::Row row) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // Enters a row that lies in one piece on every leg as what it is; false when it does not.
  bool Join(ThinState::Row row, const Places& places) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  bool Move(ThinState::Row row, const Grant& to);
  bool Copy(ThinState::Row row, const Places& from, const Grant& to,
            ThinState::FlushFailures& failures);
  bool Enter(ThinState::Row row, const Places& from, const Grant& to);
  void RecycleTables();

  ThinState& state_;
  const Hooks hooks_;
  std::vector<char> buffer_;  // the thread's
  // A copy's row could not be made zero again; the note of it stands, so no other is made.
  bool disabled_ = false;  // the thread's
  bool stopping_ ABSL_GUARDED_BY(state_.mu) = false;
  std::thread thread_;
};

}  // namespace braid

#endif  // BRAID_LIB_VOLUME_FOLD_H_
