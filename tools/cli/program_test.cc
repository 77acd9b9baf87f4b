// The real `braid` against a made-up site: exit status, messages, shapes of JSON.
//
// argv[1] is the program, argv[2] the stand-in for braid-attach.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "lib/base/unique_fd.h"
#include "tools/cli/fake_site.h"

namespace braid::cli {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::StartsWith;

std::string program, attach_program;

struct Outcome {
  int status = -1;
  std::string out, err;
};

std::string Slurp(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() {
    char name[] = "/tmp/braid-cli-test-XXXXXX";
    directory_ = mkdtemp(name);
    site_ = std::make_unique<FakeSite>(directory_);
  }
  ~ProgramTest() override {
    site_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::string OutPath() const { return directory_ + "/out"; }
  std::string ErrPath() const { return directory_ + "/err"; }

  // Standard input is empty, output goes to OutPath(), errors to `err_path`.
  pid_t Start(std::vector<std::string> words, std::vector<std::string> environment,
              const std::string& err_path) {
    words.insert(words.begin(), program);
    environment.push_back("BRAID_ATTACH_PROGRAM=" + attach_program);
    environment.push_back("PATH=/usr/bin:/bin");
    // Which of two values of a name wins is up to the program's libc.
    if (std::none_of(environment.begin(), environment.end(), [](const std::string& entry) {
          return entry.rfind("BRAID_CONTROL=", 0) == 0;
        })) {
      environment.push_back("BRAID_CONTROL=" + site_->control());
    }
    std::vector<char*> argv, envp;
    for (std::string& word : words) argv.push_back(word.data());
    for (std::string& entry : environment) envp.push_back(entry.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_NOCTTY;
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, OutPath().c_str(), kFlags, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_path.c_str(), kFlags, 0600);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }

  // Its exit status; -1 when a signal ended it.
  static int Wait(pid_t pid) {
    int wait_status = 0;
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1;
  }

  Outcome Run(std::vector<std::string> words, std::vector<std::string> environment = {}) {
    Outcome outcome;
    outcome.status = Wait(Start(std::move(words), std::move(environment), ErrPath()));
    outcome.out = Slurp(OutPath());
    outcome.err = Slurp(ErrPath());
    return outcome;
  }

  google::protobuf::Struct RunJson(const std::vector<std::string>& words) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    google::protobuf::Struct object;
    EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(outcome.out, &object).ok())
        << outcome.out;
    return object;
  }

  void AddVolumes(int count) {
    for (int i = 0; i < count; ++i) {
      v1::Volume volume;
      volume.set_id(absl::StrCat("uuid-", i));
      volume.set_name(absl::StrCat("v", i));
      volume.set_site("lab");
      volume.set_size_bytes(10ULL << 30);
      volume.set_layout(v1::LAYOUT_MIRRORED);
      volume.set_stripes(1);
      volume.set_copies(2);
      volume.set_state(v1::VOLUME_STATE_READY);
      volume.set_health(v1::VOLUME_HEALTH_GOOD);
      site_->AddVolume(volume);
    }
  }

  std::string directory_;
  std::unique_ptr<FakeSite> site_;
};

// One line that begins with "braid: ".
MATCHER(IsOneReason, "") {
  return arg.rfind("braid: ", 0) == 0 && arg.find('\n') == arg.size() - 1;
}

