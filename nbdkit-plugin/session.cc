#include "nbdkit-plugin/session.h"

#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "nbdkit-plugin/devices.h"
#include "nbdkit-plugin/reclaim_ext4.h"

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
  if (attachment.thin) absl::StrAppend(&text, ", thin");
  return text;
}

class VolumeOfReclaim final : public ReclaimVolume {
 public:
  explicit VolumeOfReclaim(Volume* volume) : volume_(*volume) {}

  uint64_t size_bytes() const override { return volume_.geometry().size_bytes(); }
  uint64_t row_bytes() const override { return volume_.geometry().columns() * kExtentBytes; }
  absl::Status Read(uint64_t offset, absl::Span<char> data) override {
    return volume_.Read(offset, data);
  }
  absl::Status Flush() override { return volume_.Flush(); }
  uint64_t MappedBytes(uint64_t offset, uint64_t length) override {
    return volume_.MappedBytes(offset, length);
  }
  absl::StatusOr<uint64_t> ReleaseIf(uint64_t offset, uint64_t length,
                                     absl::FunctionRef<bool()> still_free) override {
    return volume_.ReleaseIf(offset, length, still_free);
  }

 private:
  Volume& volume_;
};

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
  session->description_ = Describe(session->client_->attachment());
  const absl::Status status = session->OpenVolume(surroundings);
  if (!status.ok()) {
    // Nothing was written by this holder: a clean end, unless the one before left something.
    const absl::Status closed = session->client_->Close();
    if (!closed.ok())
      surroundings.log(absl::StrCat("the attachment could not be given back: ", closed.message()));
    return status;
  }
  return std::shared_ptr<Session>(std::move(session));
}

absl::Status Session::OpenVolume(const Surroundings& surroundings) {
  const Attachment& attachment = client_->attachment();
  OpenedDevices opened = OpenDevices(attachment.devices, read_only_, surroundings);
  if (opened.missing != 0 && opened.missing == opened.devices.size())
    return absl::FailedPreconditionError(absl::StrCat(
        "none of the devices of volume ", attachment.name, " can be used; bring back at least ",
        "one, the lines above say what is wrong with each"));
  client_->NoteMissing(opened.is_missing);
  std::vector<DeviceIndex> missing;
  for (size_t i = 0; i < opened.is_missing.size(); ++i)
    if (opened.is_missing[i]) missing.emplace_back(static_cast<DeviceIndex::rep>(i));
  AttachmentJournal::Past past;
  if (attachment.takes_over) past = client_->journal()->past().value_or(past);
  absl::StatusOr<std::unique_ptr<Volume>> volume =
      Volume::Open(attachment.geometry, client_->runs(), std::move(opened.devices), client_.get(),
                   client_->journal(),
                   {.read_only = read_only_,
                    .thin = attachment.thin,
                    .applied_sequence = attachment.applied_sequence,
                    .grants = attachment.grants,
                    .missing = missing,
                    .when_full = attachment.waits_when_full ? WhenFull::kWait : WhenFull::kFail,
                    .full_timeout = attachment.full_timeout,
                    .wanted = surroundings.request_is_wanted});
  client_->DropMap();
  if (!volume.ok()) return volume.status();
  volume_ = *std::move(volume);
  if (absl::Status status = SettlePast(past, surroundings); !status.ok()) return status;
  if (!attachment.thin || read_only_) return absl::OkStatus();
  return StartReclaim(surroundings);
}

absl::Status Session::StartReclaim(const Surroundings& surroundings) {
  absl::StatusOr<std::unique_ptr<WriteWatch>> watch =
      WriteWatch::Create(volume_->geometry().size_bytes());
  if (!watch.ok()) return watch.status();
  watch_ = *std::move(watch);
  reclaim_volume_ = std::make_unique<VolumeOfReclaim>(volume_.get());
  reclaimer_ =
      std::make_unique<Reclaimer>(reclaim_volume_.get(), FindExt4, watch_.get(), &clients_);
  const Attachment& attachment = client_->attachment();
  tasks_ = std::make_unique<Tasks>(
      &client_->stub(), reclaimer_.get(),
      Tasks::Options{
          .volume_id = attachment.volume_id, .epoch = attachment.epoch, .log = surroundings.log});
  return absl::OkStatus();
}

absl::Status Session::SettlePast(const AttachmentJournal::Past& past,
                                 const Surroundings& surroundings) {
  if (!client_->attachment().takes_over) return absl::OkStatus();
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
  tasks_ = nullptr;
  client_->ShutDown();
  if (absl::Status status = volume_->Finish(); !status.ok()) return status;
  return client_->Close();
}

}  // namespace braid
