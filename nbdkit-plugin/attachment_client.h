// The holder's side of an attachment: takes it, speaks for it while it is held, gives it
// back.
//
//   Take    PrepareAttachment, lock the file it names, OpenAttachment, read the map
//   hold    what MapAuthority has: staleness, faults, and a thin volume's map and space
//   Close   CloseAttachment, after the last flush
//
// The lock is taken before the epoch is asked for and is held until the client is
// destroyed, which must be after the last device of the volume is closed: whoever gets
// the lock next may rely on no write being under way. When the process dies the kernel
// drops it.
//
// A holder that ends without Close leaves an unclean end. The next one on this machine
// finds its journal in the lock file: it makes the copies equal where there was a write,
// and applies the map changes that the control plane does not have yet. If there is none to
// be trusted, one copy stays and the others become stale. Either is always safe, so every
// doubt ends there: Close refuses while copies may differ, because one missed a write that
// could not be made stale, while map changes are not committed, and until what an earlier
// holder left has been settled.
//
// An answer may be lost. A grant whose answer was lost is asked for again with the same
// journal: a journal that says epoch 5 proves that nothing was written under 6, so the site
// lets it be taken over as if 6 had not been (attachments.h of controlplane/core). So the
// journal gets the new epoch once, when the grant has been understood, and no call under
// that epoch comes before. The grants of a TakeSpace whose answer was lost are nobody's
// until Close, when the site takes back all that is not bound.
#ifndef BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_
#define BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "lib/base/mutex.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"
#include "lib/mapping/map_run.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/map_authority.h"
#include "nbdkit-plugin/attachment.h"

namespace braid {

class AttachmentClient : public MapAuthority {
 public:
  struct Options {
    std::string volume;
    std::string target;   // for gRPC
    std::string control;  // the same for people
    absl::Duration timeout;
    bool read_only = false;
    // How long Close waits for an answer.
    absl::Duration close_timeout = absl::Seconds(5);
  };

  // Waits up to options.timeout for a control plane that does not answer. Errors are one
  // line for the operator: Unavailable (nobody answers), FailedPrecondition (in use, not
  // ready, no readable copy), NotFound, DataLoss (an impossible map), or as the control
  // plane said.
  static absl::StatusOr<std::unique_ptr<AttachmentClient>> Take(const Options& options,
                                                                Surroundings surroundings);
  ~AttachmentClient() override = default;

  const Attachment& attachment() const { return attachment_; }
  // The map as granted. Each run lies within the geometry; whether together they leave
  // gaps or overlap is for Volume::Open to see.
  const std::vector<MapRun>& runs() const { return runs_; }
  // Gives back the memory of runs and grants once the volume has them.
  void DropMap();

  // As in MapAuthority. Those that wait end with Cancelled when the process is shut down.
  absl::Status MarkStale(DeviceIndex device, absl::string_view reason) override;
  void ReportFault(absl::string_view what) override;
  absl::Status CommitMap(uint64_t first_sequence, absl::Span<const MapChange> changes) override;
  // A device that cannot be opened on this machine comes as a missing one. Space there is
  // not handed on, and is the volume's until Close, so that the next call brings other space.
  absl::StatusOr<Space> TakeSpace(uint64_t units) override ABSL_LOCKS_EXCLUDED(take_mu_);
  void ReturnSpace(const std::vector<Grant>& grants) override;

  // Of attachment()'s devices, those that could not be opened on this machine.
  void NoteMissing(const std::vector<bool>& missing) ABSL_LOCKS_EXCLUDED(take_mu_);

  // Where the volume notes its writes in flight and its map changes; null where it cannot
  // or need not. A writer of a thin volume always has one.
  AttachmentJournal* journal() const { return journal_.get(); }
  // What journal()->past() tells has been settled.
  void NoteSettled();

  // For calls beside these, under attachment()'s epoch.
  v1::AttachmentService::Stub& stub() const { return *stub_; }
  const Surroundings& surroundings() const { return surroundings_; }

  // No more space is wanted: a call for it that is under way, and may wait for zeros on a
  // device, ends now, and none begins. Thread-safe.
  void ShutDown() ABSL_LOCKS_EXCLUDED(shut_mu_);

  // A clean end. The caller has flushed and writes no more. Waits at most
  // options.close_timeout; an error means that the end counts as unclean.
  absl::Status Close();

 private:
  AttachmentClient(Options options, Surroundings surroundings);
  // Steps of Take, in this order.
  absl::Status Prepare(absl::Time give_up);
  absl::Status Lock();
  absl::Status OpenJournal();
  absl::Status Open(absl::Time give_up);
  absl::Status ReadGrant(grpc::ClientContext& context, const std::string& volume_id);
  // After a grant that was not understood, or not to its end.
  void GiveUpGrant();

  // Calls, each attempt with a deadline of its own, until the answer is one that
  // `again` does not want repeated, or give_up. `waiting` says who waits, for the log.
  absl::Status KeepAsking(absl::Time give_up, absl::Duration attempt,
                          absl::FunctionRef<bool(const absl::Status&)> again,
                          absl::string_view waiting,
                          absl::FunctionRef<absl::Status(grpc::ClientContext&)> call);
  // One attempt, which ShutDown ends.
  absl::Status AskOnce(absl::Duration attempt,
                       absl::FunctionRef<absl::Status(grpc::ClientContext&)> call)
      ABSL_LOCKS_EXCLUDED(shut_mu_);
  // What of an answer can be used here.
  absl::StatusOr<Space> OpenSpace(const v1::TakeSpaceResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(take_mu_);

  const Options options_;
  const Surroundings surroundings_;
  const std::unique_ptr<v1::AttachmentService::Stub> stub_;
  std::string lock_path_;
  bool thin_ = false;  // as Prepare said
  UniqueFd lock_;
  std::unique_ptr<AttachmentJournal> journal_;
  // The journal that can be taken over, as the site is told; Epoch(): none.
  Epoch settles_;
  // Constant after Take.
  Attachment attachment_;
  std::vector<MapRun> runs_;
  // Copies may differ: one missed a write, and nobody could be told; or an earlier holder
  // left writes in flight. Or map changes are not committed.
  std::atomic<bool> unsettled_{false};

  Mutex take_mu_;
  std::vector<DeviceIdentity> devices_ ABSL_GUARDED_BY(take_mu_);  // all known, by DeviceIndex
  std::vector<bool> missing_ ABSL_GUARDED_BY(take_mu_);            // likewise
  // Not handed to the volume yet: they come with the next space.
  std::vector<std::unique_ptr<BlockDevice>> opened_ ABSL_GUARDED_BY(take_mu_);

  Mutex shut_mu_;
  bool shut_ ABSL_GUARDED_BY(shut_mu_) = false;
  grpc::ClientContext* asking_ ABSL_GUARDED_BY(shut_mu_) = nullptr;
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_
