// The parts of `braid` that need no site.
#include <cstdlib>
#include <limits>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "tools/cli/commands.h"
#include "tools/cli/completion.h"
#include "tools/cli/explain.h"
#include "tools/cli/help.h"
#include "tools/cli/json.h"
#include "tools/cli/local_attach.h"
#include "tools/cli/table.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST(Printable, LeavesTextAndEscapesWhatMovesTheCursor) {
  EXPECT_EQ(Printable("db-1 größe 量"), "db-1 größe 量");
  EXPECT_EQ(Printable("a\033[2Jb\r\n\tc\x7f"), "a\\x1b[2Jb\\x0d\\n\\tc\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"), "\\xc2\\x9b");           // C1: control sequence introducer
  EXPECT_EQ(Printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // right-to-left override
  EXPECT_EQ(Printable("\xff\xc0\x80\xed\xa0\x80\xc3"), "\\xff\\xc0\\x80\\xed\\xa0\\x80\\xc3");
}

TEST(Words, AreReadOffTheEnumerators) {
  EXPECT_EQ(Word(v1::LAYOUT_STRIPED_MIRRORS), "striped-mirrors");
  EXPECT_EQ(Word(static_cast<v1::Layout>(77)), "unknown (77)");
  EXPECT_THAT(LayoutWords(), ElementsAre("linear", "striped", "mirrored", "striped-mirrors"));
  for (const std::string& word : LayoutWords()) EXPECT_EQ(Word(*LayoutFromWord(word)), word);
  EXPECT_FALSE(LayoutFromWord("unspecified").has_value());
}

TEST(Durations, HaveTwoUnitsAtMost) {
  EXPECT_EQ(FormatDuration(-3), "0s");
  EXPECT_EQ(FormatDuration(59), "59s");
  EXPECT_EQ(FormatDuration(3600 + 120), "1h 2m");
  EXPECT_EQ(FormatDuration(int64_t{49} * 3600), "2d 1h");
}

TEST(Rates, HaveASignAndABound) {
  EXPECT_EQ(FormatRate(0), "0");
  EXPECT_EQ(FormatRate(0.9), "0");
  EXPECT_EQ(FormatRate(-65536), "-64K/s");
  EXPECT_EQ(FormatRate(1.5 * (1 << 20)), "+1.5M/s");
  EXPECT_EQ(FormatRate(std::numeric_limits<double>::infinity()), "+1E/s");
  EXPECT_EQ(FormatRate(std::numeric_limits<double>::quiet_NaN()), "0");
}

TEST(Offsets, AreNotRounded) {
  EXPECT_EQ(ExactSize(0), "0");
  EXPECT_EQ(ExactSize(513), "513");
  EXPECT_EQ(ExactSize(1028ULL << 20), "1028M");
  EXPECT_EQ(ExactSize(1ULL << 63), "8E");
}

TEST(Wrapping, BreaksBetweenWordsAndKeepsLongOnes) {
  const std::string word(50, 'x');
  EXPECT_EQ(Wrapped("  --a", word + " " + word, 8), "  --a   " + word + "\n        " + word + "\n");
  EXPECT_EQ(Wrapped("  --abcdef", "b", 8), "  --abcdef\n        b\n");
  EXPECT_EQ(Wrapped("", std::string(200, 'y'), 0), std::string(200, 'y') + "\n");
}

TEST(PercentDone, IsHundredOnlyAtTheEnd) {
  EXPECT_EQ(Percent(0, 10), 0);
  EXPECT_EQ(Percent(999, 1000), 99);
  EXPECT_EQ(Percent(0, 0), 100);
  EXPECT_EQ(Percent(UINT64_MAX - 1, UINT64_MAX), 99);
}

TEST(TableText, AlignsByWhatIsSeenAndEndsWithoutBlanks) {
  Table table({{"NAME"}, {"SIZE", Align::kRight}, {"NOTE"}});
  table.AddRow({"größe", "10G", ""});
  table.AddRow({"b", "512", {"stale", Tone::kAlarm}});
  EXPECT_EQ(table.ToString(/*color=*/false),
            "NAME   SIZE  NOTE\n"
            "größe   10G  -\n"
            "b       512  stale\n");
  EXPECT_THAT(table.ToString(/*color=*/true), HasSubstr("512  \033[31mstale\033[0m\n"));
}

google::protobuf::Struct Parse(const std::string& json) {
  google::protobuf::Struct object;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(json, &object).ok()) << json;
  return object;
}

