#include "nbdkit-plugin/attachment_client.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "lib/base/errno_status.h"
#include "nbdkit-plugin/attachment_codec.h"
#include "nbdkit-plugin/control_call.h"
#include "nbdkit-plugin/devices.h"
#include "nbdkit-plugin/error_log.h"

namespace braid {
namespace {

// One attempt at a call. Longer than the control plane needs for any commit, short
// enough that a shutdown waiting behind it is not taken for a hang.
constexpr absl::Duration kAttempt = absl::Seconds(10);
// The grant brings the whole map: a volume of 64 TiB in single large extents and four
// legs is 67 million rows, some 1.5 GB.
constexpr absl::Duration kOpenAttempt = absl::Seconds(60);
constexpr absl::Duration kFaultAttempt = absl::Seconds(2);
// Space is zeroed on its devices before it is granted: a GiB on a slow disk.
constexpr absl::Duration kSpaceAttempt = absl::Seconds(60);
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
constexpr absl::Duration kReminder = absl::Seconds(30);
// The control plane looks whether a holder lives by taking the lock for a moment itself,
// so a lock that is taken counts only when it is still taken after this.
constexpr absl::Duration kLockPatience = absl::Milliseconds(500);
constexpr absl::Duration kLockPause = absl::Milliseconds(20);
// As many as the control plane takes in one request: changes have at most some 100 bytes
// each, and a message has room for a MiB.
constexpr size_t kMostInRequest = 4096;
// Reasons and faults are kept with the volume and shown; the beginning says it.
constexpr size_t kMaxReasonBytes = 500;

std::string BootId() {
  std::string text(64, '\0');
  const UniqueFd fd(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  const ssize_t got = fd.valid() ? read(fd.get(), text.data(), text.size()) : 0;
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return std::string(absl::StripAsciiWhitespace(text));
}

}  // namespace

AttachmentClient::AttachmentClient(Options options, Surroundings surroundings)
    : options_(std::move(options)),
      surroundings_(std::move(surroundings)),
      stub_(v1::AttachmentService::NewStub(MakeControlChannel(options_.target))) {}

absl::StatusOr<std::unique_ptr<AttachmentClient>> AttachmentClient::Take(
    const Options& options, Surroundings surroundings) {
  auto client = absl::WrapUnique(new AttachmentClient(options, std::move(surroundings)));
  const absl::Time give_up = absl::Now() + options.timeout;
  absl::Status status = client->Prepare(give_up);
  if (status.ok()) status = client->Lock();
  if (status.ok() && !options.read_only) status = client->OpenJournal();
  if (status.ok()) status = client->Open(give_up);
  if (!status.ok()) return status;
  return client;
}

absl::Status AttachmentClient::KeepAsking(
    absl::Time give_up, absl::Duration attempt, absl::FunctionRef<bool(const absl::Status&)> again,
    absl::string_view waiting, absl::FunctionRef<absl::Status(grpc::ClientContext&)> call) {
  absl::Duration pause = kFirstPause;
  absl::Time remind = absl::InfinitePast();
  while (true) {
    const absl::Time now = absl::Now();
    grpc::ClientContext context;
    // At least a moment, so that a timeout of 0 asks once.
    context.set_deadline(
        absl::ToChronoTime(std::max(std::min(now + attempt, give_up), now + absl::Seconds(1))));
    absl::Status status = call(context);
    if (status.ok() || !again(status)) {
      if (remind != absl::InfinitePast())
        surroundings_.log(
            absl::StrCat("the control plane at ", options_.control, " answers again"));
      return status;
    }
    if (absl::Now() + pause >= give_up) return status;
    if (absl::Now() >= remind) {
      surroundings_.log(absl::StrCat("the control plane at ", options_.control,
                                     " does not do its part (", status.message(), "); ", waiting));
      remind = absl::Now() + kReminder;
    }
    if (!surroundings_.sleep(pause))
      return absl::CancelledError(
          absl::StrCat("shut down while waiting for the control plane at ", options_.control));
    pause = std::min(pause * 2, kLongestPause);
  }
}

absl::Status AttachmentClient::Prepare(absl::Time give_up) {
  v1::PrepareAttachmentRequest request;
  request.set_volume(options_.volume);
  v1::PrepareAttachmentResponse response;
  absl::Status status =
      KeepAsking(give_up, kAttempt, NoAnswer, "waiting for it", [&](grpc::ClientContext& context) {
        return FromGrpc(stub_->PrepareAttachment(&context, request, &response));
      });
  if (NoAnswer(status))
    return absl::UnavailableError(
        absl::StrCat("nobody answers at ", options_.control, " (", status.message(),
                     "); start braidd, or say where it listens with control=unix:PATH"));
  if (!status.ok()) return status;
  attachment_.volume_id = response.volume_id();
  lock_path_ = response.lock_path();
  thin_ = response.thin();
  return absl::OkStatus();
}

absl::Status AttachmentClient::Lock() {
  const absl::Time give_up = absl::Now() + kLockPatience;
  while (true) {
    UniqueFd fd(
        open(lock_path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY, 0600));
    if (!fd.valid())
      return ErrnoStatus(errno, absl::StrCat("cannot open the lock file ", OneLine(lock_path_),
                                             "; run this on the control plane's machine, as a "
                                             "user who may write the file"));
    if (flock(fd.get(), LOCK_EX | LOCK_NB) == 0) {
      // The file may have been replaced between open and flock: a lock on a file that
      // has no name any more keeps nobody out.
      struct stat held {};
      struct stat named {};
      if (fstat(fd.get(), &held) != 0 || !S_ISREG(held.st_mode))
        return absl::FailedPreconditionError(
            absl::StrCat("the lock file ", OneLine(lock_path_), " is no regular file; remove it"));
      if (stat(lock_path_.c_str(), &named) == 0 && named.st_ino == held.st_ino &&
          named.st_dev == held.st_dev) {
        lock_ = std::move(fd);
        return absl::OkStatus();
      }
    } else if (errno != EWOULDBLOCK && errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("cannot lock ", OneLine(lock_path_)));
    }
    if (absl::Now() >= give_up)
      return absl::FailedPreconditionError(
          absl::StrCat("volume ", options_.volume,
                       " is in use by another process on this machine; detach it there first"));
    if (!surroundings_.sleep(kLockPause)) return absl::CancelledError("shut down");
  }
}

absl::Status AttachmentClient::OpenJournal() {
  const absl::StatusOr<Uuid> boot_id = Uuid::Parse(BootId());
  absl::StatusOr<std::unique_ptr<AttachmentJournal>> journal =
      boot_id.ok() ? AttachmentJournal::Open(lock_.get(), *boot_id, thin_) : boot_id.status();
  if (journal.ok()) {
    journal_ = *std::move(journal);
    if (journal_->past().has_value()) settles_ = journal_->past()->epoch;
    return absl::OkStatus();
  }
  // Where a thin volume's data lies is known only to its journal until it is committed.
  if (thin_)
    return absl::Status(
        journal.status().code(),
        absl::StrCat("the map changes of thin volume ", options_.volume, " cannot be noted in ",
                     OneLine(lock_path_), " (", journal.status().message(),
                     "); make room in that file system, or attach with readonly=true"));
  surroundings_.log(absl::StrCat("going on without a journal of writes in flight (",
                                 journal.status().message(),
                                 "); should this process die, only one copy of a mirror will "
                                 "be kept"));
  return absl::OkStatus();
}

void AttachmentClient::DropMap() {
  runs_ = {};
  attachment_.grants = {};
}

void AttachmentClient::NoteSettled() {
  journal_->ForgetPast();
  unsettled_ = false;
}

absl::Status AttachmentClient::Open(absl::Time give_up) {
  const std::string volume_id = attachment_.volume_id;
  absl::Status status = KeepAsking(give_up, kOpenAttempt, NoAnswer, "waiting for it",
                                   [&](grpc::ClientContext& context) {
                                     absl::Status read = ReadGrant(context, volume_id);
                                     if (!read.ok()) GiveUpGrant();
                                     return read;
                                   });
  if (NoAnswer(status))
    return absl::UnavailableError(absl::StrCat(
        "the control plane at ", options_.control, " stopped answering while it granted ",
        options_.volume, " (", status.message(), "); see that braidd runs and start again"));
  if (!status.ok()) return status;
  if (journal_ != nullptr) journal_->Begin(attachment_.epoch, attachment_.takes_over);
  unsettled_ = attachment_.takes_over;
  const MutexLock lock(&take_mu_);
  devices_ = attachment_.devices;
  missing_.assign(devices_.size(), false);
  return absl::OkStatus();
}

void AttachmentClient::GiveUpGrant() {
  // What the last holder left is still to be settled: nothing is called under this epoch,
  // and the next ask names the same journal.
  if (attachment_.epoch == Epoch() || attachment_.takes_over) return;
  if (journal_ != nullptr) journal_->Begin(attachment_.epoch, false);
  settles_ = Epoch();
  // Nothing was written under this epoch, so it may end cleanly.
  (void)Close();
}

absl::Status AttachmentClient::ReadGrant(grpc::ClientContext& context,
                                         const std::string& volume_id) {
  attachment_ = Attachment();
  runs_.clear();
  v1::OpenAttachmentRequest request;
  request.set_volume_id(volume_id);
  request.set_boot_id(BootId());
  request.set_pid(static_cast<uint64_t>(getpid()));
  request.set_read_only(options_.read_only);
  request.set_settles_epoch(settles_.value());
  const std::unique_ptr<grpc::ClientReader<v1::OpenAttachmentResponse>> reader =
      stub_->OpenAttachment(&context, request);
  std::optional<uint64_t> expected;  // runs; unknown before the header
  absl::Status bad;
  v1::OpenAttachmentResponse message;
  while (bad.ok() && reader->Read(&message)) {
    if (!expected.has_value()) {
      // Even what is refused must be given back.
      attachment_.volume_id = volume_id;
      attachment_.epoch = Epoch(message.header().epoch());
      attachment_.takes_over = message.header().takes_over();
      expected = message.header().run_count();
      absl::StatusOr<Attachment> header = DecodeHeader(message.header());
      if (header.ok() && header->volume_id != volume_id) header = Impossible("another volume");
      if (header.ok() && header->thin != thin_) header = Impossible("a volume of another kind");
      if (header.ok() && header->takes_over && settles_ == Epoch())
        header = Impossible("what a journal tells, where none was found");
      bad = header.status();
      if (header.ok()) attachment_ = *std::move(header);
    } else if (message.has_header()) {
      bad = Impossible("two headers");
    }
    for (int i = 0; bad.ok() && i < message.runs_size(); ++i) {
      absl::StatusOr<MapRun> run =
          DecodeAttachedRun(attachment_.geometry, attachment_.devices.size(), message.runs(i));
      bad = run.status();
      if (run.ok()) runs_.push_back(*run);
    }
  }
  if (!bad.ok()) context.TryCancel();
  const grpc::Status end = reader->Finish();
  if (!bad.ok()) return bad;
  if (!end.ok()) return FromGrpc(end);
  if (!expected.has_value()) return Impossible("nothing");
  if (runs_.size() != *expected)
    return Impossible(absl::StrCat(runs_.size(), " runs where it promised ", *expected));
  return absl::OkStatus();
}

absl::Status AttachmentClient::MarkStale(DeviceIndex device, absl::string_view reason) {
  v1::MarkStaleRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  request.set_device_index(device.value());
  request.set_reason(OneLine(reason.substr(0, kMaxReasonBytes)));
  v1::MarkStaleResponse response;
  const auto again = [](const absl::Status& status) { return !IsFinal(status); };
  absl::Status status =
      KeepAsking(absl::InfiniteFuture(), kAttempt, again, "a write waits for it",
                 [&](grpc::ClientContext& context) {
                   return FromGrpc(stub_->MarkStale(&context, request, &response));
                 });
  if (!status.ok()) unsettled_ = true;
  return status;
}

absl::Status AttachmentClient::CommitMap(uint64_t first_sequence,
                                         absl::Span<const MapChange> changes) {
  const auto again = [](const absl::Status& status) { return !IsFinal(status); };
  while (!changes.empty()) {
    const absl::Span<const MapChange> group = changes.subspan(0, kMostInRequest);
    v1::CommitMapRequest request;
    request.set_volume_id(attachment_.volume_id);
    request.set_epoch(attachment_.epoch.value());
    request.set_first_sequence(first_sequence);
    for (const MapChange& change : group)
      EncodeMapChange(change, attachment_.geometry.legs(), request.add_changes());
    v1::CommitMapResponse response;
    absl::Status status =
        KeepAsking(absl::InfiniteFuture(), kAttempt, again, "what flushes wait for waits for it",
                   [&](grpc::ClientContext& context) {
                     return FromGrpc(stub_->CommitMap(&context, request, &response));
                   });
    const uint64_t last = first_sequence + group.size() - 1;
    if (status.ok() && response.applied_sequence() < last)
      status = Impossible(absl::StrCat("map changes up to ", response.applied_sequence(),
                                       " where it was sent those up to ", last));
    if (!status.ok()) {
      unsettled_ = true;
      return status;
    }
    first_sequence = last + 1;
    changes.remove_prefix(group.size());
  }
  return absl::OkStatus();
}

absl::Status AttachmentClient::AskOnce(absl::Duration attempt,
                                       absl::FunctionRef<absl::Status(grpc::ClientContext&)> call) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + attempt));
  {
    const MutexLock lock(&shut_mu_);
    if (shut_) return absl::CancelledError("shut down");
    asking_ = &context;
  }
  absl::Status status = call(context);
  const MutexLock lock(&shut_mu_);
  asking_ = nullptr;
  return shut_ && !status.ok() ? absl::CancelledError("shut down") : status;
}

