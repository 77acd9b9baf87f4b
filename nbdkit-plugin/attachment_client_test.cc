// The client against an AttachmentService of the test's own, over a real Unix socket.
#include "nbdkit-plugin/attachment_client.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "nbdkit-plugin/attachment_fixture.h"

namespace braid {
namespace {

using AttachmentClientTest = AttachmentFixture;

TEST_F(AttachmentClientTest, TakeGivesWhatWasGrantedAndHoldsTheLock) {
  StartServer();
  std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  const Attachment& attachment = client->attachment();
  EXPECT_EQ(attachment.name, "v");
  EXPECT_EQ(attachment.site, "s1");
  EXPECT_EQ(attachment.epoch, Epoch(1));
  EXPECT_EQ(attachment.geometry.size_bytes(), 10 * kMiB);
  EXPECT_EQ(attachment.geometry.legs(), 2U);
  ASSERT_EQ(attachment.devices.size(), 2U);
  EXPECT_EQ(attachment.devices[1].path, "/dev/d1");
  ASSERT_EQ(client->runs().size(), 2U);
  EXPECT_EQ(client->runs()[1].count, 3U * kSmallPerExtent);
  EXPECT_EQ(service_.opened.pid(), static_cast<uint64_t>(getpid()));
  EXPECT_TRUE(Uuid::Parse(service_.opened.boot_id()).ok()) << service_.opened.boot_id();
  EXPECT_FALSE(LockIsFree());
  ASSERT_TRUE(client->Close().ok());
  EXPECT_FALSE(LockIsFree()) << "devices may still be open";
  client.reset();
  EXPECT_TRUE(LockIsFree());
  EXPECT_EQ(service_.closed, std::vector<uint64_t>{1});
}

TEST_F(AttachmentClientTest, NobodyListeningIsOneLineThatHelps) {
  const absl::Time start = absl::Now();
  const absl::Status status = Take(absl::Milliseconds(400)).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), dir_ + "/sock")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "; start braidd")) << status;
  EXPECT_FALSE(absl::StrContains(status.message(), "\n")) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(AttachmentClientTest, ControlPlaneThatComesLateIsWaitedFor) {
  std::thread late([this] {
    absl::SleepFor(absl::Milliseconds(300));
    StartServer();
  });
  const absl::StatusOr<std::unique_ptr<AttachmentClient>> client = Take();
  late.join();
  EXPECT_TRUE(client.ok()) << client.status();
}

TEST_F(AttachmentClientTest, RefusalIsPassedOnInOneLineAtOnce) {
  StartServer();
  const absl::Status status = Take(absl::Seconds(20), "x").status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(status.message(), "there is no volume x; see braid volume list");
}

TEST_F(AttachmentClientTest, VolumeWhoseLockIsHeldIsRefusedBeforeAnythingIsGranted) {
  StartServer();
  const UniqueFd other = HoldLock();
  const absl::Status status = Take().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "in use by another process")) << status;
  EXPECT_EQ(service_.opens, 0);
}

TEST_F(AttachmentClientTest, LockHeldForAMomentByAProbeIsWaitedFor) {
  StartServer();
  UniqueFd probe = HoldLock();
  std::thread end([&] {
    absl::SleepFor(absl::Milliseconds(100));
    probe.Reset();
  });
  const absl::StatusOr<std::unique_ptr<AttachmentClient>> client = Take();
  end.join();
  EXPECT_TRUE(client.ok()) << client.status();
}

TEST_F(AttachmentClientTest, LockFileIsMadeWhereThereIsNone) {
  StartServer();
  std::filesystem::remove(service_.lock_path);
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  EXPECT_FALSE(LockIsFree());
}

TEST_F(AttachmentClientTest, LockThatNamesNoFileOfThisMachineIsRefused) {
  StartServer();
  std::filesystem::remove(service_.lock_path);
  std::filesystem::create_symlink("/etc/passwd", service_.lock_path);
  EXPECT_FALSE(Take().ok());
  service_.lock_path = "/nowhere/lock";
  EXPECT_TRUE(absl::IsNotFound(Take().status()));
  service_.lock_path = "/dev/null";
  EXPECT_TRUE(absl::IsFailedPrecondition(Take().status()));
  EXPECT_EQ(service_.opens, 0);
}