TEST(JsonText, HasProtoNamesAndEmptyFields) {
  v1::Volume volume;
  volume.set_size_bytes(uint64_t{1} << 62);
  const auto object = Parse(Json(volume));
  EXPECT_EQ(object.fields().at("size_bytes").string_value(), "4611686018427387904");
  EXPECT_EQ(object.fields().at("fault").string_value(), "");
  EXPECT_EQ(object.fields().at("devices").list_value().values_size(), 0);
  EXPECT_EQ(object.fields().at("state").string_value(), "VOLUME_STATE_UNSPECIFIED");
}

TEST(JsonText, ListsAreOneObjectWithOneArray) {
  EXPECT_EQ(JsonList("volumes", std::vector<v1::Volume>{}), "{\"volumes\": []}\n");
  std::vector<v1::Volume> volumes(2);
  volumes[1].set_name("b\n\"\033");
  const auto object = Parse(JsonList("volumes", volumes));
  ASSERT_EQ(object.fields_size(), 1);
  const auto& list = object.fields().at("volumes").list_value();
  ASSERT_EQ(list.values_size(), 2);
  EXPECT_EQ(list.values(1).struct_value().fields().at("name").string_value(), "b\n\"\033");
}

TEST(JsonText, MergesObjects) {
  v1::GetSiteResponse site;
  site.mutable_site()->set_name("lab");
  const auto object =
      Parse(MergeJson({Json(site), JsonList("pools", std::vector<v1::Pool>(1)), "{}"}));
  EXPECT_EQ(object.fields_size(), 5);  // site, warnings, events, health, pools
  EXPECT_EQ(object.fields().at("pools").list_value().values_size(), 1);
}

class TreeTest : public ::testing::Test {
 protected:
  std::vector<std::string> CompleteWords(const std::vector<std::string>& words) {
    return Complete(*root_, words, [this](const std::string& type, const std::string& control) {
      asked_control_ = control;
      if (type == "VOLUME") return std::vector<std::string>{"db", "dump", "lab/db", "web"};
      if (type == "DEVICE") return std::vector<std::string>{"d1"};
      return std::vector<std::string>{"ssd", "ssd"};
    });
  }

  std::ostringstream out_, err_;
  Context context_{out_, err_};
  std::unique_ptr<CLI::App> root_ = BuildCommandTree(context_);
  std::string asked_control_;
};

TEST_F(TreeTest, CompletesNounsVerbsOptionsAndValues) {
  EXPECT_THAT(CompleteWords({"vol"}), ElementsAre("volume"));
  EXPECT_THAT(CompleteWords({"volume", ""}),
              ElementsAre("create", "delete", "list", "map", "reclaim", "resize", "show"));
  EXPECT_THAT(CompleteWords({"volume", "create", "x", "--s"}),
              ElementsAre("--size", "--stripe-size", "--stripes"));
  EXPECT_THAT(CompleteWords({"volume", "list", "--js"}), ElementsAre("--json"));
  EXPECT_THAT(CompleteWords({"volume", "create", "--layout", "str"}),
              ElementsAre("striped", "striped-mirrors"));
  EXPECT_THAT(CompleteWords({"pool", ""}), ElementsAre("check", "list"));
  EXPECT_THAT(CompleteWords({"volume", "create", "--on-full", ""}), ElementsAre("fail", "wait"));
  EXPECT_THAT(CompleteWords({"volume", "create", "--layout=m"}), ElementsAre("--layout=mirrored"));
  EXPECT_THAT(CompleteWords({"completion", ""}), ElementsAre("bash", "fish", "zsh"));
  EXPECT_THAT(CompleteWords({"help", "volume", "s"}), ElementsAre("show"));
  EXPECT_THAT(CompleteWords({"device", "add", ""}), ElementsAre(":files"));
  EXPECT_THAT(CompleteWords({"nothing", "of", ""}), Not(IsEmpty()));  // still at the root
  EXPECT_THAT(CompleteWords({"volume", "show", "db", ""}), IsEmpty());
  EXPECT_THAT(CompleteWords({}), Not(IsEmpty()));
}

TEST_F(TreeTest, CompletesNamesOfTheSiteThatTheLineNames) {
  EXPECT_THAT(CompleteWords({"--control", "unix:/x", "--json", "volume", "show", "d"}),
              ElementsAre("db", "dump"));
  EXPECT_EQ(asked_control_, "unix:/x");
  EXPECT_THAT(CompleteWords({"volume", "show", "lab/"}), ElementsAre("lab/db"));
  EXPECT_THAT(CompleteWords({"volume", "show", "l"}), IsEmpty());
  EXPECT_THAT(CompleteWords({"--control=h:1", "device", "remove", "--dry-run", ""}),
              ElementsAre("d1"));
  EXPECT_EQ(asked_control_, "h:1");
  EXPECT_THAT(CompleteWords({"volume", "create", "--class", ""}), ElementsAre("ssd"));
  EXPECT_THAT(CompleteWords({"explain", "--", "d"}), ElementsAre("db", "dump"));
}

