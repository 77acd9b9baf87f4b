#include "nbdkit-plugin/session.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "nbdkit-plugin/devices.h"

namespace braid {
namespace {

std::string Describe(const Attachment& attachment) {
  const Geometry& geometry = attachment.geometry;
  std::string text = absl::StrCat("Braid volume ", attachment.site, "/", attachment.name, ", ",
                                  FormatSize(geometry.size_bytes()));
  if (geometry.columns() > 1)
    absl::StrAppend(&text, ", ", geometry.columns(), " stripes of ",
                    FormatSize(geometry.stripe_bytes()));
  if (geometry.legs() > 1) absl::StrAppend(&text, ", ", geometry.legs(), " copies");
  return text;
}

}  // namespace

absl::StatusOr<std::shared_ptr<Session>> Session::Start(const PluginConfig& config,
                                                        const Surroundings& surroundings) {
  auto session = absl::WrapUnique(new Session);
  session->read_only_ = config.read_only;
  absl::StatusOr<std::unique_ptr<AttachmentClient>> client =
      AttachmentClient::Take(AttachmentClient::Options{.volume = config.volume,
                                                       .target = config.target,
                                                       .control = config.control,
                                                       .timeout = config.control_timeout,
                                                       .read_only = config.read_only},
                             surroundings);
  if (!client.ok()) return client.status();
  session->client_ = *std::move(client);
  const Attachment& attachment = session->client_->attachment();
  session->description_ = Describe(attachment);

  OpenedDevices opened = OpenDevices(attachment.devices, config.read_only, surroundings);
  absl::Status status;
  if (opened.missing == opened.devices.size()) {
    status = absl::FailedPreconditionError(absl::StrCat(
        "none of the devices of volume ", attachment.name, " can be used; bring back at least ",
        "one, the lines above say what is wrong with each"));
  } else {
    absl::StatusOr<std::unique_ptr<Volume>> volume =
        Volume::Open(attachment.geometry, session->client_->runs(), std::move(opened.devices),
                     session->client_.get(), session->client_->journal(), config.read_only);
    session->client_->DropRuns();
    status = volume.status();
    if (volume.ok()) session->volume_ = *std::move(volume);
    if (status.ok()) status = session->SettlePast(surroundings);
  }
  if (!status.ok()) {
    // Nothing was written by this holder: a clean end, unless the one before left something.
    const absl::Status closed = session->client_->Close();
    if (!closed.ok())
      surroundings.log(absl::StrCat("the attachment could not be given back: ", closed.message()));
    return status;
  }
  return std::shared_ptr<Session>(std::move(session));
}

absl::Status Session::SettlePast(const Surroundings& surroundings) {
  const AttachmentJournal* const journal = client_->journal();
  if (journal == nullptr) return absl::OkStatus();
  const AttachmentJournal::Past past = journal->past().value_or(AttachmentJournal::Past());
  if (!past.writes.empty() || !past.doubted.empty()) {
    surroundings.log(absl::StrCat("the last server of volume ", name(), " died with ",
                                  past.writes.size(), " writes in flight; settling them"));
  }
  if (absl::Status status = volume_->Settle(past); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("what the last server of volume ", name(),
                                     " had in flight could not be settled: ", status.message()));
  }
  client_->NoteSettled();
  return absl::OkStatus();
}

bool Session::IsExport(absl::string_view name) const {
  const Attachment& attachment = client_->attachment();
  return name.empty() || name == attachment.name ||
         name == absl::StrCat(attachment.site, "/", attachment.name);
}

absl::Status Session::Finish() {
  const absl::Status flushed = volume_->Flush();
  if (!flushed.ok())
    return absl::Status(flushed.code(), absl::StrCat("the last flush failed: ", flushed.message()));
  return client_->Close();
}

}  // namespace braid