TEST_F(AttachmentClientTest, ImpossibleGrantsAreRefusedAndGivenBack) {
  using Spoil = std::function<void(v1::OpenAttachmentResponse&)>;
  const std::vector<std::pair<const char*, Spoil>> cases = {
      {"no volume", [](auto& m) { m.mutable_header()->clear_volume(); }},
      {"another volume", [](auto& m) { m.mutable_header()->mutable_volume()->set_id("x"); }},
      {"name", [](auto& m) { m.mutable_header()->mutable_volume()->set_name("a\nb"); }},
      {"size", [](auto& m) { m.mutable_header()->mutable_volume()->set_size_bytes(~0ULL); }},
      {"odd size", [](auto& m) { m.mutable_header()->mutable_volume()->set_size_bytes(1000); }},
      {"stripes", [](auto& m) { m.mutable_header()->mutable_volume()->set_stripes(~0U); }},
      {"copies", [](auto& m) { m.mutable_header()->mutable_volume()->set_copies(5); }},
      {"no devices", [](auto& m) { m.mutable_header()->clear_devices(); }},
      {"device id", [](auto& m) { m.mutable_header()->mutable_devices(0)->set_id("1"); }},
      {"device path", [](auto& m) { m.mutable_header()->mutable_devices(0)->clear_path(); }},
      {"too few runs", [](auto& m) { m.mutable_header()->set_run_count(3); }},
      {"too many runs", [](auto& m) { m.mutable_header()->set_run_count(1); }},
      {"run's device", [](auto& m) { m.mutable_runs(0)->set_device_index(2); }},
      {"run's device, wrapped", [](auto& m) { m.mutable_runs(0)->set_device_index(1U << 16); }},
      {"run's leg", [](auto& m) { m.mutable_runs(0)->set_leg(2); }},
      {"run's column", [](auto& m) { m.mutable_runs(0)->set_column(1); }},
      {"run's end", [](auto& m) { m.mutable_runs(0)->set_unit_count(3 * kSmallPerExtent + 1); }},
      {"run's length", [](auto& m) { m.mutable_runs(0)->set_unit_count(0); }},
      {"run's end, wrapped", [](auto& m) { m.mutable_runs(0)->set_unit_count(~0ULL); }},
      {"run's unit", [](auto& m) { m.mutable_runs(0)->set_device_unit(~0ULL); }},
  };
  StartServer();
  for (const auto& [name, spoil] : cases) {
    service_.closed.clear();
    service_.on_open = [&, spoil = spoil](int, auto* writer) {
      v1::OpenAttachmentResponse message = MirrorGrant(7);
      spoil(message);
      writer->Write(message);
      return grpc::Status::OK;
    };
    const absl::Status status = Take().status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << name << ": " << status;
    EXPECT_EQ(service_.closed, std::vector<uint64_t>{7}) << name;
    EXPECT_TRUE(LockIsFree()) << name;
  }
  service_.on_open = [](int, auto*) { return grpc::Status::OK; };
  EXPECT_TRUE(absl::IsDataLoss(Take().status())) << "an empty stream";
}

TEST_F(AttachmentClientTest, GrantThatBreaksOffIsGivenBackAndAskedForAgain) {
  service_.on_open = [](int attempt, auto* writer) {
    v1::OpenAttachmentResponse message = MirrorGrant(static_cast<uint64_t>(attempt));
    if (attempt > 1) {
      writer->Write(message);
      return grpc::Status::OK;
    }
    message.mutable_runs()->RemoveLast();
    writer->Write(message);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going down");
  };
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->attachment().epoch, Epoch(2));
  EXPECT_EQ(client->runs().size(), 2U);
  EXPECT_EQ(service_.closed, std::vector<uint64_t>{1});
}

TEST_F(AttachmentClientTest, MarkStaleAsksUntilItIsDone) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  service_.on_mark = [done = service_.on_mark](int attempt, v1::MarkStaleResponse* response) {
    if (attempt == 1) return grpc::Status(grpc::StatusCode::INTERNAL, "store\nfull");
    if (attempt == 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going down");
    return done(attempt, response);
  };
  const absl::Status marked = client->MarkStale(DeviceIndex(1), std::string(10'000, 'r'));
  EXPECT_TRUE(marked.ok()) << marked;
  EXPECT_EQ(service_.marks, 3);
  EXPECT_EQ(service_.marked.epoch(), 1U);
  EXPECT_EQ(service_.marked.device_index(), 1U);
  EXPECT_LE(service_.marked.reason().size(), 500U);
  const absl::MutexLock lock(&mu_);
  ASSERT_EQ(lines_.size(), 2U);  // once that it waits, once that it is over
  EXPECT_TRUE(absl::StrContains(lines_[0], "store full")) << lines_[0];
}

TEST_F(AttachmentClientTest, MarkStaleWaitsForAControlPlaneThatIsAway) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  StopServer();
  std::atomic<bool> returned{false};
  absl::Status marked;
  std::thread write([&] {
    marked = client->MarkStale(DeviceIndex(1), "gone");
    returned = true;
  });
  absl::SleepFor(absl::Seconds(1));
  EXPECT_FALSE(returned);
  StartServer();
  write.join();
  EXPECT_TRUE(marked.ok()) << marked;
  EXPECT_TRUE(client->Close().ok());
}

TEST_F(AttachmentClientTest, EpochThatIsOverEndsMarkStaleAndForbidsACleanEnd) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  service_.on_mark = [](int, auto*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "epoch 1 is over");
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(client->MarkStale(DeviceIndex(0), "x")));
  EXPECT_EQ(service_.marks, 1);
  EXPECT_FALSE(client->Close().ok());
  EXPECT_TRUE(service_.closed.empty());
}

TEST_F(AttachmentClientTest, ShutDownEndsTheWaitAndForbidsACleanEnd) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  StopServer();
  shut_down_ = true;
  EXPECT_TRUE(absl::IsCancelled(client->MarkStale(DeviceIndex(0), "x")));
  StartServer();
  EXPECT_FALSE(client->Close().ok());
  EXPECT_TRUE(service_.closed.empty());
}

TEST_F(AttachmentClientTest, CloseWaitsOnlySoLong) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  StopServer();
  const absl::Time start = absl::Now();
  EXPECT_FALSE(client->Close().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_F(AttachmentClientTest, FaultIsReportedAndLogged) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  client->ReportFault("a flush failed\non /dev/d0");
  EXPECT_EQ(service_.fault.what(), "a flush failed on /dev/d0");
  EXPECT_EQ(service_.fault.epoch(), 1U);
  StopServer();
  client->ReportFault("again");  // does not wait for anybody
  const absl::MutexLock lock(&mu_);
  EXPECT_GE(lines_.size(), 3U);
}

}  // namespace
}  // namespace braid
