// The holder's side of an attachment: takes it, speaks for it while it is held, gives it
// back.
//
//   Take    PrepareAttachment, lock the file it names, OpenAttachment, read the map
//   hold    MarkStale, ReportFault: the volume's authority over its legs
//   Close   CloseAttachment, after the last flush
//
// The lock is taken before the epoch is asked for and is held until the client is
// destroyed, which must be after the last device of the volume is closed: whoever gets
// the lock next may rely on no write being under way. When the process dies the kernel
// drops it.
//
// A holder that ends without Close leaves an unclean end. The next one on this machine
// finds its journal in the lock file and makes the copies equal where it was writing; if
// there is none to be trusted, one copy stays and the others become stale. Either is always
// safe, so every doubt ends there: Close refuses while copies may differ, because one
// missed a write that could not be made stale, or because what an earlier holder left has
// not been settled.
#ifndef BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_
#define BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "braid/v1/attachment.grpc.pb.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"
#include "lib/base/uuid.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_run.h"
#include "lib/volume/attachment_journal.h"
#include "lib/volume/volume.h"

namespace braid {

// What the client needs of the process around it.
struct Surroundings {
  // One line for people.
  std::function<void(absl::string_view line)> log;
  // Waits; false when there is no point in waiting any longer, because the process is
  // being shut down. Thread-safe.
  std::function<bool(absl::Duration)> sleep;
};

struct DeviceIdentity {
  Uuid id;  // what the label must say
  std::string name;
  std::string path;
  uint64_t size_bytes = 0;
};

// What was granted. Checked: every field within its bounds.
struct Attachment {
  std::string volume_id;
  std::string site;
  std::string name;
  Epoch epoch;
  Geometry geometry;
  std::vector<DeviceIdentity> devices;  // by DeviceIndex
};

class AttachmentClient : public LegAuthority {
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
  // Gives back their memory once the volume has them.
  void DropRuns() { runs_ = {}; }

  // As in LegAuthority. Cancelled when the process is shut down while it waits.
  absl::Status MarkStale(DeviceIndex device, absl::string_view reason) override;
  void ReportFault(absl::string_view what) override;

  // Where the volume notes its writes in flight; null where it cannot or need not.
  AttachmentJournal* journal() const { return journal_.get(); }
  // What journal()->past() tells has been settled.
  void NoteSettled();

  // A clean end. The caller has flushed and writes no more. Waits at most
  // options.close_timeout; an error means that the end counts as unclean.
  absl::Status Close();

 private:
  AttachmentClient(Options options, Surroundings surroundings);
  // Steps of Take, in this order.
  absl::Status Prepare(absl::Time give_up);
  absl::Status Lock();
  void OpenJournal();
  absl::Status Open(absl::Time give_up);
  absl::Status ReadGrant(grpc::ClientContext& context, const std::string& volume_id);

  // Calls, each attempt with a deadline of its own, until the answer is one that
  // `again` does not want repeated, or give_up. `waiting` says who waits, for the log.
  absl::Status KeepAsking(absl::Time give_up, absl::Duration attempt,
                          absl::FunctionRef<bool(const absl::Status&)> again,
                          absl::string_view waiting,
                          absl::FunctionRef<absl::Status(grpc::ClientContext&)> call);

  const Options options_;
  const Surroundings surroundings_;
  const std::unique_ptr<braid::v1::AttachmentService::Stub> stub_;
  std::string lock_path_;
  UniqueFd lock_;
  std::unique_ptr<AttachmentJournal> journal_;
  // Constant after Take.
  Attachment attachment_;
  std::vector<MapRun> runs_;
  // Copies may differ: one missed a write, and nobody could be told; or an earlier holder
  // left writes in flight.
  std::atomic<bool> unsettled_{false};
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ATTACHMENT_CLIENT_H_