TEST_F(ProgramTest, MisuseIsOneLineWithAHintAndStatusTwo) {
  const std::vector<std::vector<std::string>> misuses = {
      {},
      {"volum", "list"},
      {"volume"},
      {"volume", "frob"},
      {"volume", "create"},
      {"volume", "create", "x"},
      {"volume", "create", "x", "--size"},
      {"volume", "create", "x", "--size", "abc"},
      {"volume", "create", "x", "--size", "-1"},
      {"volume", "create", "x", "--size=-1"},
      {"volume", "create", "x", "--size", "8E"},
      {"volume", "create", "x", "--size", "99999999999999999999"},
      {"volume", "create", "x", "--size", "1G", "--layout", "raid5"},
      {"volume", "create", "x", "--size", "1G", "--copies", "0"},
      {"volume", "create", "x", "--size", "1G", "--stripes", "4294967296"},
      {"volume", "create", "x", "--size", "1G", "--stripe-size", "0"},
      {"volume", "create", "x", "--size", "1G", "--nonsense"},
      {"volume", "create", "x", "--size", "1G", "--reserve", "1M"},
      {"volume", "create", "x", "--size", "1G", "--on-full", "wait"},
      {"volume", "create", "x", "--size", "1G", "--thin", "--on-full", "panic"},
      {"volume", "create", "x", "--size", "1G", "--thin", "--full-timeout", "5"},
      {"volume", "create", "x", "--size", "1G", "--thin", "--on-full", "fail", "--full-timeout",
       "5"},
      {"volume", "create", "x", "--size", "1G", "--thin", "--on-full", "wait", "--full-timeout",
       "0"},
      {"volume", "resize", "x"},
      {"volume", "reclaim"},
      {"volume", "list", "extra"},
      {"volume", "list", "--control", "here"},
      {"volume", "list", "--timeout", "0"},
      {"volume", "list", "--timeout", "nan"},
      {"device", "add", "/dev/sdb"},
      {"attach"},
      {"attach", "x", "--list"},
      {"attach", "x", "--via", "fuse", "--socket", "/y"},
      {"completion", "tcsh"},
      {"help", "no", "such"},
  };
  for (const auto& words : misuses) {
    const Outcome outcome = Run(words);
    SCOPED_TRACE(absl::StrCat(words.empty() ? "" : words.back(), ": ", outcome.err));
    EXPECT_EQ(outcome.status, 2);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, IsOneReason());
    EXPECT_THAT(outcome.err, MatchesRegex(".*see 'braid.* --help'\n"));
  }
  EXPECT_EQ(Run({"status"}, {"BRAID_CONTROL=here"}).status, 2);
  EXPECT_THAT(Run({"status"}, {"BRAID_CONTROL=here"}).err, HasSubstr("BRAID_CONTROL: 'here'"));
}

TEST_F(ProgramTest, HelpAndVersionNeedNoSite) {
  const std::vector<std::string> nowhere = {"BRAID_CONTROL=nonsense"};
  for (const auto& words : std::vector<std::vector<std::string>>{{"volume", "create", "--help"},
                                                                 {"volume", "create", "x", "-h"}}) {
    const Outcome outcome = Run(words, nowhere);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_THAT(outcome.out, StartsWith("Usage: braid volume create NAME --size SIZE [OPTIONS]"));
  }
  EXPECT_EQ(Run({"help", "volume", "create"}).out, Run({"volume", "create", "--help"}).out);
  EXPECT_EQ(Run({"--version"}, nowhere).out, "braid " BRAID_VERSION "\n");
}

TEST_F(ProgramTest, NobodyListeningIsToldWithinASecond) {
  const std::string missing = "unix:" + directory_ + "/no.sock";
  for (const std::string& control : {missing, std::string("127.0.0.1:1")}) {
    const absl::Time start = absl::Now();
    const Outcome outcome = Run({"--control", control, "volume", "list"});
    EXPECT_LT(absl::Now() - start, absl::Seconds(1)) << control;
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, IsOneReason());
    EXPECT_THAT(outcome.err, AllOf(HasSubstr(control), HasSubstr("; start braidd"),
                                   HasSubstr("--control"), HasSubstr("BRAID_CONTROL")));
  }
}

TEST_F(ProgramTest, OptionsOfEveryCommandStandBeforeAndAfterTheNoun) {
  AddVolumes(1);
  const std::string expected = Run({"--json", "volume", "list"}).out;
  EXPECT_THAT(expected, StartsWith("{\"volumes\": ["));
  EXPECT_EQ(Run({"volume", "--json", "list"}).out, expected);
  EXPECT_EQ(Run({"volume", "list", "--json"}).out, expected);
  const std::string control = site_->control();
  const std::vector<std::string> elsewhere = {"BRAID_CONTROL=unix:/nonexistent"};
  EXPECT_EQ(Run({"volume", "list", "--json", "--control", control}, elsewhere).out, expected);
  EXPECT_EQ(Run({"--control=" + control, "--json", "volume", "list"}, elsewhere).out, expected);
}

