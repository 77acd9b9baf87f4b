// Processes that note map changes as fast as they can and are killed at any moment, one after
// the other, over one journal. The authority is another process (this one), as braidd is: it
// gets groups over a socket, and what a dead process had sent may still be applied or be
// lost, as may its answer. Then: every change whose Note had returned is committed, by the one
// or the other, in order, each number once, with the bytes it was noted with; and what
// was awaited had been committed before.

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/unique_fd.h"
#include "lib/volume/map_log.h"

namespace braid {
namespace {

using Kind = MapChange::Kind;
using std::chrono::microseconds;
using std::chrono::steady_clock;

constexpr uint64_t kRing = AttachmentJournal::kChanges;

// A change of which every field follows from its number.
MapChange ChangeOf(uint64_t number) {
  // Frees seldom enough that groups grow.
  const Kind kind = number % 97 == 0 ? Kind::kUnbind : number % 31 == 0 ? Kind::kMove : Kind::kBind;
  MapChange change{.kind = kind,
                   .column = static_cast<uint32_t>(number % 5),
                   .first = ColumnUnit(number),
                   .count = static_cast<uint32_t>(1 + number % 64)};
  if (kind == Kind::kUnbind) return change;
  for (size_t leg = 0; leg < 2; ++leg) {
    change.legs[leg] = {.device = DeviceIndex(static_cast<uint16_t>(leg)),
                        .unit = DeviceUnit(number * 64)};
  }
  return change;
}

// What the children tell and cannot take back.
struct Shared {
  std::atomic<uint64_t> noted;    // its Note has returned
  std::atomic<uint64_t> awaited;  // its AwaitCommitted has returned
  std::atomic<uint64_t> failures;
};

// Whether the request was carried out is not known.
constexpr uint64_t kNoAnswer = UINT64_MAX;

struct Request {
  uint64_t first = 0;
  uint64_t count = 0;
  std::array<MapChange, MapLog::kGroup> changes;
  static constexpr size_t kHeaderBytes = 2 * sizeof(uint64_t);
};

// In the child: asks the parent.
class RemoteAuthority final : public MapAuthority {
 public:
  explicit RemoteAuthority(int socket) : socket_(socket) {}

  absl::Status CommitMap(uint64_t first, absl::Span<const MapChange> changes) override {
    request_.first = first;
    request_.count = changes.size();
    std::copy(changes.begin(), changes.end(), request_.changes.begin());
    const size_t bytes = Request::kHeaderBytes + changes.size() * sizeof(MapChange);
    while (true) {
      uint64_t applied = 0;
      if (send(socket_, &request_, bytes, 0) != static_cast<ssize_t>(bytes) ||
          recv(socket_, &applied, sizeof(applied), 0) != sizeof(applied)) {
        return absl::UnavailableError("the parent is gone");
      }
      if (applied == kNoAnswer) continue;  // asks again, as after a lost connection
      return applied == first + changes.size() - 1 ? absl::OkStatus()
                                                   : absl::InternalError("a gap");
    }
  }
  absl::Status MarkStale(DeviceIndex, absl::string_view) override { return absl::OkStatus(); }
  void ReportFault(absl::string_view) override {}
  absl::StatusOr<Space> TakeSpace(uint64_t) override {
    return absl::ResourceExhaustedError("none");
  }
  void ReturnSpace(const std::vector<Grant>&) override {}

 private:
  const int socket_;
  Request request_;
};

// The child's whole life.
[[noreturn]] void Live(int journal_fd, const Uuid& boot, Epoch epoch, int socket, uint64_t applied,
                       uint64_t seed, Shared& shared) {
  const auto journal = AttachmentJournal::Open(journal_fd, boot, true).value();
  if (journal->past().has_value() != (epoch.value() > 1)) ++shared.failures;
  journal->Begin(epoch, true);
  journal->ForgetPast();
  RemoteAuthority authority(socket);
  RequestGate gate;
  MapLog log(journal.get(), &authority, &gate, applied,
             [&](const absl::Status&) { ++shared.failures; });
  // Requests, for the gate to be drained of.
  std::thread requests([&] {
    while (true) RequestGate::Pass(&gate, RequestGate::Kind::kRead, 0, 1);
  });
  std::thread flushes([&] {
    while (true) {
      const uint64_t number = log.noted();
      if (!log.AwaitCommitted(number).ok()) ++shared.failures;
      shared.awaited.store(number);
    }
  });
  std::mt19937_64 random(seed);
  while (true) {
    const uint64_t count = 1 + random() % 100;
    if (!log.AwaitRoom(count).ok()) ++shared.failures;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t number = log.Note(ChangeOf(log.noted() + 1));
      shared.noted.store(number);
    }
    if (random() % 64 == 0) usleep(static_cast<useconds_t>(random() % 300));
  }
}

// Ends a child whatever the test comes to.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  ~Child() { Kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  bool Lives() { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_;
};

