// One volume in use by this process: the attachment, the open devices, the volume, and what is
// done for it in the background.
#ifndef BRAID_NBDKIT_PLUGIN_SESSION_H_
#define BRAID_NBDKIT_PLUGIN_SESSION_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/volume/volume.h"
#include "nbdkit-plugin/attachment_client.h"
#include "nbdkit-plugin/client_count.h"
#include "nbdkit-plugin/config.h"
#include "nbdkit-plugin/error_log.h"
#include "nbdkit-plugin/reclaim.h"
#include "nbdkit-plugin/tasks.h"
#include "nbdkit-plugin/write_watch.h"

namespace braid {

class Session {
 public:
  // Takes the attachment and opens the volume. Starts threads: only after the fork.
  // When it fails nothing is held any more. Errors are one line for the operator.
  static absl::StatusOr<std::shared_ptr<Session>> Start(const PluginConfig& config,
                                                        const Surroundings& surroundings);

  Volume& volume() { return *volume_; }
  ErrorLog& errors() { return errors_; }
  const std::string& name() const { return client_->attachment().name; }
  const std::string& description() const { return description_; }
  bool read_only() const { return read_only_; }
  // Clients' changes are noted here; null where nobody asks. For clients that may write.
  WriteWatch* watch() { return watch_.get(); }
  ClientCount& clients() { return clients_; }

  // Whether a client that asks for this export means this volume: by its name, by
  // "site/name", or by "", the default.
  bool IsExport(absl::string_view name) const;

  // The clean end: commits, flushes and gives the attachment back. No request is under way and
  // none comes after; the devices and the lock stay until the session is destroyed. An error
  // tells why the end counts as unclean.
  absl::Status Finish();

 private:
  Session() = default;
  // Opens devices and volume of what was taken.
  absl::Status OpenVolume(const Surroundings& surroundings);
  // Makes copies equal where the holder before died while writing.
  absl::Status SettlePast(const AttachmentJournal::Past& past, const Surroundings& surroundings);
  // What a thin volume has beside.
  absl::Status StartReclaim(const Surroundings& surroundings);

  // Destroyed from the last to the first: the lock in the client outlives the devices.
  std::unique_ptr<AttachmentClient> client_;
  std::unique_ptr<Volume> volume_;
  std::string description_;
  bool read_only_ = false;
  ErrorLog errors_;
  ClientCount clients_;
  // Of thin volumes that may be written.
  std::unique_ptr<WriteWatch> watch_;
  std::unique_ptr<ReclaimVolume> reclaim_volume_;
  std::unique_ptr<Reclaimer> reclaimer_;
  std::unique_ptr<Tasks> tasks_;
};

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_SESSION_H_
