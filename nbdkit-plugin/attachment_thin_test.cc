// What the client does for thin volumes, and with answers that are lost.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "nbdkit-plugin/attachment_fixture.h"

namespace braid {
namespace {

class ThinClientTest : public AttachmentFixture {
 protected:
  ThinClientTest() {
    service_.thin = true;
    service_.on_open = [](int attempt, auto* writer) {
      writer->Write(ThinGrant(static_cast<uint64_t>(attempt)));
      return grpc::Status::OK;
    };
    service_.on_commit = [](const auto& request, auto* response) {
      response->set_applied_sequence(request.first_sequence() +
                                     static_cast<uint64_t>(request.changes_size()) - 1);
      return grpc::Status::OK;
    };
  }

  static MapChange Bind(uint64_t unit) {
    MapChange change;
    change.first = ColumnUnit(unit);
    change.count = 1;
    change.legs[0] = {DeviceIndex(3), DeviceUnit(100 + unit), true};
    return change;
  }
  // What TakeSpace finds in an answer that `fill` makes of nothing.
  absl::StatusOr<MapAuthority::Space> TakeSpace(
      AttachmentClient& client, const std::function<void(v1::TakeSpaceResponse*)>& fill) {
    service_.on_take = [&](auto*, const v1::TakeSpaceRequest& request, auto* response) {
      asked_ = request;
      response->set_first_device_index(request.known_device_count());
      fill(response);
      return grpc::Status::OK;
    };
    return client.TakeSpace(64);
  }
  // Leaves the journal of a holder of `epoch` that died.
  void DieAsHolder(uint64_t epoch, bool with_change) {
    const UniqueFd fd(open(service_.lock_path.c_str(), O_RDWR | O_CLOEXEC));
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string boot_id;
    std::getline(file, boot_id);
    auto journal = AttachmentJournal::Open(fd.get(), *Uuid::Parse(boot_id), true);
    ASSERT_TRUE(journal.ok()) << journal.status();
    (*journal)->Begin(Epoch(epoch), false);
    if (with_change) (*journal)->NoteChange(1, Bind(0));
  }