class MapLogCrashTest : public testing::Test {
 protected:
  // As braidd commits a group: numbers it has are passed over, the next follows the last.
  void Apply(const Request& request) {
    ASSERT_LE(request.first, applied_ + 1) << "a gap";
    for (uint64_t i = 0; i < request.count; ++i) {
      const uint64_t number = request.first + i;
      ASSERT_EQ(request.changes[i], ChangeOf(number)) << number;
      if (number <= applied_) {
        ++repeated_;
      } else {
        ++applied_;
      }
    }
  }
  // A message that is there, or nothing after `patience`.
  bool Receive(int socket, microseconds patience, Request& request) {
    pollfd ready{.fd = socket, .events = POLLIN, .revents = 0};
    const timespec wait{.tv_sec = 0, .tv_nsec = patience.count() * 1000};
    if (ppoll(&ready, 1, &wait, nullptr) != 1) return false;
    const ssize_t bytes = recv(socket, &request, sizeof(request), 0);
    return bytes > static_cast<ssize_t>(Request::kHeaderBytes) &&
           static_cast<size_t>(bytes) == Request::kHeaderBytes + request.count * sizeof(MapChange);
  }

  uint64_t applied_ = 0;
  uint64_t repeated_ = 0;
};

TEST_F(MapLogCrashTest, EveryNotedChangeIsCommittedOnceAndInOrder) {
  const UniqueFd file(memfd_create("braid-journal", MFD_CLOEXEC));
  const Uuid boot = Uuid::Random();
  auto* const shared = static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  auto request = std::make_unique<Request>();
  std::mt19937_64 random(TestSeed());
  uint64_t full = 0, late = 0;
  for (uint64_t round = 1; round <= 60; ++round) {
    SCOPED_TRACE(round);
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    UniqueFd mine(ends[0]), its(ends[1]);
    const uint64_t noted_before = shared->noted;
    const uint64_t seed = random();
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) Live(file.get(), boot, Epoch(round), its.get(), applied_, seed, *shared);

    Child child(pid);

    // Serves it until its time has come, sometimes as slowly as a loaded disk.
    const bool slow = random() % 4 == 0;
    std::optional<steady_clock::time_point> end;
    while (!end.has_value() || steady_clock::now() < *end) {
      if (!end.has_value() && shared->noted > noted_before) {
        end = steady_clock::now() + microseconds(random() % 15000);
      }
      ASSERT_TRUE(child.Lives());
      if (!Receive(mine.get(), microseconds(100), *request)) continue;
      const bool lost = random() % 32 == 0, carried_out = !lost || random() % 2 == 0;
      if (carried_out) Apply(*request);
      ASSERT_FALSE(HasFatalFailure());
      if (slow) usleep(static_cast<useconds_t>(random() % 3000));
      const uint64_t answer = lost ? kNoAnswer : applied_;
      ASSERT_EQ(send(mine.get(), &answer, sizeof(answer), 0), static_cast<ssize_t>(sizeof(answer)));
    }
    // It may go on for a while without an answer.
    if (random() % 2 == 0) usleep(static_cast<useconds_t>(random() % 500));
    child.Kill();
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_EQ(shared->failures, 0u);
    const uint64_t noted = shared->noted;
    ASSERT_LE(shared->awaited, applied_) << "awaited and not committed";
    if (noted - applied_ > kRing - 200) ++full;
    // What it sent last may get through all the same.
    if (random() % 2 == 0 && Receive(mine.get(), microseconds(0), *request)) {
      ++late;
      Apply(*request);
      ASSERT_FALSE(HasFatalFailure());
    }

    // A look at what the next one will find.
    const auto journal = AttachmentJournal::Open(file.get(), boot, true).value();
    ASSERT_TRUE(journal->past().has_value());
    const auto left = journal->past()->ChangesAfter(applied_);
    ASSERT_TRUE(left.ok()) << left.status();
    ASSERT_GE(applied_ + left->size(), noted);
    ASSERT_LE(applied_ + left->size(), std::max(noted, applied_) + 1);
    for (size_t i = 0; i < left->size(); ++i) {
      ASSERT_EQ((*left)[i], ChangeOf(applied_ + 1 + i));
    }
  }
  EXPECT_GT(applied_, 2 * kRing) << "the places were not used again";
  std::printf("%llu changes committed, %llu sent again, %llu times full, %llu groups late\n",
              static_cast<unsigned long long>(applied_), static_cast<unsigned long long>(repeated_),
              static_cast<unsigned long long>(full), static_cast<unsigned long long>(late));
  munmap(shared, sizeof(Shared));
}

}  // namespace
}  // namespace braid