// Of each command, depth first.
void ForEachCommand(const CLI::App& app, const std::function<void(const CLI::App&)>& visit) {
  for (const CLI::App* command : app.get_subcommands({})) {
    if (command->get_subcommands({}).empty()) visit(*command);
    ForEachCommand(*command, visit);
  }
}

TEST_F(TreeTest, EveryCommandTeaches) {
  const std::string man = ManualPage(*root_);
  int count = 0;
  ForEachCommand(*root_, [&](const CLI::App& command) {
    ++count;
    const std::string help = command.help();
    SCOPED_TRACE(help);
    EXPECT_THAT(help, HasSubstr("Usage: " + CommandPath(command)));
    EXPECT_THAT(help, HasSubstr("Examples:\n"));
    EXPECT_THAT(command.get_footer(), HasSubstr(CommandPath(command)));
    EXPECT_THAT(help, HasSubstr("Exit status:\n"));
    EXPECT_TRUE(absl::EndsWith(command.get_description(), "."));
    EXPECT_THAT(man, HasSubstr(".SS " + CommandPath(command)));
    for (const CLI::Option* option : command.get_options({})) {
      EXPECT_FALSE(option->get_description().empty()) << option->get_name();
    }
    for (const absl::string_view line : absl::StrSplit(help, '\n')) {
      EXPECT_LE(line.size(), 92U) << line;
    }
  });
  EXPECT_GE(count, 19);
}

TEST_F(TreeTest, ScriptsExistForEachShell) {
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    EXPECT_THAT(CompletionScript(shell), HasSubstr(kCompleteCommand));
    EXPECT_THAT(CompletionScript(shell), HasSubstr(kCompleteFiles));
  }
  EXPECT_EQ(CompletionScript("tcsh"), "");
}

TEST(Via, AutoTakesTheBestAndSaysWhy) {
  Machine machine;
  machine.nbd_problem = "no nbd";
  machine.fuse_problem = "no fuse";
  EXPECT_EQ(ChooseVia("auto", machine)->via, "socket");
  EXPECT_EQ(ChooseVia("auto", machine)->reason, "no nbd, and no fuse");
  EXPECT_THAT(std::string(ChooseVia("fuse", machine).status().message()), HasSubstr("no fuse; "));
  EXPECT_THAT(std::string(ChooseVia("nbd", machine).status().message()), HasSubstr("no nbd; "));
  EXPECT_EQ(ChooseVia("socket", machine)->via, "socket");
  machine.fuse = true;
  EXPECT_EQ(ChooseVia("auto", machine)->via, "fuse");
  EXPECT_EQ(ChooseVia("auto", machine)->reason, "no nbd");
  machine.nbd = true;
  EXPECT_EQ(ChooseVia("auto", machine)->via, "nbd");
}

TEST(Address, IsUnixPathHostAndPortOrDns) {
  EXPECT_EQ(ControlAddress::Parse("unix:/a/b")->unix_path, "/a/b");
  EXPECT_EQ(ControlAddress::Parse("unix:///a/b")->text, "unix:/a/b");
  EXPECT_EQ(ControlAddress::Parse("unix:b")->unix_path[0], '/');
  EXPECT_EQ(ControlAddress::Parse("localhost:7400")->text, "localhost:7400");
  EXPECT_EQ(ControlAddress::Parse("[::1]:7400")->text, "[::1]:7400");
  EXPECT_EQ(ControlAddress::Parse("dns:///a.example:1")->text, "dns:///a.example:1");
  for (const char* bad : {"", "unix:", "/run/x", "host", "host:", ":1", "dns:", "a/b:1"}) {
    EXPECT_FALSE(ControlAddress::Parse(bad).ok()) << bad;
  }
}

// Line breaks are where they fit; the words are what matters.
std::string Unwrapped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"\n  ", " "}, {"\n", " "}});
}

v1::Volume Mirrored() {
  v1::Volume volume;
  volume.set_name("db");
  volume.set_site("lab");
  volume.set_size_bytes(8 << 20);
  volume.set_layout(v1::LAYOUT_MIRRORED);
  volume.set_stripes(1);
  volume.set_copies(2);
  volume.set_state(v1::VOLUME_STATE_READY);
  volume.set_health(v1::VOLUME_HEALTH_GOOD);
  volume.set_allocated_bytes(16 << 20);
  return volume;
}