void AttachmentClient::ShutDown() {
  const MutexLock lock(&shut_mu_);
  shut_ = true;
  if (asking_ != nullptr) asking_->TryCancel();
}

absl::StatusOr<MapAuthority::Space> AttachmentClient::TakeSpace(uint64_t units) {
  const MutexLock lock(&take_mu_);
  v1::TakeSpaceRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  request.set_unit_count(units);
  request.set_known_device_count(static_cast<uint32_t>(devices_.size()));
  v1::TakeSpaceResponse response;
  absl::Status status = AskOnce(kSpaceAttempt, [&](grpc::ClientContext& context) {
    return FromGrpc(stub_->TakeSpace(&context, request, &response));
  });
  if (status.ok()) return OpenSpace(response);
  if (IsFinal(status) || absl::IsCancelled(status)) return status;
  return absl::UnavailableError(absl::StrCat("the control plane at ", options_.control,
                                             " gives no space (", status.message(), ")"));
}

absl::StatusOr<MapAuthority::Space> AttachmentClient::OpenSpace(
    const v1::TakeSpaceResponse& response) {
  if (!response.devices().empty() && response.first_device_index() != devices_.size())
    return Impossible(absl::StrCat("devices from number ", response.first_device_index(),
                                   " on where ", devices_.size(), " are known"));
  std::vector<DeviceIdentity> devices = devices_;
  if (absl::Status status = DecodeDevices(response.devices(), devices); !status.ok()) return status;
  absl::StatusOr<std::vector<Grant>> grants =
      DecodeGrants(attachment_.geometry, devices, response.grants());
  if (!grants.ok()) return grants.status();

  OpenedDevices opened = OpenDevices(absl::MakeConstSpan(devices).subspan(devices_.size()),
                                     options_.read_only, surroundings_);
  devices_ = std::move(devices);
  missing_.insert(missing_.end(), opened.is_missing.begin(), opened.is_missing.end());
  std::move(opened.devices.begin(), opened.devices.end(), std::back_inserter(opened_));
  Space space;
  for (Grant& grant : *grants) {
    bool usable = true;
    for (const UnitPlace& leg : grant.legs) usable = usable && !missing_[leg.device.value()];
    if (usable) space.grants.push_back(std::move(grant));
  }
  if (space.grants.empty() && !grants->empty())
    return absl::UnavailableError("all space that was granted is on devices that are missing here");
  if (space.grants.empty())
    return absl::ResourceExhaustedError(
        absl::StrCat("no space is left for thin volume ", attachment_.name,
                     "; see braid pool list, and add a device, or delete or trim something"));
  space.devices = std::exchange(opened_, {});
  return space;
}

