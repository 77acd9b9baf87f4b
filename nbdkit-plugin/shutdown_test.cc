// The end of a server whose clients' writes are held back for want of space: nbdkit itself with
// the plugin, a client of its own, and a control plane of the test's own that has no space.
#include <libnbd.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nbdkit-plugin/attachment_fixture.h"

namespace braid {
namespace {

struct CloseNbd {
  void operator()(nbd_handle* nbd) const { nbd_close(nbd); }
};
using Nbd = std::unique_ptr<nbd_handle, CloseNbd>;

constexpr size_t kBytes = 4096;

class ShutDownTest : public AttachmentFixture {
 protected:
  ShutDownTest() {
    device_ = MakeLabelledFile(dir_ + "/d", 16 * kMiB);
    service_.thin = true;
    service_.on_open = [](int attempt, auto* writer) {
      v1::OpenAttachmentResponse message = ThinGrant(static_cast<uint64_t>(attempt));
      message.mutable_header()->mutable_volume()->set_on_full(v1::ON_FULL_WAIT);
      writer->Write(message);
      return grpc::Status::OK;
    };
    service_.on_take = [this](auto*, const v1::TakeSpaceRequest& request, auto* response) {
      ++takes_;
      if (!has_space_.exchange(false)) return grpc::Status::OK;
      response->set_first_device_index(request.known_device_count());
      *response->add_devices() = device_;
      AddGrant(response->mutable_grants(), 0, 64, 64);
      return grpc::Status::OK;
    };
    service_.on_commit = [](const auto& request, auto* response) {
      response->set_applied_sequence(request.first_sequence() +
                                     static_cast<uint64_t>(request.changes_size()) - 1);
      return grpc::Status::OK;
    };
    StartServer();
    StartNbdkit();
  }
  ~ShutDownTest() override {
    nbd_ = nullptr;
    if (nbdkit_ > 0) {
      kill(nbdkit_, SIGKILL);
      waitpid(nbdkit_, nullptr, 0);
    }
  }

