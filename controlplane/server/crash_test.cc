// The real braidd, killed at random moments of a stream of creates and deletes.
//
// After each restart: every change that was answered is there and no other, save for those
// that were under way; no extent has two owners, none is lost; no READY volume shows what
// its devices held before. BRAID_SEED repeats a run's choices; when exactly the signal
// lands is the machine's to say.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "braid/v1/inventory.grpc.pb.h"
#include "braid/v1/volume.grpc.pb.h"
#include "lib/base/unique_fd.h"
#include "lib/base/units.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr int kRounds = 6;
constexpr int kDevices = 3;
constexpr int kClients = 2;
constexpr uint64_t kDeviceBytes = 36 * kMiB;

// A running braidd. Dies with this process, too.
class Braidd {
 public:
  Braidd(const fs::path& dir, const std::string& address) {
    int ready[2];
    EXPECT_EQ(pipe2(ready, O_CLOEXEC), 0);
    UniqueFd reader(ready[0]);
    UniqueFd writer(ready[1]);
    const std::string data = dir / "data";
    const std::string run = dir / "run";
    const char* program = std::getenv("BRAIDD");
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      dup2(writer.get(), STDOUT_FILENO);
      const int null = open("/dev/null", O_WRONLY);
      dup2(null, STDERR_FILENO);
      execl(program, program, "--data-dir", data.c_str(), "--run-dir", run.c_str(), "--site",
            "berlin", "--node", "n1", "--listen", address.c_str(), nullptr);
      _exit(127);
    }
    writer.Reset();
    std::string line;
    char byte = 0;
    while (read(reader.get(), &byte, 1) == 1 && byte != '\n') line += byte;
    EXPECT_EQ(line.rfind("braidd: ready", 0), 0U) << line;
  }
  ~Braidd() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

class CrashTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(std::getenv("BRAIDD"), nullptr) << "set BRAIDD to the program's path";
    std::string form = testing::TempDir() + "/braid-crash-XXXXXX";
    ASSERT_NE(mkdtemp(form.data()), nullptr);
    dir_ = form;
    address_ = absl::StrCat("unix:", (dir_ / "sock").string());
    for (int i = 0; i < kDevices; ++i) {
      std::ofstream(DevicePath(absl::StrCat("d", i)), std::ios::binary)
          << std::string(kDeviceBytes, 's');
    }
  }
  void TearDown() override {
    braidd_.reset();
    fs::remove_all(dir_);
  }
  std::string DevicePath(const std::string& name) const { return dir_ / name; }

  void Start() {
    braidd_ = std::make_unique<Braidd>(dir_, address_);
    // A channel of its own for each life, so that no back-off of the last one is waited for.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel =
        grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
    volumes_ = v1::VolumeService::NewStub(channel);
    inventory_ = v1::InventoryService::NewStub(channel);
  }

  bool Create(const std::string& name, uint64_t size, uint32_t copies, grpc::StatusCode* code) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::CreateVolumeRequest request;
    request.set_name(name);
    request.set_size_bytes(size);
    request.set_copies(copies);
    v1::CreateVolumeResponse response;
    *code = volumes_->CreateVolume(&context, request, &response).error_code();
    return *code == grpc::StatusCode::OK;
  }
  bool Delete(const std::string& name, grpc::StatusCode* code) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::DeleteVolumeRequest request;
    request.set_name(name);
    v1::DeleteVolumeResponse response;
    *code = volumes_->DeleteVolume(&context, request, &response).error_code();
    return *code == grpc::StatusCode::OK;
  }

  enum class Known { kThere, kGone, kEither };
  // One client's stream of changes, until braidd is gone.
  void ChangeOn(int client, int round, uint64_t seed, std::map<std::string, Known>* known) {
    std::mt19937_64 random(seed);
    for (int n = 0;; ++n) {
      std::vector<std::string> there;
      for (const auto& [name, what] : *known) {
        if (what == Known::kThere) there.push_back(name);
      }
      grpc::StatusCode code = grpc::StatusCode::OK;
      if (there.size() < 2 || random() % 2 == 0) {
        const std::string name = absl::StrCat("c", client, "-", round, "-", n);
        const bool done = Create(name, (1 + random() % 2) * 4 * kMiB - 512,
                                 static_cast<uint32_t>(1 + random() % 2), &code);
        if (code == grpc::StatusCode::RESOURCE_EXHAUSTED) continue;
        (*known)[name] = done ? Known::kThere : Known::kEither;
      } else {
        const std::string& name = there[random() % there.size()];
        const bool done = Delete(name, &code);
        (*known)[name] = done ? Known::kGone : Known::kEither;
      }
      ++answered_;
      if (code != grpc::StatusCode::OK) {
        EXPECT_TRUE(code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::CANCELLED)
            << code;
        return;
      }
    }
  }

  // All of it, after a restart. What was not known is known then.
  void Verify(std::map<std::string, Known>& known) {
    std::map<std::string, v1::Volume> found;
    // Until nothing is being prepared any more.
    for (bool preparing = true; preparing;) {
      grpc::ClientContext context;
      v1::ListVolumesResponse response;
      grpc::Status status = volumes_->ListVolumes(&context, {}, &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      preparing = false;
      for (const v1::Volume& volume : response.volumes()) {
        ASSERT_EQ(volume.fault(), "");
        preparing = preparing || volume.state() == v1::VOLUME_STATE_PREPARING;
        found[volume.name()] = volume;
      }
      if (preparing) absl::SleepFor(absl::Milliseconds(5));
    }
    for (auto& [name, what] : known) {
      const bool is_there = found.contains(name);
      if (what != Known::kEither) {
        EXPECT_EQ(is_there, what == Known::kThere) << name;
      }
      what = is_there ? Known::kThere : Known::kGone;
    }
    uint64_t owned = 0;
    std::vector<std::tuple<std::string, uint64_t, uint64_t>> ranges;
    for (const auto& [name, volume] : found) {
      EXPECT_TRUE(known.contains(name)) << name;
      owned += volume.allocated_bytes();
      grpc::ClientContext context;
      v1::GetVolumeMapRequest request;
      request.set_name(name);
      auto rows = volumes_->GetVolumeMap(&context, request);
      v1::GetVolumeMapResponse message;
      while (rows->Read(&message)) {
        for (const v1::MapRow& row : message.rows()) {
          ranges.emplace_back(row.device(), row.device_offset_bytes(),
                              row.device_offset_bytes() + row.length_bytes());
          if (written_.contains(volume.id())) continue;
          std::ifstream device(DevicePath(row.device()), std::ios::binary);
          device.seekg(static_cast<std::streamoff>(row.device_offset_bytes()));
          std::string bytes(row.length_bytes(), 'x');
          device.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
          EXPECT_EQ(bytes.find_first_not_of('\0'), std::string::npos) << name;
          // The next owner must not see this.
          std::fstream(DevicePath(row.device()), std::ios::binary | std::ios::in | std::ios::out)
                  .seekp(static_cast<std::streamoff>(row.device_offset_bytes()))
              << "secret of " << name;
        }
      }
      EXPECT_TRUE(rows->Finish().ok());
      written_.insert(volume.id());
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) {
      if (std::get<0>(ranges[i]) != std::get<0>(ranges[i - 1])) continue;
      EXPECT_LE(std::get<2>(ranges[i - 1]), std::get<1>(ranges[i]));
    }
    uint64_t allocated = 0;
    grpc::ClientContext context;
    v1::ListDevicesResponse devices;
    ASSERT_TRUE(inventory_->ListDevices(&context, {}, &devices).ok());
    for (const v1::Device& device : devices.devices()) allocated += device.allocated_bytes();
    EXPECT_EQ(allocated, owned);
  }

  fs::path dir_;
  std::string address_;
  std::unique_ptr<Braidd> braidd_;
  std::unique_ptr<v1::VolumeService::Stub> volumes_;
  std::unique_ptr<v1::InventoryService::Stub> inventory_;
  std::atomic<uint64_t> answered_{0};
  // Ids of volumes that were seen to be zero, and hold something since.
  std::set<std::string> written_;
};

TEST_F(CrashTest, KilledAtAnyMomentItComesBackWithWhatItAnswered) {
  const char* given = std::getenv("BRAID_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("BRAID_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  Start();
  for (int i = 0; i < kDevices; ++i) {
    grpc::ClientContext context;
    v1::AddDeviceRequest request;
    request.set_path(DevicePath(absl::StrCat("d", i)));
    request.set_device_class("ssd");
    v1::AddDeviceResponse response;
    grpc::Status status = inventory_->AddDevice(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  std::map<std::string, Known> known[kClients];
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::thread> clients;
    clients.reserve(kClients);
    for (int client = 0; client < kClients; ++client) {
      clients.emplace_back([this, client, round, client_seed = random(), &known] {
        ChangeOn(client, round, client_seed, &known[client]);
      });
    }
    absl::SleepFor(absl::Milliseconds(50 + random() % 300));
    braidd_->Kill();
    for (std::thread& client : clients) client.join();
    Start();
    std::map<std::string, Known> all;
    for (const auto& one : known) all.insert(one.begin(), one.end());
    Verify(all);
    if (HasFatalFailure()) return;
    for (auto& one : known) {
      for (auto& [name, what] : one) what = all[name];
    }
  }
  EXPECT_GT(answered_.load(), uint64_t{kRounds} * kClients);
  std::printf("%llu changes over %d kills\n", static_cast<unsigned long long>(answered_.load()),
              kRounds);
}

}  // namespace
}  // namespace braid