void AttachmentClient::NoteMissing(const std::vector<bool>& missing) {
  const MutexLock lock(&take_mu_);
  missing_ = missing;
}

void AttachmentClient::ReturnSpace(const std::vector<Grant>& grants) {
  absl::Span<const Grant> rest = grants;
  while (!rest.empty()) {
    const absl::Span<const Grant> group = rest.subspan(0, kMostInRequest);
    v1::ReturnSpaceRequest request;
    request.set_volume_id(attachment_.volume_id);
    request.set_epoch(attachment_.epoch.value());
    for (const Grant& grant : group) EncodeGrant(grant, request.add_grants());
    v1::ReturnSpaceResponse response;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + options_.close_timeout));
    const absl::Status status = FromGrpc(stub_->ReturnSpace(&context, request, &response));
    if (!status.ok()) {
      surroundings_.log(absl::StrCat("space could not be given back now (", status.message(),
                                     "); it stays with volume ", options_.volume,
                                     " until it is detached"));
      return;
    }
    rest.remove_prefix(group.size());
  }
}

void AttachmentClient::ReportFault(absl::string_view what) {
  v1::ReportFaultRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  request.set_what(OneLine(what.substr(0, kMaxReasonBytes)));
  v1::ReportFaultResponse response;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kFaultAttempt));
  absl::Status status = FromGrpc(stub_->ReportFault(&context, request, &response));
  surroundings_.log(absl::StrCat("volume ", options_.volume, " has lost data: ", request.what()));
  if (!status.ok())
    surroundings_.log(absl::StrCat("the control plane could not be told of it (", status.message(),
                                   "); the volume stays marked as in use"));
}

absl::Status AttachmentClient::Close() {
  if (unsettled_)
    return absl::FailedPreconditionError(
        "copies may differ, and the next attachment has to settle that");
  v1::CloseAttachmentRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  const absl::Time give_up = absl::Now() + options_.close_timeout;
  while (true) {
    v1::CloseAttachmentResponse response;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(give_up));
    context.set_wait_for_ready(true);
    absl::Status status = FromGrpc(stub_->CloseAttachment(&context, request, &response));
    // Not surroundings_.sleep: at the end of the process it does not wait at all.
    if (!NoAnswer(status) || absl::Now() + kFirstPause >= give_up) return status;
    absl::SleepFor(kFirstPause);
  }
}

}  // namespace braid