TEST_F(ProgramTest, ListsMergeAllPagesIntoOneArray) {
  AddVolumes(5);
  const auto object = RunJson({"volume", "list", "--json"});
  ASSERT_EQ(object.fields_size(), 1);
  const auto& volumes = object.fields().at("volumes").list_value();
  ASSERT_EQ(volumes.values_size(), 5);
  EXPECT_EQ(volumes.values(4).struct_value().fields().at("name").string_value(), "v4");
  EXPECT_EQ(volumes.values(4).struct_value().fields().at("size_bytes").string_value(),
            "10737418240");
  EXPECT_THAT(Run({"volume", "list"}).out, HasSubstr("lab/v4   10G  mirrored"));
}

TEST_F(ProgramTest, EveryReadHasItsShapeOfJson) {
  AddVolumes(1);
  const auto fields = [&](std::vector<std::string> words) {
    words.push_back("--json");
    const auto object = RunJson(words);
    std::set<std::string> names;
    for (const auto& [name, value] : object.fields()) names.insert(name);
    return names;
  };
  using Names = std::set<std::string>;
  EXPECT_EQ(fields({"device", "list"}), Names{"devices"});
  EXPECT_EQ(fields({"pool", "list"}), Names{"pools"});
  EXPECT_EQ(fields({"pool", "check"}),
            (Names{"findings", "device_count", "volume_count", "run_count", "grant_count"}));
  EXPECT_EQ(fields({"site", "list"}), Names{"sites"});
  EXPECT_EQ(fields({"volume", "show", "v0"}), Names{"volume"});
  EXPECT_EQ(fields({"volume", "map", "v0"}), Names{"rows"});
  EXPECT_EQ(fields({"explain", "v0"}), (Names{"volume", "rows"}));
  EXPECT_EQ(fields({"attach", "--list"}), Names{"attachments"});
  EXPECT_EQ(fields({"status"}),
            (Names{"site", "warnings", "events", "health", "pools", "volumes"}));
  EXPECT_EQ(fields({"device", "add", "/x", "--class", "ssd"}), Names{"device"});
  EXPECT_EQ(fields({"device", "remove", "d1"}), Names{"device"});
  EXPECT_EQ(fields({"volume", "create", "n", "--size", "1G"}), (Names{"volume", "chosen"}));
  EXPECT_EQ(fields({"volume", "delete", "n"}), Names{"volume"});
  EXPECT_EQ(
      RunJson({"volume", "map", "v0", "--json"}).fields().at("rows").list_value().values_size(), 2);
}

TEST_F(ProgramTest, RefusalsOfTheSiteAreItsWordsAndStatusOne) {
  AddVolumes(1);
  const std::vector<std::pair<std::vector<std::string>, std::string>> refusals = {
      {{"volume", "create", "x", "--size", "0"}, "the size is bad; give whole sectors"},
      {{"volume", "create", "x", "--size", "513"}, "the size is bad; give whole sectors"},
      {{"volume", "create", "v0", "--size", "1G"}, "there is one; choose another name"},
      {{"volume", "show", "a\033[2Jb"}, "no volume 'a\\x1b[2Jb'; see 'braid volume list'"},
      {{"volume", "map", "none"}, "no volume 'none'; see 'braid volume list'"},
      {{"volume", "delete", ""}, "no volume ''; see 'braid volume list'"},
      {{"device", "add", "/missing", "--class", "ssd"},
       "no file or device '/missing'; check the path"},
  };
  for (const auto& [words, message] : refusals) {
    const Outcome outcome = Run(words);
    EXPECT_EQ(outcome.status, 1) << message;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.err, "braid: " + message + "\n");
  }
}

