#include "nbdkit-plugin/attachment_client.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/errno_status.h"
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
constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
constexpr absl::Duration kReminder = absl::Seconds(30);
// The control plane looks whether a holder lives by taking the lock for a moment itself,
// so a lock that is taken counts only when it is still taken after this.
constexpr absl::Duration kLockPatience = absl::Milliseconds(500);
constexpr absl::Duration kLockPause = absl::Milliseconds(20);
// DeviceIndex has 16 bits.
constexpr int kMostDevices = 1 << 16;
// Reasons and faults are kept with the volume and shown; the beginning says it.
constexpr size_t kMaxReasonBytes = 500;

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      OneLine(status.error_message()));
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target) {
  grpc::ChannelArguments arguments;
  // A write may be waiting for the control plane to come back: look often.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A control plane is not behind the proxy that an environment variable names.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // The head of a grant names each of up to 65536 devices with its path.
  arguments.SetMaxReceiveMessageSize(std::numeric_limits<int>::max());
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

// No answer: nothing says that it will not come.
bool NoAnswer(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// An answer that asking again will not change. Everything else may pass: a store that is
// full, a control plane that is going down in the middle of the call.
bool IsFinal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

absl::Status Impossible(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the control plane granted ", what,
                   "; check that braidd and this plugin are of one version"));
}

absl::StatusOr<MapRun> DecodeAttachedRun(const Geometry& geometry, uint64_t device_count,
                                         const braid::v1::AttachedRun& row) {
  if (row.device_index() > std::numeric_limits<DeviceIndex::rep>::max())
    return Impossible(absl::StrCat("a run on device ", row.device_index()));
  MapRun run;
  run.column = row.column();
  run.leg = row.leg();
  run.first = ColumnUnit(row.first_unit());
  run.count = row.unit_count();
  run.device = DeviceIndex(static_cast<DeviceIndex::rep>(row.device_index()));
  run.unit = DeviceUnit(row.device_unit());
  run.stale = row.stale();
  const absl::Status fits = CheckRun(geometry, run, device_count);
  if (!fits.ok()) return Impossible(absl::StrCat("an impossible run (", fits.message(), ")"));
  return run;
}

bool IsShownName(absl::string_view name) {
  return !name.empty() && name.size() <= 255 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c)) != 0;
  });
}

absl::StatusOr<Attachment> DecodeHeader(const braid::v1::AttachmentHeader& header) {
  const braid::v1::Volume& volume = header.volume();
  Attachment attachment;
  attachment.volume_id = volume.id();
  attachment.site = volume.site();
  attachment.name = volume.name();
  if (!IsShownName(attachment.volume_id) || !IsShownName(attachment.site) ||
      !IsShownName(attachment.name))
    return Impossible("a volume without a proper name");
  if (header.epoch() == 0) return Impossible("epoch 0");
  attachment.epoch = Epoch(header.epoch());
  absl::StatusOr<Geometry> geometry = Geometry::Make(
      volume.size_bytes(), std::max(volume.stripes(), 1U),
      volume.stripe_size_bytes() == 0 ? kDefaultStripeBytes : volume.stripe_size_bytes(),
      std::max(volume.copies(), 1U));
  if (!geometry.ok())
    return Impossible(absl::StrCat("an impossible shape (", geometry.status().message(), ")"));
  attachment.geometry = *geometry;
  if (header.devices_size() == 0 || header.devices_size() > kMostDevices)
    return Impossible(absl::StrCat(header.devices_size(), " devices"));
  for (const braid::v1::AttachedDevice& row : header.devices()) {
    absl::StatusOr<Uuid> id = Uuid::Parse(row.id());
    if (!id.ok() || row.path().empty())
      return Impossible(absl::StrCat("a device without id or path (", OneLine(row.name()), ")"));
    attachment.devices.push_back({*id, OneLine(row.name()), row.path(), row.size_bytes()});
  }
  return attachment;
}

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
      stub_(braid::v1::AttachmentService::NewStub(MakeChannel(options_.target))) {}