std::vector<v1::MapRow> TwoCopies() {
  std::vector<v1::MapRow> rows(2);
  for (uint32_t leg = 0; leg < 2; ++leg) {
    rows[leg].set_leg(leg);
    rows[leg].set_device(leg == 0 ? "d1" : "d2");
    rows[leg].set_length_bytes(8 << 20);
  }
  return rows;
}

TEST(Explain, SaysShapePlacesHealthAndAttachment) {
  const std::string text = Unwrapped(ExplainVolume(Mirrored(), TwoCopies(), {}, {}));
  EXPECT_THAT(text, HasSubstr("Volume lab/db holds 8M. It is mirrored: every byte has 2 copies"));
  EXPECT_THAT(text, HasSubstr("copy 1: 8M on d1 copy 2: 8M on d2 "));
  EXPECT_THAT(text, HasSubstr("health is good. All copies agree. Nothing needs to be done."));
  EXPECT_THAT(text, HasSubstr("It was never attached; 'braid attach db'"));
}

TEST(Explain, SaysWhatAThinVolumeHasAndWhatToDoWhenItsPoolFillsUp) {
  v1::Volume volume = Mirrored();
  volume.set_thin(true);
  volume.set_device_class("ssd");
  volume.set_mapped_bytes(1 << 20);
  volume.set_reserve_bytes(2 << 20);
  volume.set_on_full(v1::ON_FULL_WAIT);
  volume.set_full_timeout_seconds(90);
  v1::ListPoolsResponse pools;
  v1::Pool* other = pools.add_pools();
  other->set_device_class("tape");
  other->set_state(v1::POOL_STATE_FULL);
  v1::Pool* pool = pools.add_pools();
  pool->set_device_class("ssd");
  pool->set_capacity_bytes(100);
  pool->set_allocated_bytes(80);
  pool->set_reserved_bytes(10);
  pool->set_critical_percent(88);
  pool->set_state(v1::POOL_STATE_CRITICAL);
  pool->set_seconds_to_full(60);
  std::string text = Unwrapped(ExplainVolume(volume, TwoCopies(), {}, pools));
  EXPECT_THAT(text, HasSubstr("1M of its 8M has space"));
  EXPECT_THAT(text, HasSubstr("Space for 2M is guaranteed"));
  EXPECT_THAT(text, HasSubstr("first writes wait up to 1m for space, then fail"));
  EXPECT_THAT(text, HasSubstr("pool ssd is 90% taken, past the second threshold of 88%; at the "
                              "rate of the last hour the rest lasts 1m"));
  EXPECT_THAT(text, HasSubstr("What to do: add a device of class ssd"));
  EXPECT_THAT(text, HasSubstr("'braid volume reclaim db' gives back"));
  EXPECT_THAT(text, Not(HasSubstr("tape")));
  pool->set_state(v1::POOL_STATE_FULL);
  volume.mutable_attachment()->set_held(true);
  volume.mutable_attachment()->set_alive(true);
  volume.mutable_attachment()->set_read_only(true);
  text = Unwrapped(ExplainVolume(volume, TwoCopies(), {}, pools));
  EXPECT_THAT(text, HasSubstr("pool ssd is full: a first write found no space"));
  EXPECT_THAT(text, HasSubstr("cannot be reclaimed while it is attached read-only"));
  EXPECT_THAT(ExplainVolume(volume, {}, {}, pools), HasSubstr("takes no device space yet"));
  volume.set_thin(false);
  EXPECT_THAT(ExplainVolume(volume, TwoCopies(), {}, pools), Not(HasSubstr("pool")));
}

TEST(Explain, SaysWhatToDoWhenACopyIsStaleAndItsDeviceMissing) {
  v1::Volume volume = Mirrored();
  volume.set_health(v1::VOLUME_HEALTH_DEGRADED);
  volume.set_stale_bytes(8 << 20);
  volume.mutable_attachment()->set_epoch(1);
  volume.mutable_attachment()->set_held(true);
  std::vector<v1::MapRow> rows = TwoCopies();
  rows[1].set_stale(true);
  v1::ListDevicesResponse devices;
  v1::Device* device = devices.add_devices();
  device->set_name("d2");
  device->set_state(v1::DEVICE_STATE_MISSING);
  device->set_problem("cannot be opened");
  const std::string text = Unwrapped(ExplainVolume(volume, rows, devices, {}));
  EXPECT_THAT(text, HasSubstr("all of it stale"));
  EXPECT_THAT(text, HasSubstr("No data is lost"));
  EXPECT_THAT(text, HasSubstr("device d2 is missing: cannot be opened"));
  EXPECT_THAT(text, HasSubstr("ended without a clean detach"));
  EXPECT_THAT(text, HasSubstr("What to do:"));
}

}  // namespace
}  // namespace braid::cli