  void StartNbdkit() {
    const std::string socket = dir_ + "/nbd.sock";
    const std::string control = "control=unix:" + dir_ + "/sock";
    nbdkit_ = fork();
    if (nbdkit_ == 0) {
      execlp("nbdkit", "nbdkit", "--foreground", "--unix", socket.c_str(), "--threads", "64",
             std::getenv("BRAID_PLUGIN"), "volume=v", control.c_str(), nullptr);
      _exit(127);
    }
    nbd_ = Connect();
  }
  Nbd Connect() {
    const std::string socket = dir_ + "/nbd.sock";
    Nbd nbd(nbd_create());
    for (int attempt = 0; attempt < 500; ++attempt) {
      if (nbd_connect_unix(nbd.get(), socket.c_str()) == 0) return nbd;
      nbd.reset(nbd_create());
      absl::SleepFor(absl::Milliseconds(20));
    }
    ADD_FAILURE() << "nbdkit does not listen: " << nbd_get_error();
    return nbd;
  }
  // Sends `count` writes to as many units and gives their cookies.
  std::vector<int64_t> SendWrites(Nbd& nbd, int count, char byte) {
    data_.assign(kBytes, byte);
    std::vector<int64_t> cookies;
    cookies.reserve(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i)
      cookies.push_back(nbd_aio_pwrite(nbd.get(), data_.data(), data_.size(),
                                       static_cast<uint64_t>(i) * kSmallExtentBytes,
                                       NBD_NULL_COMPLETION, 0));
    return cookies;
  }
  // Whether none of them ends within `time`.
  static bool AllHeld(Nbd& nbd, const std::vector<int64_t>& cookies, absl::Duration time) {
    const absl::Time until = absl::Now() + time;
    while (absl::Now() < until) {
      if (nbd_poll(nbd.get(), 10) == -1) return false;
      for (const int64_t cookie : cookies)
        if (nbd_aio_command_completed(nbd.get(), static_cast<uint64_t>(cookie)) != 0) return false;
    }
    return true;
  }
  // Polls until the connection ends or all are done; how many succeeded.
  static int Succeeded(Nbd& nbd, const std::vector<int64_t>& cookies, absl::Duration patience) {
    const absl::Time until = absl::Now() + patience;
    std::vector<int> done(cookies.size(), 0);
    int left = static_cast<int>(cookies.size());
    int good = 0;
    while (left > 0 && absl::Now() < until) {
      const bool alive = nbd_poll(nbd.get(), 10) != -1;
      for (size_t i = 0; i < cookies.size(); ++i) {
        if (done[i] != 0) continue;
        const int r = nbd_aio_command_completed(nbd.get(), static_cast<uint64_t>(cookies[i]));
        if (r == 0 && alive) continue;
        done[i] = 1;
        --left;
        good += r == 1;
      }
      if (!alive) break;
    }
    EXPECT_TRUE(left == 0) << left << " writes neither ended nor failed";
    return good;
  }
  // nbdkit's exit status; -1 when it does not end.
  int AwaitExit(absl::Duration patience) {
    const absl::Time until = absl::Now() + patience;
    int status = 0;
    while (absl::Now() < until) {
      if (waitpid(nbdkit_, &status, WNOHANG) == nbdkit_) {
        nbdkit_ = -1;
        return status;
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
    return -1;
  }

  v1::AttachedDevice device_;
  std::atomic<bool> has_space_{false};
  std::atomic<int> takes_{0};
  pid_t nbdkit_ = -1;
  Nbd nbd_;
  std::string data_;
};

TEST_F(ShutDownTest, SigtermEndsWritesThatWaitForSpaceAndGivesTheVolumeBack) {
  const std::vector<int64_t> cookies = SendWrites(nbd_, 32, 'x');
  ASSERT_TRUE(AllHeld(nbd_, cookies, absl::Seconds(1)));
  EXPECT_GT(takes_, 0);
  const absl::Time begun = absl::Now();
  ASSERT_EQ(kill(nbdkit_, SIGTERM), 0);
  EXPECT_EQ(Succeeded(nbd_, cookies, absl::Seconds(20)), 0);
  // nbdkit 1.32 waits for clients to go by themselves.
  nbd_ = nullptr;
  const int status = AwaitExit(absl::Seconds(20));
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
  EXPECT_EQ(service_.closed, std::vector<uint64_t>{1}) << "a clean end";
}

TEST_F(ShutDownTest, WritesHeldBackGoOnWhenThereIsSpace) {
  const std::vector<int64_t> cookies = SendWrites(nbd_, 32, 'x');
  ASSERT_TRUE(AllHeld(nbd_, cookies, absl::Milliseconds(500)));
  has_space_ = true;
  EXPECT_EQ(Succeeded(nbd_, cookies, absl::Seconds(10)), 32);
}

// A kernel that gives up on a connection sends its requests again on another one: what the
// old one sent must not come after what was written since.
TEST_F(ShutDownTest, WriteHeldForAConnectionThatBrokeIsNotDoneLater) {
  const std::vector<int64_t> held = SendWrites(nbd_, 1, 'a');
  ASSERT_TRUE(AllHeld(nbd_, held, absl::Milliseconds(500)));
  Nbd other = Connect();
  nbd_ = nullptr;  // hangs up without a word
  absl::SleepFor(absl::Milliseconds(300));
  const std::vector<int64_t> again = SendWrites(other, 1, 'b');
  has_space_ = true;
  ASSERT_EQ(Succeeded(other, again, absl::Seconds(10)), 1);
  absl::SleepFor(absl::Milliseconds(1500));
  std::string found(kBytes, '\0');
  ASSERT_EQ(nbd_pread(other.get(), found.data(), found.size(), 0, 0), 0) << nbd_get_error();
  EXPECT_EQ(found, std::string(kBytes, 'b'));
  nbd_ = std::move(other);
}

}  // namespace
}  // namespace braid
