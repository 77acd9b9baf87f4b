// The NBD side of a volume: nbdkit's callbacks, each a few lines over lib/volume.
//
// Life of the process. The configuration phase only reads its parameters: nbdkit may fork
// after it, and neither gRPC nor a thread survives a fork. after_fork takes the
// attachment and opens the volume, or ends the process with one line. cleanup flushes and
// gives the attachment back. A process that ends in any other way (a signal, a crash, the
// abort of nbdkit 1.32 when a client hangs up with requests in flight) leaves an unclean
// end, which the next attachment repairs.
//
// Edges. No exception crosses into nbdkit: every callback runs inside Edge(), and what is
// thrown becomes an error of that one request. An absl::Status becomes an errno in Serve(),
// and nowhere else.
#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "absl/base/attributes.h"
#include "absl/base/const_init.h"
#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "lib/base/errno_status.h"
#include "lib/base/units.h"
#include "nbdkit-plugin/config.h"
#include "nbdkit-plugin/error_log.h"
#include "nbdkit-plugin/session.h"
#include "nbdkit-plugin/write_watch.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {

using braid::kMiB;
using braid::PluginConfig;
using braid::Session;
using braid::Volume;
using braid::WriteWatch;

// NBD calls a request of up to 32 MiB portable, and qemu and libnbd send none larger.
// nbdkit would take 64, at twice the memory for each request in flight.
constexpr uint32_t kMaximumBlock = 32 * kMiB;
// "Preferred" in NBD is the size below which a server reads, modifies and writes. In the
// page cache that is a page, whatever the layout; a stripe size would make clients pad
// requests for nothing.
constexpr uint32_t kPreferredBlock = 4096;
// Extents in one answer; a client asks on from where an answer ends.
constexpr uint32_t kMaxExtentsInAnswer = 16384;

// Set in the configuration phase, by one thread; constant after it.
PluginConfig& Config() {
  static auto* const config = new PluginConfig;
  return *config;
}

ABSL_CONST_INIT absl::Mutex session_mu(absl::kConstInit);
// From after_fork to cleanup. Connections hold it too, some to the process's end.
std::shared_ptr<Session>& CurrentSession() ABSL_EXCLUSIVE_LOCKS_REQUIRED(session_mu) {
  static auto* const session = new std::shared_ptr<Session>;
  return *session;
}
std::shared_ptr<Session> GetSession() {
  const absl::MutexLock lock(&session_mu);
  return CurrentSession();
}

