#include "tools/cli/client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "braid/v1/inventory.grpc.pb.h"
#include "braid/v1/site.grpc.pb.h"
#include "braid/v1/volume.grpc.pb.h"
#include "lib/base/unique_fd.h"

namespace braid::cli {
namespace {

constexpr absl::string_view kUnixScheme = "unix:";
constexpr absl::string_view kDnsScheme = "dns:";
// A page of 10000 volumes, each on a dozen devices with long names, is below this.
constexpr int kMaxAnswerBytes = 64 << 20;

// How soon Ctrl-C is noticed while a stream is read.
constexpr absl::Duration kLookAround = absl::Milliseconds(100);

constexpr absl::string_view kWhatToDo =
    "start braidd, or name another site with --control or BRAID_CONTROL";

// Why nobody can be listening at `path`; OK when somebody may be. gRPC would say it
// later and less plainly.
absl::Status ProbeUnixSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket's path '", path, "' is longer than the ",
                     sizeof address.sun_path - 1, " bytes that Unix allows; use a shorter one"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  // Non-blocking: a listener whose queue is full (EAGAIN) is there, and gRPC will wait
  // for its turn until the deadline.
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return absl::OkStatus();
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno == EAGAIN) {
    return absl::OkStatus();
  }
  const int error = errno;
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(
        absl::StrCat("may not connect to unix:", path, ": ", std::strerror(error),
                     "; run as root, or as a user whom the socket's mode lets in"));
  }
  return absl::UnavailableError(
      absl::StrCat("no site listens on unix:", path, " (", std::strerror(error), "); ", kWhatToDo));
}

}  // namespace

absl::StatusOr<ControlAddress> ControlAddress::Parse(absl::string_view text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is no address of a site; write unix:PATH, HOST:PORT or dns:///NAME:PORT"));
  };
  ControlAddress address;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, kUnixScheme)) {
    // "unix:///path" and "unix:/path" are the same to gRPC.
    if (absl::StartsWith(rest, "//")) rest.remove_prefix(2);
    if (rest.empty()) return bad();
    std::error_code error;
    address.unix_path = std::filesystem::absolute(std::string(rest), error).string();
    if (error) return bad();
    address.text = absl::StrCat(kUnixScheme, address.unix_path);
    return address;
  }
  const size_t colon = text.rfind(':');
  const bool dns = absl::ConsumePrefix(&rest, kDnsScheme);
  if (rest.empty() || (!dns && (colon == absl::string_view::npos || colon == 0 ||
                                colon + 1 == text.size() || absl::StrContains(text, "/")))) {
    return bad();
  }
  address.text = std::string(text);
  return address;
}

// The channel and its stubs.
struct SiteClient::Connection {
  Connection(const ControlAddress& control, absl::Duration answer_timeout)
      : address(control), timeout(answer_timeout) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxAnswerBytes);
    // A site is asked directly, whatever proxies the shell has for the web.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // Without a scheme gRPC might take the host for one.
    const std::string target =
        control.unix_path.empty() && !absl::StartsWith(control.text, kDnsScheme)
            ? absl::StrCat("dns:///", control.text)
            : control.text;
    const auto channel =
        grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
    sites = v1::SiteService::NewStub(channel);
    inventory = v1::InventoryService::NewStub(channel);
    volumes = v1::VolumeService::NewStub(channel);
  }

  void Prepare(grpc::ClientContext* context) const { Prepare(context, timeout); }
  static void Prepare(grpc::ClientContext* context, absl::Duration time) {
    context->set_deadline(absl::ToChronoTime(absl::Now() + time));
    // A channel that cannot connect fails its calls at once.
    context->set_wait_for_ready(false);
  }

  template <class Stub, class Request, class Response>
  absl::StatusOr<Response> Call(const std::unique_ptr<Stub>& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request) const {
    return Call(stub, method, request, timeout);
  }
  template <class Stub, class Request, class Response>
  absl::StatusOr<Response> Call(const std::unique_ptr<Stub>& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request, absl::Duration time) const {
    grpc::ClientContext context;
    Prepare(&context, time);
    Response response;
    const grpc::Status status = (stub.get()->*method)(&context, request, &response);
    if (!status.ok()) return Explain(status, context, time);
    return response;
  }

  absl::Status Explain(const grpc::Status& status, const grpc::ClientContext& context,
                       absl::Duration time) const;

  const ControlAddress address;
  const absl::Duration timeout;
  std::unique_ptr<v1::SiteService::Stub> sites;
  std::unique_ptr<v1::InventoryService::Stub> inventory;
  std::unique_ptr<v1::VolumeService::Stub> volumes;
};

absl::Status SiteClient::Connection::Explain(const grpc::Status& status,
                                             const grpc::ClientContext& context,
                                             absl::Duration time) const {
  // gRPC's codes and Abseil's are the same numbers.
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& message = status.error_message();
  // The site's own words, not gRPC's about the way there: gRPC tells them apart in this
  // text only. The site may well say UNAVAILABLE of a device.
  if (absl::StrContains(context.debug_error_string(), "received from peer") && !message.empty() &&
      status.error_code() != grpc::StatusCode::UNIMPLEMENTED) {
    return absl::Status(code, message);
  }
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return absl::Status(code, absl::StrCat("the site at ", address.text, " cannot be reached (",
                                             message, "); ", kWhatToDo));
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::Status(
          code,
          absl::StrCat("no answer from ", address.text, " within ", absl::FormatDuration(time),
                       "; see whether braidd is busy, or wait longer with --timeout"));
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::Status(code,
                          absl::StrCat("the site at ", address.text,
                                       " does not know this request; is its braidd older than "
                                       "this command, or something else altogether?"));
    default:
      return absl::Status(code, message.empty() ? absl::StatusCodeToString(code) : message);
  }
}