  v1::TakeSpaceRequest asked_;
};

TEST_F(ThinClientTest, VolumeWithoutDevicesIsTakenAndItsGrantsDecoded) {
  const v1::AttachedDevice device = MakeLabelledFile(dir_ + "/d", 16 * kMiB);
  service_.on_open = [&](int, auto* writer) {
    v1::OpenAttachmentResponse message = ThinGrant(1);
    v1::AttachmentHeader* const header = message.mutable_header();
    header->set_applied_sequence(77);
    *header->add_devices() = device;
    AddGrant(header->mutable_grants(), 0, 64, 192);
    header->mutable_volume()->set_on_full(v1::ON_FULL_WAIT);
    header->mutable_volume()->set_full_timeout_seconds(9);
    writer->Write(message);
    return grpc::Status::OK;
  };
  StartServer();
  {
    const std::unique_ptr<AttachmentClient> client = MustTake();
    ASSERT_NE(client, nullptr);
    const Attachment& attachment = client->attachment();
    EXPECT_TRUE(attachment.thin);
    EXPECT_TRUE(attachment.waits_when_full);
    EXPECT_EQ(attachment.full_timeout, absl::Seconds(9));
    EXPECT_EQ(attachment.applied_sequence, 77U);
    ASSERT_EQ(attachment.grants.size(), 1U);
    EXPECT_EQ(attachment.grants[0].count, 192U);
    EXPECT_NE(client->journal(), nullptr);
  }
  service_.on_open = [](int, auto* writer) {
    writer->Write(ThinGrant(1));
    return grpc::Status::OK;
  };
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  EXPECT_TRUE(client->attachment().devices.empty());
  EXPECT_FALSE(client->attachment().waits_when_full);
  EXPECT_TRUE(client->Close().ok());
}

TEST_F(ThinClientTest, ImpossibleGrantsAreRefused) {
  const v1::AttachedDevice device = MakeLabelledFile(dir_ + "/d", 16 * kMiB);
  using Spoil = std::function<void(v1::AttachmentHeader*)>;
  const std::vector<std::pair<const char*, Spoil>> cases = {
      {"thick", [](auto* h) { h->mutable_volume()->set_thin(false); }},
      {"no number", [](auto* h) { h->set_applied_sequence(UINT64_MAX); }},
      {"a journal nobody found", [](auto* h) { h->set_takes_over(true); }},
      {"a device twice", [&](auto* h) { *h->add_devices() = device; }},
      {"space past the end", [](auto* h) { AddGrant(h->mutable_grants(), 0, 255, 2); }},
      {"space far past the end",
       [](auto* h) { AddGrant(h->mutable_grants(), 0, UINT64_MAX, UINT64_MAX); }},
      {"space nowhere", [](auto* h) { AddGrant(h->mutable_grants(), 1, 64, 1); }},
      {"space on device 65536", [](auto* h) { AddGrant(h->mutable_grants(), 65536, 64, 1); }},
      {"no space", [](auto* h) { AddGrant(h->mutable_grants(), 0, 64, 0); }},
      {"a leg too many",
       [](auto* h) {
         AddGrant(h->mutable_grants(), 0, 64, 1);
         h->mutable_grants(0)->add_legs();
       }},
      {"no leg", [](auto* h) { h->add_grants()->set_unit_count(1); }},
  };
  StartServer();
  for (const auto& [name, spoil] : cases) {
    std::filesystem::remove(service_.lock_path);  // and any journal
    service_.on_open = [&, spoil = spoil](int, auto* writer) {
      v1::OpenAttachmentResponse message = ThinGrant(1);
      *message.mutable_header()->add_devices() = device;
      spoil(message.mutable_header());
      writer->Write(message);
      return grpc::Status::OK;
    };
    const absl::Status status = Take().status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << name << ": " << status;
    EXPECT_TRUE(LockIsFree()) << name;
  }
}

TEST_F(ThinClientTest, WriterNeedsAJournalAndReaderDoesNot) {
  StartServer();
  // A lock file that cannot be mapped: a journal would need it to be written.
  std::filesystem::remove(service_.lock_path);
  std::filesystem::create_symlink("/dev/full", service_.lock_path);
  EXPECT_FALSE(Take().ok());
  EXPECT_EQ(service_.opens, 0);
  std::filesystem::remove(service_.lock_path);
  const absl::StatusOr<std::unique_ptr<AttachmentClient>> reader =
      Take(absl::Seconds(20), "v", /*read_only=*/true);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->journal(), nullptr);
  EXPECT_TRUE(service_.opened.read_only());
}

TEST_F(ThinClientTest, JournalOfTheLastHolderIsNamedAgainAfterALostAnswer) {
  DieAsHolder(5, /*with_change=*/true);
  std::vector<uint64_t> settles;
  service_.on_open = [&](int attempt, auto* writer) {
    settles.push_back(service_.opened.settles_epoch());
    v1::OpenAttachmentResponse message = ThinGrant(5 + static_cast<uint64_t>(attempt));
    message.mutable_header()->set_takes_over(true);
    message.mutable_header()->set_run_count(attempt == 2 ? 1 : 0);
    // The first answer is lost whole, the second in the middle.
    if (attempt > 1) writer->Write(message);
    return attempt < 3 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone") : grpc::Status::OK;
  };
  StartServer();
  {
    const std::unique_ptr<AttachmentClient> client = MustTake();
    ASSERT_NE(client, nullptr);
    EXPECT_EQ(settles, (std::vector<uint64_t>{5, 5, 5}));
    EXPECT_EQ(client->attachment().epoch, Epoch(8));
    EXPECT_TRUE(client->attachment().takes_over);
    ASSERT_TRUE(client->journal()->past().has_value());
    EXPECT_EQ(client->journal()->past()->changes.size(), 1U);
    EXPECT_FALSE(client->Close().ok()) << "what was left is not settled";
    EXPECT_TRUE(service_.closed.empty()) << "nor may the epochs given up end cleanly";
  }
  // It dies too, having begun: the next one finds the change under its epoch.
  settles.clear();
  service_.opens = 2;
  const std::unique_ptr<AttachmentClient> next = MustTake();
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(settles, std::vector<uint64_t>{8});
  EXPECT_EQ(next->journal()->past()->changes.size(), 1U);
  next->NoteSettled();
  EXPECT_TRUE(next->Close().ok());
}

TEST_F(ThinClientTest, JournalThatDoesNotCountIsForgotten) {
  DieAsHolder(5, /*with_change=*/true);
  service_.on_open = [&](int, auto* writer) {
    writer->Write(ThinGrant(9));
    return grpc::Status::OK;
  };
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(service_.opened.settles_epoch(), 5U);
  EXPECT_FALSE(client->journal()->past().has_value());
  EXPECT_TRUE(client->Close().ok());
}

TEST_F(ThinClientTest, MapChangesAreSentInOrderUntilAnsweredInRequestsThatFit) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  std::vector<MapChange> changes;
  for (uint64_t i = 0; i < 10'000; ++i) changes.push_back(Bind(i));
  changes[4].kind = MapChange::Kind::kUnbind;
  std::vector<v1::MapChange> got;
  uint64_t next = 500;
  int calls = 0;
  service_.on_commit = [&](const v1::CommitMapRequest& request, v1::CommitMapResponse* response) {
    if (++calls % 2 == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going down");
    EXPECT_EQ(request.epoch(), 1U);
    EXPECT_EQ(request.first_sequence(), next);
    EXPECT_LE(request.changes_size(), 4096);
    EXPECT_LE(request.ByteSizeLong(), kMiB);
    next += static_cast<uint64_t>(request.changes_size());
    got.insert(got.end(), request.changes().begin(), request.changes().end());
    response->set_applied_sequence(next - 1);
    return grpc::Status::OK;
  };
  const absl::Status status = client->CommitMap(500, changes);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(got.size(), changes.size());
  EXPECT_EQ(got[3].kind(), v1::MapChange::KIND_BIND);
  EXPECT_EQ(got[3].first_unit(), 3U);
  EXPECT_EQ(got[3].unit_count(), 1U);
  ASSERT_EQ(got[3].legs_size(), 1);
  EXPECT_EQ(got[3].legs(0).device_index(), 3U);
  EXPECT_EQ(got[3].legs(0).device_unit(), 103U);
  EXPECT_TRUE(got[3].legs(0).stale());
  EXPECT_EQ(got[4].kind(), v1::MapChange::KIND_UNBIND);
  EXPECT_EQ(got[4].legs_size(), 0);
  EXPECT_TRUE(client->Close().ok());
}

TEST_F(ThinClientTest, MapChangesThatAreNotTakenForbidACleanEnd) {
  StartServer();
  const std::vector<MapChange> changes = {Bind(1), Bind(2)};
  const std::vector<
      std::pair<absl::StatusCode, std::function<grpc::Status(v1::CommitMapResponse*)>>>
      cases = {{absl::StatusCode::kFailedPrecondition,
                [](auto*) {
                  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "epoch is over");
                }},
               {absl::StatusCode::kInvalidArgument,
                [](auto*) { return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no fit"); }},
               {absl::StatusCode::kDataLoss, [](auto* response) {
                  response->set_applied_sequence(7);  // 7 and 8 were sent
                  return grpc::Status::OK;
                }}};
  for (const auto& [code, answer] : cases) {
    const std::unique_ptr<AttachmentClient> client = MustTake();
    ASSERT_NE(client, nullptr);
    service_.on_commit = [answer = answer](const auto&, auto* response) {
      return answer(response);
    };
    EXPECT_EQ(client->CommitMap(7, changes).code(), code);
    EXPECT_FALSE(client->Close().ok());
  }
  EXPECT_TRUE(service_.closed.empty());
}

TEST_F(ThinClientTest, SpaceComesWithTheDevicesItIsOn) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  const v1::AttachedDevice first = MakeLabelledFile(dir_ + "/a", 16 * kMiB);
  const v1::AttachedDevice second = MakeLabelledFile(dir_ + "/b", 16 * kMiB);
  auto space = TakeSpace(*client, [&](auto* response) {
    *response->add_devices() = first;
    AddGrant(response->mutable_grants(), 0, 64, 64);
  });
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_EQ(asked_.unit_count(), 64U);
  EXPECT_EQ(asked_.known_device_count(), 0U);
  EXPECT_EQ(asked_.epoch(), 1U);
  ASSERT_EQ(space->devices.size(), 1U);
  EXPECT_EQ(space->devices[0]->traits().size_bytes, 16 * kMiB);
  ASSERT_EQ(space->grants.size(), 1U);
  // The next one: a device more, and space on both.
  space = TakeSpace(*client, [&](auto* response) {
    *response->add_devices() = second;
    AddGrant(response->mutable_grants(), 1, 128, 64);
    AddGrant(response->mutable_grants(), 0, 128, 64);
  });
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_EQ(asked_.known_device_count(), 1U);
  EXPECT_EQ(space->devices.size(), 1U);
  ASSERT_EQ(space->grants.size(), 2U);
  EXPECT_EQ(space->grants[0].legs[0].device, DeviceIndex(1));
  client->ReturnSpace(space->grants);
  ASSERT_EQ(service_.returned.size(), 1U);
  ASSERT_EQ(service_.returned[0].grants_size(), 2);
  EXPECT_EQ(service_.returned[0].grants(1).legs(0).device_unit(), 128U);
  EXPECT_EQ(service_.returned[0].grants(1).unit_count(), 64U);
}

TEST_F(ThinClientTest, SpaceOnADeviceThatCannotBeOpenedHereIsNotHandedOn) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  v1::AttachedDevice gone = MakeLabelledFile(dir_ + "/a", 16 * kMiB);
  gone.set_path(dir_ + "/nothing");
  auto space = TakeSpace(*client, [&](auto* response) {
    *response->add_devices() = gone;
    AddGrant(response->mutable_grants(), 0, 64, 64);
  });
  EXPECT_TRUE(absl::IsUnavailable(space.status())) << space.status();
  // Its index stays taken, and the device comes along with the next space there is.
  const v1::AttachedDevice good = MakeLabelledFile(dir_ + "/b", 16 * kMiB);
  space = TakeSpace(*client, [&](auto* response) {
    *response->add_devices() = good;
    AddGrant(response->mutable_grants(), 0, 128, 64);
    AddGrant(response->mutable_grants(), 1, 64, 64);
  });
  ASSERT_TRUE(space.ok()) << space.status();
  EXPECT_EQ(asked_.known_device_count(), 1U);
  EXPECT_EQ(space->devices.size(), 2U);
  ASSERT_EQ(space->grants.size(), 1U);
  EXPECT_EQ(space->grants[0].legs[0].device, DeviceIndex(1));
}

TEST_F(ThinClientTest, WhatCannotBeIsNoSpace) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  const v1::AttachedDevice device = MakeLabelledFile(dir_ + "/a", 16 * kMiB);
  EXPECT_TRUE(absl::IsDataLoss(
      TakeSpace(*client, [&](auto* r) { AddGrant(r->mutable_grants(), 0, 64, 1); }).status()));
  EXPECT_TRUE(absl::IsDataLoss(TakeSpace(*client, [&](auto* r) {
                                 *r->add_devices() = device;
                                 r->set_first_device_index(1);
                                 AddGrant(r->mutable_grants(), 0, 64, 1);
                               }).status()));
  EXPECT_TRUE(absl::IsDataLoss(TakeSpace(*client, [&](auto* r) {
                                 *r->add_devices() = device;
                                 *r->add_devices() = device;
                                 AddGrant(r->mutable_grants(), 0, 64, 1);
                               }).status()));
}