TEST_F(ProgramTest, CreateWaitsQuietlyUntilReadyAndSaysWhatWasChosen) {
  const Outcome outcome =
      Run({"volume", "create", "db", "--size", "1.5G", "--layout", "striped-mirrors", "--stripes",
           "2", "--copies", "3", "--stripe-size", "128K", "--class", "ssd"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.out,
            "created volume lab/db: 1.5G, linear; takes 1.5G of device space\n"
            "  DEVICE  CLASS  NODE  TAKES\n"
            "  d1      ssd    n1     1.5G\n");
  const v1::CreateVolumeRequest asked = site_->last_create();
  EXPECT_EQ(asked.size_bytes(), 1536ULL << 20);
  EXPECT_EQ(asked.layout(), v1::LAYOUT_STRIPED_MIRRORS);
  EXPECT_EQ(asked.stripes(), 2U);
  EXPECT_EQ(asked.copies(), 3U);
  EXPECT_EQ(asked.stripe_size_bytes(), 128U << 10);
  EXPECT_EQ(asked.device_class(), "ssd");
  EXPECT_TRUE(asked.return_immediately());
  EXPECT_EQ(RunJson({"volume", "show", "db", "--json"})
                .fields()
                .at("volume")
                .struct_value()
                .fields()
                .at("state")
                .string_value(),
            "VOLUME_STATE_READY");
}

TEST_F(ProgramTest, TheSitesOwnWordsAboutADeviceAreNotTakenForItsAbsence) {
  Outcome outcome = Run({"volume", "create", "broken", "--size", "1G"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err,
            "braid: volume lab/broken was made, but is not ready: device d1 failed; delete it with "
            "'braid volume delete broken', or restart braidd to try again\n");
  outcome = Run({"volume", "delete", "broken"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err, "braid: device d1 does not answer; try again\n");
}

TEST_F(ProgramTest, NoWaitAndDryRunSaySo) {
  Outcome outcome = Run({"volume", "create", "db", "--size", "1G", "--dry-run"});
  EXPECT_THAT(outcome.out, AllOf(StartsWith("would create volume lab/db"), HasSubstr("d1"),
                                 HasSubstr("\nnothing was changed\n")));
  EXPECT_FALSE(site_->HasVolume("db"));
  outcome = Run({"volume", "create", "db", "--size", "1G", "--no-wait"});
  EXPECT_THAT(outcome.out, HasSubstr("it is being prepared; 'braid volume show db'"));
  EXPECT_EQ(site_->last_create().layout(), v1::LAYOUT_UNSPECIFIED);

  outcome = Run({"volume", "delete", "db", "--dry-run"});
  EXPECT_THAT(outcome.out, HasSubstr("would be deleted"));
  EXPECT_THAT(outcome.out, HasSubstr("nothing was changed"));
  EXPECT_TRUE(site_->HasVolume("db"));
  // Nobody to ask at: done without a question.
  outcome = Run({"volume", "delete", "db"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_FALSE(site_->HasVolume("db"));
}

TEST_F(ProgramTest, OnATerminalCreateShowsProgressAndCtrlCLeavesItGoing) {
  const UniqueFd terminal(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal.valid() && grantpt(terminal.get()) == 0 && unlockpt(terminal.get()) == 0);
  char name[64];
  ASSERT_EQ(ptsname_r(terminal.get(), name, sizeof name), 0);
  // Kept open, so that what was written can be read after the program's end.
  const UniqueFd other_end(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  const pid_t pid = Start({"volume", "create", "slow", "--size", "1G"}, {}, name);
  std::string shown;
  bool interrupted = false, ended = false;
  const absl::Time give_up = absl::Now() + absl::Seconds(20);
  while (!ended && absl::Now() < give_up) {
    pollfd ready{terminal.get(), POLLIN, 0};
    char chunk[4096];
    if (poll(&ready, 1, 1000) == 1) {
      const ssize_t got = read(terminal.get(), chunk, sizeof chunk);
      if (got > 0) shown.append(chunk, static_cast<size_t>(got));
    }
    if (!interrupted && shown.find(" left") != std::string::npos) {
      kill(pid, SIGINT);
      interrupted = true;
    }
    ended = shown.find("stopped waiting") != std::string::npos;
  }
  if (!ended) kill(pid, SIGKILL);
  EXPECT_EQ(Wait(pid), 1);
  EXPECT_THAT(shown, ContainsRegex("zeroing lab/slow: [0-9]+% .[0-9.KMG]+ of 1G., about .* left"));
  EXPECT_THAT(shown,
              HasSubstr("the site goes on preparing lab/slow: see 'braid volume show slow'"));
  EXPECT_TRUE(site_->HasVolume("slow"));
}

TEST_F(ProgramTest, DevicePathsAreMadeAbsolute) {
  EXPECT_EQ(Run({"device", "add", "disk.img", "--class", "ssd"}).status, 0);
  EXPECT_EQ(site_->last_add().path(), std::filesystem::current_path().string() + "/disk.img");
}

TEST_F(ProgramTest, TablesShowNoControlCharactersAndNoColour) {
  const Outcome outcome = Run({"device", "list"});
  EXPECT_THAT(outcome.out, HasSubstr("d1    ssd    missing       10G     0         0   10G"));
  EXPECT_THAT(outcome.out, HasSubstr("d1: evil \\x1b]0;title\\x07 text\n"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\033")));
}

TEST_F(ProgramTest, StatusShowsWarningsAndEndsOneWithThem) {
  AddVolumes(30);
  EXPECT_THAT(Run({"status"}).out, HasSubstr("all is well"));
  EXPECT_EQ(Run({"status"}).status, 0);
  site_->AddWarning("volume v3 is degraded");
  v1::Volume bad;
  bad.set_name("zz");
  bad.set_site("lab");
  bad.set_health(v1::VOLUME_HEALTH_FAULTY);
  site_->AddVolume(bad);
  for (int i = 0; i < 7; ++i) site_->AddEvent(absl::StrCat("event ", i));
  Outcome outcome = Run({"status"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err, "braid: the site's health is warning; see its warnings\n");
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("health: warning; 1 warning:\n  volume v3 is degraded\n"),
                    HasSubstr("lab/zz"), HasSubstr("and 11 more"), HasSubstr("event 6"),
                    HasSubstr("event 2"), Not(HasSubstr("event 1"))));
  outcome = Run({"status", "--json"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.out, HasSubstr("SITE_HEALTH_WARNING"));
}

TEST_F(ProgramTest, PoolsAreOneTableAndTheirCheckAnExitStatus) {
  EXPECT_THAT(Run({"pool", "list"}).out,
              ContainsRegex("ssd +1 +10G +7G +1G +2G +- +40G +4\\.50 +-1\\.5M/s +2h 0m +low\n"));
  Outcome outcome = Run({"pool", "check"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.out, HasSubstr("walked 1 device, 0 volumes, 7 runs of maps and 0 grants\n"));
  site_->AddFinding("unit 5 of d1 has two owners");
  outcome = Run({"pool", "check"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.out, HasSubstr("unit 5 of d1 has two owners\n"));
  EXPECT_THAT(outcome.err, AllOf(IsOneReason(), HasSubstr("(1 finding); ")));
  EXPECT_EQ(Run({"pool", "check", "--json"}).status, 1);
}

TEST_F(ProgramTest, ThinVolumesAreAskedForAndShown) {
  Outcome outcome = Run({"volume", "create", "lake", "--size", "64T", "--thin", "--reserve", "1M",
                         "--on-full", "wait", "--full-timeout", "30"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, StartsWith("created volume lab/lake: 64T, linear, thin; takes space as "
                                      "it is written, 1M of it set aside\n"));
  const v1::CreateVolumeRequest asked = site_->last_create();
  EXPECT_TRUE(asked.thin());
  EXPECT_EQ(asked.reserve_bytes(), 1U << 20);
  EXPECT_EQ(asked.on_full(), v1::ON_FULL_WAIT);
  EXPECT_EQ(asked.full_timeout_seconds(), 30U);
  outcome = Run({"volume", "show", "lake"});
  EXPECT_THAT(outcome.out, HasSubstr("first writes wait up to 30s for space, then fail"));
  EXPECT_THAT(outcome.out, HasSubstr("mapped      0 of 64T has space"));
  EXPECT_THAT(Run({"volume", "list"}).out, HasSubstr("thin"));
  EXPECT_THAT(Run({"explain", "lake"}).out, HasSubstr("It is thin"));
}

TEST_F(ProgramTest, ResizeSaysFromWhereToWhereAndRefusesToCutData) {
  AddVolumes(1);
  Outcome outcome = Run({"volume", "resize", "v0", "--size", "20G", "--dry-run"});
  EXPECT_EQ(outcome.out, "volume lab/v0 would be resized from 10G to 20G; nothing was changed\n");
  outcome = Run({"volume", "resize", "v0", "--size", "20G"});
  EXPECT_THAT(outcome.out, StartsWith("resized volume lab/v0 from 10G to 20G; "));
  EXPECT_EQ(site_->last_resize().name(), "uuid-0");  // not one that took its name since
  outcome = Run({"volume", "resize", "v0", "--size", "1G"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(IsOneReason(), HasSubstr("would cut off")));
  EXPECT_EQ(Run({"volume", "resize", "v0", "--size", "1G", "--force"}).status, 0);
  EXPECT_TRUE(site_->last_resize().allow_data_loss());
}

TEST_F(ProgramTest, ReclaimTellsWhatItFoundAndGaveBack) {
  v1::Volume volume;
  volume.set_id("uuid-t");
  volume.set_name("t");
  volume.set_site("lab");
  volume.set_thin(true);
  volume.mutable_attachment()->set_held(true);
  volume.mutable_attachment()->set_alive(true);
  site_->AddVolume(volume);
  Outcome outcome = Run({"volume", "reclaim", "t"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(outcome.out,
            "reclaimed volume lab/t: 1.5G given back, of 2G that the file system does not use\n"
            "  looked at ext4 (1234), 100 block groups (40 not changed since the last time)\n"
            "  512M was written or freed too recently to be sure; try again in a minute\n");
  outcome = Run({"volume", "reclaim", "t", "--dry-run"});
  EXPECT_THAT(outcome.out, HasSubstr("2G has space and is not used by the file system; nothing "
                                     "was changed\n"));
  EXPECT_TRUE(site_->last_reclaim().dry_run());
  const auto json = RunJson({"volume", "reclaim", "t", "--json"});
  EXPECT_EQ(json.fields().at("report").struct_value().fields().at("released_bytes").string_value(),
            "1610612736");
  volume.set_name("xfs");
  volume.set_id("uuid-x");
  site_->AddVolume(volume);
  outcome = Run({"volume", "reclaim", "xfs"});
  EXPECT_EQ(outcome.err, "braid: no ext4 file system in it; use fstrim\n");
  EXPECT_EQ(outcome.status, 1);
}

TEST_F(ProgramTest, ReclaimOfADetachedVolumeAttachesItForTheTime) {
  v1::Volume volume;
  volume.set_id("uuid-t");
  volume.set_name("t");
  volume.set_site("lab");
  volume.set_thin(true);
  site_->AddVolume(volume);
  Outcome outcome = Run({"volume", "reclaim", "t"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("1.5G given back"));
  EXPECT_EQ(Run({"attach", "--list"}).out, "nothing is attached on this machine\n");
  // Whatever comes of it.
  volume.set_name("xfs");
  volume.set_id("uuid-x");
  site_->AddVolume(volume);
  outcome = Run({"volume", "reclaim", "xfs"});
  EXPECT_EQ(outcome.err, "braid: no ext4 file system in it; use fstrim\n");
  EXPECT_EQ(Run({"attach", "--list"}).out, "nothing is attached on this machine\n");
  outcome = Run({"volume", "reclaim", "t"}, {"FAKE_ATTACH=error"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("cannot be attached for the time"), HasSubstr("n7")));
}

TEST_F(ProgramTest, InterruptedReclaimDetachesWhatItAttached) {
  v1::Volume volume;
  volume.set_id("uuid-s");
  volume.set_name("slow");
  volume.set_site("lab");
  volume.set_thin(true);
  volume.set_state(v1::VOLUME_STATE_READY);
  site_->AddVolume(volume);
  const pid_t pid = Start({"volume", "reclaim", "slow"}, {}, ErrPath());
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  while (site_->last_reclaim().name().empty() && absl::Now() < give_up) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  kill(pid, SIGINT);
  EXPECT_EQ(Wait(pid), 1);
  EXPECT_THAT(Slurp(ErrPath()), HasSubstr("braid: stopped; "));
  EXPECT_EQ(Run({"attach", "--list"}).out, "nothing is attached on this machine\n");
}

TEST_F(ProgramTest, CompletionAsksTheSiteAndIsQuietWithoutOne) {
  AddVolumes(3);
  EXPECT_EQ(Run({"complete-words", "volume", "show", ""}).out, "v0\nv1\nv2\n");
  const Outcome outcome =
      Run({"complete-words", "volume", "show", ""}, {"BRAID_CONTROL=unix:/nonexistent"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out + outcome.err, "");
}

TEST_F(ProgramTest, AFullDiskUnderTheOutputIsAFailure) {
  EXPECT_EQ(std::system((program + " help > /dev/full 2> " + directory_ + "/err").c_str()) >> 8, 1);
  EXPECT_THAT(Slurp(directory_ + "/err"), IsOneReason());
}

TEST_F(ProgramTest, AttachesOnceListsAndDetaches) {
  AddVolumes(2);
  EXPECT_EQ(Run({"attach", "--list"}).out, "nothing is attached on this machine\n");
  Outcome outcome = Run({"attach", "v0", "--socket", "/s/v0", "--threads", "2"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "nbd+unix:///?socket=/s/v0\n");

  outcome = Run({"attach", "lab/v0", "--via", "socket"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, IsOneReason());
  EXPECT_THAT(outcome.err, HasSubstr("lab/v0 is already attached at nbd+unix:///?socket=/s/v0"));

  const auto list = RunJson({"attach", "--list", "--json"});
  const auto& attachment =
      list.fields().at("attachments").list_value().values(0).struct_value().fields();
  EXPECT_EQ(attachment.at("volume").string_value(), "lab/v0");
  EXPECT_EQ(attachment.at("restarts").string_value(), "3");
  EXPECT_EQ(attachment.at("last_error").string_value(), "");

  outcome = Run({"detach", "v1"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("v1 is not attached on this machine"));
  outcome = Run({"detach", "v0"});
  EXPECT_EQ(outcome.out, "detached lab/v0\n");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(Run({"detach", "v0"}).status, 1);
}

TEST_F(ProgramTest, DetachOfAVolumeInUseIsRefused) {
  AddVolumes(1);
  ASSERT_EQ(Run({"attach", "v0", "--via", "socket", "--read-only"}).status, 0);
  const Outcome outcome = Run({"detach", "v0"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err, "braid: /fake/path is mounted; unmount it, or use --force\n");
  EXPECT_EQ(Run({"detach", "v0", "--force"}).status, 0);
}

TEST_F(ProgramTest, DetachWithoutTheSiteNeedsForceAsItCountsAsUnclean) {
  AddVolumes(1);
  ASSERT_EQ(Run({"attach", "v0", "--via", "socket"}).status, 0);
  const std::vector<std::string> environment = {"BRAID_CONTROL=" + site_->control()};
  site_.reset();
  EXPECT_THAT(Run({"attach", "--list"}, environment).out, HasSubstr("lab/v0"));
  Outcome outcome = Run({"detach", "v0"}, environment);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(IsOneReason(), HasSubstr("; start braidd first, or")));
  EXPECT_THAT(Run({"attach", "--list"}, environment).out, HasSubstr("lab/v0"));
  outcome = Run({"detach", "lab/v0", "--force"}, environment);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  outcome = Run({"detach", "v0"}, environment);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("no volume v0 is attached"), HasSubstr("start braidd")));
}

TEST_F(ProgramTest, AnAttachmentThatFailsSaysWhy) {
  AddVolumes(1);
  const std::vector<std::string> words = {"attach", "v0", "--via", "socket", "--timeout", "1"};
  const auto expect = [&](const std::string& mode, const std::string& message) {
    const Outcome outcome = Run(words, {"FAKE_ATTACH=" + mode});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, IsOneReason());
    EXPECT_THAT(outcome.err, HasSubstr(message));
  };
  expect("error", "braid: the volume is held by node n7\n");
  expect("die", "ended without a report (exit status 1): fake: cannot go on\n");
  expect("hang", "was not ready within 1s; ");
}

}  // namespace
}  // namespace braid::cli

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 3) {
    fprintf(stderr, "usage: %s BRAID FAKE-ATTACH\n", argv[0]);
    return 2;
  }
  braid::cli::program = argv[1];
  braid::cli::attach_program = argv[2];
  return RUN_ALL_TESTS();
}