absl::StatusOr<std::unique_ptr<AttachmentClient>> AttachmentClient::Take(
    const Options& options, Surroundings surroundings) {
  auto client = absl::WrapUnique(new AttachmentClient(options, std::move(surroundings)));
  const absl::Time give_up = absl::Now() + options.timeout;
  absl::Status status = client->Prepare(give_up);
  if (status.ok()) status = client->Lock();
  if (status.ok() && !options.read_only) client->OpenJournal();
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
  braid::v1::PrepareAttachmentRequest request;
  request.set_volume(options_.volume);
  braid::v1::PrepareAttachmentResponse response;
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

void AttachmentClient::OpenJournal() {
  const absl::StatusOr<Uuid> boot_id = Uuid::Parse(BootId());
  absl::StatusOr<std::unique_ptr<AttachmentJournal>> journal =
      boot_id.ok() ? AttachmentJournal::Open(lock_.get(), *boot_id, false) : boot_id.status();
  if (journal.ok()) {
    journal_ = *std::move(journal);
  } else {
    surroundings_.log(absl::StrCat("going on without a journal of writes in flight (",
                                   journal.status().message(),
                                   "); should this process die, only one copy of a mirror will "
                                   "be kept"));
  }
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
                                     // Granted, but not understood or not to the end. Nothing
                                     // was written under this epoch, so it may end cleanly.
                                     if (!read.ok() && attachment_.epoch.value() != 0)
                                       (void)Close();
                                     return read;
                                   });
  if (status.ok() && journal_ != nullptr) {
    const std::optional<AttachmentJournal::Past>& past = journal_->past();
    journal_->Begin(attachment_.epoch, past.has_value() && past->epoch + 1 == attachment_.epoch);
  }
  if (NoAnswer(status))
    return absl::UnavailableError(absl::StrCat(
        "the control plane at ", options_.control, " stopped answering while it granted ",
        options_.volume, " (", status.message(), "); see that braidd runs and start again"));
  return status;
}

absl::Status AttachmentClient::ReadGrant(grpc::ClientContext& context,
                                         const std::string& volume_id) {
  attachment_ = Attachment();
  runs_.clear();
  braid::v1::OpenAttachmentRequest request;
  request.set_volume_id(volume_id);
  request.set_boot_id(BootId());
  request.set_pid(static_cast<uint64_t>(getpid()));
  request.set_read_only(options_.read_only);
  if (journal_ != nullptr && journal_->past().has_value()) {
    request.set_settles_epoch(journal_->past()->epoch.value());
    unsettled_ = true;
  }
  const std::unique_ptr<grpc::ClientReader<braid::v1::OpenAttachmentResponse>> reader =
      stub_->OpenAttachment(&context, request);
  std::optional<uint64_t> expected;  // runs; unknown before the header
  absl::Status bad;
  braid::v1::OpenAttachmentResponse message;
  while (bad.ok() && reader->Read(&message)) {
    if (!expected.has_value()) {
      // Even what is refused must be given back.
      attachment_.volume_id = volume_id;
      attachment_.epoch = Epoch(message.header().epoch());
      expected = message.header().run_count();
      absl::StatusOr<Attachment> header = DecodeHeader(message.header());
      if (header.ok() && header->volume_id != volume_id) header = Impossible("another volume");
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
  braid::v1::MarkStaleRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  request.set_device_index(device.value());
  request.set_reason(OneLine(reason.substr(0, kMaxReasonBytes)));
  braid::v1::MarkStaleResponse response;
  const auto again = [](const absl::Status& status) { return !IsFinal(status); };
  absl::Status status =
      KeepAsking(absl::InfiniteFuture(), kAttempt, again, "a write waits for it",
                 [&](grpc::ClientContext& context) {
                   return FromGrpc(stub_->MarkStale(&context, request, &response));
                 });
  if (!status.ok()) unsettled_ = true;
  return status;
}

void AttachmentClient::ReportFault(absl::string_view what) {
  braid::v1::ReportFaultRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  request.set_what(OneLine(what.substr(0, kMaxReasonBytes)));
  braid::v1::ReportFaultResponse response;
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
  braid::v1::CloseAttachmentRequest request;
  request.set_volume_id(attachment_.volume_id);
  request.set_epoch(attachment_.epoch.value());
  const absl::Time give_up = absl::Now() + options_.close_timeout;
  while (true) {
    braid::v1::CloseAttachmentResponse response;
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