TEST_F(ThinClientTest, NoSpaceNoAnswerAndNoMoreAreToldApart) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(TakeSpace(*client, [](auto*) {}).status()));
  const std::vector<std::pair<grpc::StatusCode, absl::StatusCode>> cases = {
      {grpc::StatusCode::RESOURCE_EXHAUSTED, absl::StatusCode::kUnavailable},
      {grpc::StatusCode::UNAVAILABLE, absl::StatusCode::kUnavailable},
      {grpc::StatusCode::INTERNAL, absl::StatusCode::kUnavailable},
      {grpc::StatusCode::FAILED_PRECONDITION, absl::StatusCode::kFailedPrecondition},
  };
  for (const auto& [answer, code] : cases) {
    service_.on_take = [answer = answer](auto*, const auto&, auto*) {
      return grpc::Status(answer, "x");
    };
    EXPECT_EQ(client->TakeSpace(1).status().code(), code);
  }
  StopServer();
  const absl::Time begun = absl::Now();
  EXPECT_TRUE(absl::IsUnavailable(client->TakeSpace(1).status()));
  EXPECT_LT(absl::Now() - begun, absl::Seconds(2)) << "at once";
}

TEST_F(ThinClientTest, ShutDownEndsACallForSpace) {
  StartServer();
  const std::unique_ptr<AttachmentClient> client = MustTake();
  ASSERT_NE(client, nullptr);
  std::atomic<bool> asked{false};
  service_.on_take = [&](grpc::ServerContext* context, const auto&, auto*) {
    asked = true;
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status(grpc::StatusCode::CANCELLED, "");
  };
  std::thread shut_down([&] {
    while (!asked) absl::SleepFor(absl::Milliseconds(5));
    client->ShutDown();
  });
  EXPECT_TRUE(absl::IsCancelled(client->TakeSpace(1).status()));
  shut_down.join();
  asked = false;
  EXPECT_TRUE(absl::IsCancelled(client->TakeSpace(1).status()));
  EXPECT_FALSE(asked);
}

}  // namespace
}  // namespace braid
