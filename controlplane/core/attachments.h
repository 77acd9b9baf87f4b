// Who may use a volume: epochs, and what an unclean end leaves behind.
//
// One holder at a time. A holder flocks the volume's lock file before it asks, and keeps it
// to the end of its process; the kernel drops it with the process, however that ends. Who
// comes with the lock held has therefore outlived every earlier holder on this machine, and
// the site needs no lease or clock to give out the next epoch. Holders on other machines
// cannot show that, and are refused until there is someone there to ask.
//
// `held` is committed before a holder may do its first I/O and cleared after its clean
// end. When it is set as the next one comes, the last holder ended uncleanly: a write of
// its may have reached some legs and not others. If only its process ended, its journal
// (lib/volume/attachment_journal.h) says which writes, and a writer that has found it makes
// the legs equal there: all copies stay. The journal counts when its epoch is the one on
// record and the machine has not restarted since. In every other case, if the holder could
// write, of every extent one in-sync copy stays and the others become stale, in the very
// commit that grants the next epoch, for a reader as for a writer: whatever was read once
// cannot turn back. A reader leaves nothing behind.
//
// A fault (an only copy was lost) stays with the volume until it is deleted. A clean write
// does not clear it: what was lost is still lost, elsewhere, and only the owner of the data
// can know that it has been restored. The first one stays; what follows is mostly its echo.
//
// A thin volume's holder notes in its journal also what it made of the space it was granted.
// So a next holder that has the journal keeps the grants. Without it nobody knows which of
// them were written to: in the same commit they cease to be granted, and go back to the free
// space or to what is set aside for the volume, where nothing counts as zero. After a restart of
// the machine that is as it should be: what was not flushed is lost, as on any disk. Without
// one, acknowledged writes may be lost, and if anything was granted that is a fault; a holder
// that took no space has bound none. A reader cannot take a journal over, and must not decide
// for the next writer that it is lost: on the same boot it is refused until a writer has been
// there.
//
// An answer may be lost: braidd may end between its commit and its answer, or the holder
// between that and the first mark of its epoch in its journal. So the record keeps which
// journal a holder took over. A holder makes no call and no I/O under its epoch before its
// journal says so; when the next one finds that same older journal, the last one never began,
// and what counted for it counts again.
#ifndef BRAID_CONTROLPLANE_CORE_ATTACHMENTS_H_
#define BRAID_CONTROLPLANE_CORE_ATTACHMENTS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "controlplane/core/site_state.h"

namespace braid {

struct HolderSpec {
  Uuid boot_id;
  uint64_t pid = 0;
  bool read_only = false;
  // Whose notes of writes in flight and map changes it has and will settle; Epoch() none.
  Epoch settles;
};

// A volume as it was granted.
struct Opened {
  VolumePtr volume;  // its record has the epoch, and the number of the last map change
  std::shared_ptr<const std::vector<MapRun>> runs;
  std::vector<Grant> grants;  // handed out and not bound
  // The journal counts: what it notes must be settled. Else it is to be forgotten.
  bool takes_over = false;
};

// Thread-safe.
class Attachments {
 public:
  // Lock files are kept in `lock_dir`, which exists.
  Attachments(SiteState* state, std::string lock_dir)
      : state_(*state), lock_dir_(std::move(lock_dir)) {}

  // Makes the lock file of a volume, if it is not there, and says where it is.
  // FailedPrecondition: the volume is not ready.
  absl::StatusOr<std::string> Prepare(const VolumeRecord& volume) const;
  // Errors: see OpenAttachment in attachment.proto.
  absl::StatusOr<Opened> Open(const Uuid& volume, const HolderSpec& holder);
  // Errors of these: NotFound, FailedPrecondition (the epoch is over).
  absl::Status MarkStale(const Uuid& volume, Epoch epoch, DeviceIndex device);
  absl::Status ReportFault(const Uuid& volume, Epoch epoch, absl::string_view what);
  absl::Status Close(const Uuid& volume, Epoch epoch);
  // The volume, if `epoch` is its present one and held. It stays so within a Change.
  absl::StatusOr<VolumePtr> Held(const Uuid& volume, Epoch epoch) const;

  // Once, before anyone is served: takes back what holders were granted that died with this
  // machine's last run. Their volumes may never be attached again.
  absl::Status FreeAfterRestart();

  // Whether the process that holds the volume runs. An error when that cannot be found
  // out; it must be taken to run then.
  absl::StatusOr<bool> HolderAlive(const VolumeRecord& volume) const;
  // FailedPrecondition when a holder runs, or may run. Unavailable, within a Change, while
  // space of the volume is being zeroed for a holder that has ended: it must not be freed.
  absl::Status CheckNotHeld(const VolumeEntry& volume) const;
  // Removes what is left of a deleted volume's lock.
  void Forget(const Uuid& volume);

  // While it lives nobody may open, delete or change the volume: something with it takes longer
  // than a Change. Open and CheckNotHeld are Unavailable.
  class Detached {
   public:
    ~Detached();
    Detached(const Detached&) = delete;
    Detached& operator=(const Detached&) = delete;

   private:
    friend class Attachments;
    Detached(Attachments* attachments, const Uuid& volume)
        : attachments_(*attachments), volume_(volume) {}
    Attachments& attachments_;
    const Uuid volume_;
  };
  // Within a Change. Errors of CheckNotHeld.
  absl::StatusOr<std::unique_ptr<Detached>> KeepDetached(const VolumeEntry& volume)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  std::string PathOf(const Uuid& volume) const;
  absl::Status CheckNotKept(const VolumeRecord& volume) const ABSL_LOCKS_EXCLUDED(mu_);

  SiteState& state_;
  const std::string lock_dir_;
  mutable absl::Mutex mu_;  // taken after the locks of the state; nothing is taken after it
  absl::flat_hash_set<Uuid> kept_ ABSL_GUARDED_BY(mu_);
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_ATTACHMENTS_H_