struct Connection {
  Connection(std::shared_ptr<Session> its_session, bool is_read_only)
      : session(std::move(its_session)), read_only(is_read_only) {
    if (!read_only) session->clients().Opened();
  }
  ~Connection() {
    if (!read_only) session->clients().Closed();
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const std::shared_ptr<Session> session;
  const bool read_only;
};
Session& SessionOf(void* handle) { return *static_cast<Connection*>(handle)->session; }
Volume& VolumeOf(void* handle) { return SessionOf(handle).volume(); }

void Log(absl::string_view line) { nbdkit_error("%s", std::string(line).c_str()); }

template <class Result, class Fn>
Result Edge(Result failure, Fn&& fn) noexcept {
  try {
    return fn();
  } catch (const std::bad_alloc&) {
    nbdkit_error("out of memory");
    nbdkit_set_error(ENOMEM);
  } catch (const std::exception& e) {
    nbdkit_error("unexpected: %s", e.what());
    nbdkit_set_error(EIO);
  } catch (...) {
    nbdkit_error("unexpected exception");
    nbdkit_set_error(EIO);
  }
  return failure;
}

int ConfigResult(const absl::Status& status) {
  if (status.ok()) return 0;
  Log(status.message());
  return -1;
}

// What NBD can say of an errno. All else would reach the client as EINVAL, which blames
// the request for what is the device's fault.
int ClientErrno(int error, bool fast_zero) {
  switch (error) {
    case EPERM:
    case EROFS:
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EINVAL:
    case ESHUTDOWN:
      return error;
    case EOPNOTSUPP:
      // Only a fast zero may say so: to any other zero nbdkit 1.32 would answer with
      // writes of its own, which go wrong beyond 64 MiB (the offset stays behind).
      return fast_zero ? EOPNOTSUPP : EIO;
    default:
      return EIO;
  }
}

// One request: 0, or -1 with the client's errno set and a line in the log, not too often.
template <class Fn>
int Serve(void* handle, const char* verb, uint64_t count, uint64_t offset, bool fast_zero,
          Fn&& request) noexcept {
  return Edge(-1, [&] {
    const absl::Status status = request();
    if (status.ok()) [[likely]]
      return 0;
    const int error = braid::ErrnoOf(status);
    if (!(fast_zero && error == EOPNOTSUPP)) {
      Session& session = SessionOf(handle);
      const std::optional<std::string> line =
          session.errors().Line(verb, error,
                                absl::StrCat(session.name(), ": ", verb, " of ", count,
                                             " bytes at ", offset, " failed: ", status.message()),
                                absl::Now());
      if (line.has_value()) Log(*line);
    }
    nbdkit_set_error(ClientErrno(error, fast_zero));
    return -1;
  });
}

// Waits; false when nbdkit is shutting down. On a thread of its own: nbdkit_nanosleep on
// a connection's thread also ends when that one connection does, which is no reason for
// the volume to stop.
bool SleepUnlessShutDown(absl::Duration duration) {
  const int64_t ns = absl::ToInt64Nanoseconds(duration);
  int result = -1;
  std::thread([&] {
    result = nbdkit_nanosleep(static_cast<unsigned>(ns / 1'000'000'000),
                              static_cast<unsigned>(ns % 1'000'000'000));
  }).join();
  return result == 0;
}

// Whether a request that is held back, on its connection's own thread, is still wanted: not
// once its connection ends, for then the client may be sending it again on another one, and
// what came late would overwrite what was written since; nor once nbdkit shuts down, which
// it does not do while a request is held back. nbdkit logs a line where it is not.
bool RequestIsWanted() { return nbdkit_nanosleep(0, 1) == 0; }

int BraidConfig(const char* key, const char* value) {
  return Edge(-1, [&] { return ConfigResult(braid::SetOption(Config(), key, value)); });
}

int BraidConfigComplete() {
  return Edge(-1, [] {
    return ConfigResult(braid::CompleteConfig(Config(), std::getenv("BRAID_CONTROL")));
  });
}

void BraidDumpPlugin() {
  std::printf("braid_version=%s\n", BRAID_VERSION);
  std::printf("braid_extent_bytes=%" PRIu64 "\n", braid::kExtentBytes);
  std::printf("braid_small_extent_bytes=%" PRIu64 "\n", braid::kSmallExtentBytes);
  std::printf("braid_max_columns=%" PRIu32 "\n", braid::kMaxColumns);
  std::printf("braid_max_copies=%" PRIu32 "\n", braid::kMaxLegs);
  std::printf("braid_default_control=%s\n", braid::kDefaultControl);
  std::printf("braid_grpc_version=%s\n", grpc::Version().c_str());
  std::printf("braid_protobuf_version=%s\n",
              google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION).c_str());
}

int BraidAfterFork() {
  return Edge(-1, [] {
    absl::StatusOr<std::shared_ptr<Session>> session = Session::Start(
        Config(), {.log = Log, .sleep = SleepUnlessShutDown, .request_is_wanted = RequestIsWanted});
    if (!session.ok()) {
      Log(session.status().message());
      return -1;
    }
    const absl::MutexLock lock(&session_mu);
    CurrentSession() = *std::move(session);
    return 0;
  });
}

void BraidCleanup() {
  Edge(0, [] {
    std::shared_ptr<Session> session;
    {
      const absl::MutexLock lock(&session_mu);
      session = std::move(CurrentSession());
      CurrentSession() = nullptr;
    }
    if (session == nullptr) return 0;
    // nbdkit has ended every connection and serves no request once it is shutting down. A
    // connection that was accepted in the last moment may still ask for the volume's size,
    // and those that ended late were never closed: both only keep the session in memory.
    const absl::Status status = session->Finish();
    if (!status.ok())
      Log(absl::StrCat("volume ", session->name(), " ends uncleanly: ", status.message(),
                       "; the next attachment sees to it"));
    return 0;
  });
}

int BraidListExports(int, int, struct nbdkit_exports* exports) {
  return Edge(-1, [&] {
    const std::shared_ptr<Session> session = GetSession();
    if (session == nullptr) {
      nbdkit_error("shutting down");
      return -1;
    }
    return nbdkit_add_export(exports, session->name().c_str(), session->description().c_str());
  });
}

const char* BraidDefaultExport(int, int) {
  return Edge(static_cast<const char*>(nullptr), [] {
    const std::shared_ptr<Session> session = GetSession();
    return session == nullptr ? nullptr : nbdkit_strdup_intern(session->name().c_str());
  });
}

void* BraidOpen(int readonly) {
  return Edge(static_cast<void*>(nullptr), [&]() -> void* {
    const char* const name = nbdkit_export_name();
    if (name == nullptr) return nullptr;
    std::shared_ptr<Session> session = GetSession();
    if (session == nullptr) {
      nbdkit_error("shutting down");
      nbdkit_set_error(ESHUTDOWN);
      return nullptr;
    }
    if (!session->IsExport(name)) {
      // Any client can cause this as often as it likes.
      const std::optional<std::string> line = session->errors().Line(
          "open", ENOENT,
          absl::StrCat("there is no export \"", name, "\" here; ask for \"", session->name(), "\""),
          absl::Now());
      if (line.has_value()) Log(*line);
      nbdkit_set_error(ENOENT);
      return nullptr;
    }
    const bool read_only = readonly != 0 || session->read_only();
    return new Connection{std::move(session), read_only};
  });
}

void BraidClose(void* handle) { delete static_cast<Connection*>(handle); }

int64_t BraidGetSize(void* handle) {
  // Below 2^63: kMaxVolumeBytes.
  return static_cast<int64_t>(VolumeOf(handle).geometry().size_bytes());
}

const char* BraidExportDescription(void* handle) { return SessionOf(handle).description().c_str(); }

int BraidBlockSize(void* handle, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) {
  // Page-cache devices take any alignment, and say 1: a client that was told 512 would
  // read, modify and write what the page cache does better.
  *minimum = VolumeOf(handle).required_alignment();
  *preferred = std::max(kPreferredBlock, *minimum);
  *maximum = kMaximumBlock;
  return 0;
}

int BraidCanWrite(void* handle) { return !static_cast<Connection*>(handle)->read_only; }
int BraidIsRotational(void* handle) { return VolumeOf(handle).rotational(); }
int BraidCanTrim(void* handle) { return VolumeOf(handle).can_trim(); }
int BraidCanFastZero(void* handle) { return VolumeOf(handle).can_zero_fast(); }
int BraidCanFua(void*) { return NBDKIT_FUA_NATIVE; }
int BraidCanCache(void*) { return NBDKIT_CACHE_NATIVE; }
int BraidYes(void*) { return 1; }

int BraidPread(void* handle, void* buf, uint32_t count, uint64_t offset, uint32_t) {
  return Serve(handle, "read", count, offset, false, [&] {
    return VolumeOf(handle).Read(offset, absl::MakeSpan(static_cast<char*>(buf), count));
  });
}

int BraidPwrite(void* handle, const void* buf, uint32_t count, uint64_t offset, uint32_t flags) {
  return Serve(handle, "write", count, offset, false, [&] {
    const auto data = absl::MakeConstSpan(static_cast<const char*>(buf), count);
    WriteWatch::Change change(SessionOf(handle).watch(), offset, data);
    absl::Status status = VolumeOf(handle).Write(offset, data, (flags & NBDKIT_FLAG_FUA) != 0);
    if (status.ok()) change.Succeeded();
    return status;
  });
}

int BraidFlush(void* handle, uint32_t) {
  return Serve(handle, "flush", VolumeOf(handle).geometry().size_bytes(), 0, false,
               [&] { return VolumeOf(handle).Flush(); });
}

int BraidTrim(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  return Serve(handle, "trim", count, offset, false, [&] {
    const WriteWatch::Change change(SessionOf(handle).watch(), offset, count,
                                    WriteWatch::Change::Kind::kTrim);
    return VolumeOf(handle).Trim(offset, count, (flags & NBDKIT_FLAG_FUA) != 0);
  });
}

int BraidZero(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  const bool only_fast = (flags & NBDKIT_FLAG_FAST_ZERO) != 0;
  return Serve(handle, "zero", count, offset, only_fast, [&] {
    const WriteWatch::Change change(SessionOf(handle).watch(), offset, count,
                                    WriteWatch::Change::Kind::kZero);
    return VolumeOf(handle).Zero(offset, count,
                                 {.fua = (flags & NBDKIT_FLAG_FUA) != 0,
                                  .may_trim = (flags & NBDKIT_FLAG_MAY_TRIM) != 0,
                                  .only_fast = only_fast});
  });
}

int BraidCache(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  return Serve(handle, "cache", count, offset, false, [&] {
    if (flags != 0) return absl::InvalidArgumentError("unknown flags");
    return VolumeOf(handle).Cache(offset, count);
  });
}

// Joins what the volume reports piece by piece into extents as long as can be.
class ExtentsAnswer {
 public:
  ExtentsAnswer(struct nbdkit_extents* extents, uint64_t offset, bool only_one)
      : extents_(extents), begin_(offset), end_(offset), only_one_(only_one) {}

  // Whether there is room for more.
  bool Add(uint64_t length, bool hole) {
    if (end_ > begin_ && hole != hole_) {
      if (!Send() || only_one_ || sent_ >= kMaxExtentsInAnswer) {
        full_ = true;
        return false;
      }
    }
    hole_ = hole;
    end_ += length;
    return true;
  }
  bool Send() {
    if (end_ == begin_) return true;
    failed_ = nbdkit_add_extent(extents_, begin_, end_ - begin_,
                                hole_ ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) == -1;
    begin_ = end_;
    ++sent_;
    return !failed_;
  }
  uint64_t end() const { return end_; }
  bool full() const { return full_; }
  bool failed() const { return failed_; }

 private:
  struct nbdkit_extents* const extents_;
  uint64_t begin_;  // of the extent being joined
  uint64_t end_;    // of it, not in it
  const bool only_one_;
  bool hole_ = false;
  bool full_ = false;
  bool failed_ = false;
  uint32_t sent_ = 0;
};

int BraidExtents(void* handle, uint32_t count, uint64_t offset, uint32_t flags,
                 struct nbdkit_extents* extents) {
  return Edge(-1, [&] {
    ExtentsAnswer answer(extents, offset, (flags & NBDKIT_FLAG_REQ_ONE) != 0);
    const uint64_t end = offset + count;
    const absl::Status status = VolumeOf(handle).Extents(
        offset, count,
        [&](uint64_t, uint64_t length, bool hole) { return answer.Add(length, hole); });
    // Where nobody can say what is there, it is data: a client then reads it, and gets
    // the device's own error if there is one.
    if (!status.ok() && !answer.full() && answer.end() < end) answer.Add(end - answer.end(), false);
    if (!answer.full()) answer.Send();
    return answer.failed() ? -1 : 0;
  });
}

constexpr char kConfigHelp[] =
    "[volume=]<VOLUME>         (required) The volume to serve: NAME, SITE/NAME or id.\n"
    "control=unix:<PATH>       Where the site's braidd listens, or HOST:PORT. Default:\n"
    "                          $BRAID_CONTROL, or unix:/run/braid/braidd.sock.\n"
    "control-timeout=<SECONDS> How long to wait for braidd at the start. Default: 10.\n"
    "readonly=<BOOL>           Take the attachment itself read-only. Default: false.";

constexpr char kDescription[] =
    "Serves one volume of a Braid site: does all its mapping, striping, mirroring and I/O\n"
    "in this process, on devices that this machine has. One nbdkit for each volume.";

nbdkit_plugin MakePlugin() {
  nbdkit_plugin plugin = {};
  plugin.name = "braid";
  plugin.longname = "Braid volume";
  plugin.version = BRAID_VERSION;
  plugin.description = kDescription;
  plugin.config = BraidConfig;
  plugin.config_complete = BraidConfigComplete;
  plugin.config_help = kConfigHelp;
  plugin.magic_config_key = "volume";
  plugin.dump_plugin = BraidDumpPlugin;
  plugin.after_fork = BraidAfterFork;
  plugin.cleanup = BraidCleanup;
  plugin.list_exports = BraidListExports;
  plugin.default_export = BraidDefaultExport;
  plugin.open = BraidOpen;
  plugin.close = BraidClose;
  plugin.get_size = BraidGetSize;
  plugin.export_description = BraidExportDescription;
  plugin.block_size = BraidBlockSize;
  plugin.can_write = BraidCanWrite;
  plugin.is_rotational = BraidIsRotational;
  plugin.can_flush = BraidYes;
  plugin.can_trim = BraidCanTrim;
  plugin.can_zero = BraidYes;
  plugin.can_fast_zero = BraidCanFastZero;
  plugin.can_fua = BraidCanFua;
  // Nothing is cached per connection: a flush on one covers what all wrote.
  plugin.can_multi_conn = BraidYes;
  plugin.can_extents = BraidYes;
  plugin.can_cache = BraidCanCache;
  plugin.pread = BraidPread;
  plugin.pwrite = BraidPwrite;
  plugin.flush = BraidFlush;
  plugin.trim = BraidTrim;
  plugin.zero = BraidZero;
  plugin.extents = BraidExtents;
  plugin.cache = BraidCache;
  // errno has seen locks, logs and destructors by then; Serve() sets what is meant.
  plugin.errno_is_preserved = 0;
  return plugin;
}

nbdkit_plugin plugin = MakePlugin();

}  // namespace

NBDKIT_REGISTER_PLUGIN(plugin)