SiteClient::SiteClient(ControlAddress address, absl::Duration timeout)
    : address_(std::move(address)), timeout_(timeout) {}
SiteClient::~SiteClient() = default;

absl::StatusOr<SiteClient::Connection*> SiteClient::Connect() {
  if (connection_ == nullptr) {
    if (!address_.unix_path.empty()) {
      absl::Status status = ProbeUnixSocket(address_.unix_path);
      if (!status.ok()) return status;
    }
    connection_ = std::make_unique<Connection>(address_, timeout_);
  }
  return connection_.get();
}

absl::StatusOr<v1::GetSiteResponse> SiteClient::GetSite() {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->sites, &v1::SiteService::Stub::GetSite, v1::GetSiteRequest());
}

absl::StatusOr<v1::AddDeviceResponse> SiteClient::AddDevice(const v1::AddDeviceRequest& request) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->inventory, &v1::InventoryService::Stub::AddDevice, request);
}

absl::StatusOr<v1::ListDevicesResponse> SiteClient::ListDevices() {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->inventory, &v1::InventoryService::Stub::ListDevices,
                       v1::ListDevicesRequest());
}

absl::StatusOr<v1::RemoveDeviceResponse> SiteClient::RemoveDevice(
    const v1::RemoveDeviceRequest& request) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->inventory, &v1::InventoryService::Stub::RemoveDevice, request);
}

absl::StatusOr<v1::ListPoolsResponse> SiteClient::ListPools() {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->inventory, &v1::InventoryService::Stub::ListPools,
                       v1::ListPoolsRequest());
}

absl::StatusOr<v1::CheckPoolsResponse> SiteClient::CheckPools(absl::Duration timeout) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->inventory, &v1::InventoryService::Stub::CheckPools,
                       v1::CheckPoolsRequest(), timeout);
}

absl::StatusOr<v1::CreateVolumeResponse> SiteClient::CreateVolume(
    const v1::CreateVolumeRequest& request) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->volumes, &v1::VolumeService::Stub::CreateVolume, request);
}

absl::StatusOr<v1::Volume> SiteClient::GetVolume(const std::string& name) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  v1::GetVolumeRequest request;
  request.set_name(name);
  auto response = (*site)->Call((*site)->volumes, &v1::VolumeService::Stub::GetVolume, request);
  if (!response.ok()) return response.status();
  return response->volume();
}

absl::StatusOr<std::vector<v1::Volume>> SiteClient::ListVolumes() {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  std::vector<v1::Volume> volumes;
  v1::ListVolumesRequest request;
  while (true) {
    auto page = (*site)->Call((*site)->volumes, &v1::VolumeService::Stub::ListVolumes, request);
    if (!page.ok()) return page.status();
    for (v1::Volume& volume : *page->mutable_volumes()) volumes.push_back(std::move(volume));
    if (page->next_page_token().empty()) return volumes;
    if (page->next_page_token() == request.page_token()) {
      return absl::InternalError(
          "the site sends the same page of volumes again and again; is "
          "its braidd of another version?");
    }
    request.set_page_token(page->next_page_token());
  }
}

absl::StatusOr<v1::DeleteVolumeResponse> SiteClient::DeleteVolume(
    const v1::DeleteVolumeRequest& request) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->volumes, &v1::VolumeService::Stub::DeleteVolume, request);
}

absl::StatusOr<v1::ResizeVolumeResponse> SiteClient::ResizeVolume(
    const v1::ResizeVolumeRequest& request, absl::Duration timeout) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  return (*site)->Call((*site)->volumes, &v1::VolumeService::Stub::ResizeVolume, request, timeout);
}

absl::StatusOr<v1::ReclaimVolumeResponse> SiteClient::ReclaimVolume(
    const v1::ReclaimVolumeRequest& request,
    const std::function<void(const v1::ReclaimReport&)>& progress,
    const std::function<bool()>& cancelled) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  grpc::ClientContext context;
  // A second TryCancel, or one after the end, does nothing.
  absl::Notification ended;
  std::thread watch([&] {
    while (!ended.WaitForNotificationWithTimeout(kLookAround)) {
      if (cancelled()) context.TryCancel();
    }
  });
  const auto reader = (*site)->volumes->ReclaimVolume(&context, request);
  v1::ReclaimVolumeResponse part, last;
  while (reader->Read(&part)) {
    last = part;
    if (!part.done()) progress(part.report());
  }
  const grpc::Status status = reader->Finish();
  ended.Notify();
  watch.join();
  if (!status.ok()) return (*site)->Explain(status, context, (*site)->timeout);
  if (!last.done()) {
    return absl::InternalError(
        "the site ended the reclaim without a result; is its braidd of another version?");
  }
  return last;
}

absl::StatusOr<std::vector<v1::MapRow>> SiteClient::GetVolumeMap(const std::string& name) {
  absl::StatusOr<Connection*> site = Connect();
  if (!site.ok()) return site.status();
  v1::GetVolumeMapRequest request;
  request.set_name(name);
  grpc::ClientContext context;
  (*site)->Prepare(&context);
  const auto reader = (*site)->volumes->GetVolumeMap(&context, request);
  std::vector<v1::MapRow> rows;
  v1::GetVolumeMapResponse part;
  while (reader->Read(&part)) {
    for (v1::MapRow& row : *part.mutable_rows()) rows.push_back(std::move(row));
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return (*site)->Explain(status, context, (*site)->timeout);
  return rows;
}

}  // namespace braid::cli
