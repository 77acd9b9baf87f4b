// What is pure in braid-attach; the rest is attach_test.py's.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/attach/event_loop.h"
#include "tools/attach/handshake.h"
#include "tools/attach/log.h"
#include "tools/attach/options.h"
#include "tools/attach/report.h"
#include "tools/attach/restart_policy.h"
#include "tools/attach/threads.h"
#include "tools/attach/usage.h"

namespace braid::attach {
namespace {

using ::testing::HasSubstr;

// ---- Handshake

std::string Number(uint64_t value, int bytes) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  return out;
}
std::string Greeting(uint16_t flags = 3) { return "NBDMAGICIHAVEOPT" + Number(flags, 2); }
std::string Reply(uint32_t type, const std::string& body) {
  return Number(0x0003e889045565a9, 8) + Number(7, 4) + Number(type, 4) + Number(body.size(), 4) +
         body;
}
std::string ExportReply(uint64_t size, uint16_t flags) {
  return Reply(3, Number(0, 2) + Number(size, 8) + Number(flags, 2));
}
std::string BlockReply(uint32_t minimum) {
  return Reply(3, Number(3, 2) + Number(minimum, 4) + Number(4096, 4) + Number(1 << 25, 4));
}

// Gives `bytes` as the handshake wants them, at most `step` at once; what is left over in *rest.
absl::Status Feed(Handshake* handshake, absl::string_view bytes, size_t step,
                  size_t* rest = nullptr) {
  while (!bytes.empty() && !handshake->done()) {
    const size_t take = std::min({bytes.size(), step, handshake->wanted_bytes()});
    absl::Status status = handshake->Take(bytes.substr(0, take));
    if (!status.ok()) return status;
    bytes.remove_prefix(take);
  }
  if (rest != nullptr) *rest = bytes.size();
  return absl::OkStatus();
}

TEST(HandshakeTest, LearnsTheExportHoweverTheBytesAreCut) {
  const std::string bytes =
      Greeting() + ExportReply(1 << 30, 0x105) + BlockReply(512) + Reply(1, "");
  for (const size_t step : {1, 2, 7, 1000}) {
    Handshake handshake;
    ASSERT_TRUE(Feed(&handshake, bytes, step).ok());
    ASSERT_TRUE(handshake.done());
    EXPECT_EQ(handshake.info().size_bytes, 1u << 30);
    EXPECT_EQ(handshake.info().flags, 0x105);
    EXPECT_EQ(handshake.info().minimum_block_bytes, 512u);
    EXPECT_EQ(handshake.TakeOutput(), Number(3, 4) + "IHAVEOPT" + Number(7, 4) + Number(8, 4) +
                                          Number(0, 4) + Number(1, 2) + Number(3, 2));
  }
}

TEST(HandshakeTest, TakesNothingThatBelongsToTheTransmission) {
  Handshake handshake;
  size_t rest = 0;
  ASSERT_TRUE(
      Feed(&handshake, Greeting() + ExportReply(4096, 1) + Reply(1, "") + "tail", 1000, &rest)
          .ok());
  EXPECT_TRUE(handshake.done());
  EXPECT_EQ(rest, 4u);
}

TEST(HandshakeTest, SaysWhatTheServerSaid) {
  Handshake handshake;
  const absl::Status status =
      Feed(&handshake, Greeting() + Reply(0x80000006, "no\nsuch volume"), 1000);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such export: no\\nsuch volume"));
}

TEST(HandshakeTest, RefusesWhatIsNoServer) {
  struct {
    const char* what;
    std::string bytes;
  } const cases[] = {
      {"not NBD", "HTTP/1.1 400 Bad Request"},
      {"oldstyle", "NBDMAGIC" + Number(0x420281861253, 8) + Number(3, 2)},
      {"not fixed newstyle", Greeting(0)},
      {"acknowledged without a size", Greeting() + Reply(1, "")},
      {"reply magic", Greeting() + std::string(20, 'x')},
      {"reply without end", Greeting() + Number(0x0003e889045565a9, 8) + Number(7, 4) +
                                Number(3, 4) + Number(0xffffffff, 4)},
  };
  for (const auto& c : cases) {
    Handshake handshake;
    EXPECT_FALSE(Feed(&handshake, c.bytes, 1000).ok()) << c.what;
    EXPECT_FALSE(handshake.done()) << c.what;
  }
  Handshake handshake;
  std::string endless = Greeting();
  for (int i = 0; i < 1000; ++i) endless += BlockReply(1);
  EXPECT_FALSE(Feed(&handshake, endless, 1000).ok());
}

TEST(HandshakeTest, AnyBytesEndInAnAnswer) {
  const char* given = getenv("BRAID_SEED");
  const uint64_t seed = given != nullptr ? strtoull(given, nullptr, 10) : std::random_device{}();
  RecordProperty("seed", absl::StrCat(seed));
  SCOPED_TRACE(absl::StrCat("BRAID_SEED=", seed));
  std::mt19937_64 random(seed);
  const std::string good = Greeting() + ExportReply(1 << 20, 1) + BlockReply(1) + Reply(1, "");
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = good;
    for (uint64_t flips = random() % 4; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    bytes.resize(random() % (bytes.size() + 1));
    Handshake handshake;
    const bool ok = Feed(&handshake, bytes, 1 + random() % 40).ok();
    if (ok && !handshake.done()) {
      EXPECT_GT(handshake.wanted_bytes(), 0u);
    }
    if (bytes == good) {
      EXPECT_TRUE(ok && handshake.done());
    }
  }
}

// ---- Report

TEST(ReportTest, JsonStringIsValidForAnyBytes) {
  EXPECT_EQ(JsonString("plain"), "\"plain\"");
  EXPECT_EQ(JsonString("a\"b\\c\n\x01"), "\"a\\\"b\\\\c\\u000a\\u0001\"");
  EXPECT_EQ(JsonString("Zürich €"), "\"Zürich €\"");
  // Stray, cut, overlong, surrogate, too large: one replacement for each bad byte.
  EXPECT_EQ(JsonString("\xff"), "\"\\ufffd\"");
  EXPECT_EQ(JsonString("x\xc3"), "\"x\\ufffd\"");
  EXPECT_EQ(JsonString("\xc0\xaf"), "\"\\ufffd\\ufffd\"");
  EXPECT_EQ(JsonString("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");
  EXPECT_EQ(JsonString("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");
}

TEST(ReportTest, ReportIsProtobufJson) {
  Report report;
  report.volume = "here/v\"1";
  report.via = "nbd";
  report.path = "/dev/nbd0";
  report.pid = 12;
  report.restarts = 18446744073709551615u;
  report.since_unix_seconds = -1;
  report.read_only = true;
  EXPECT_EQ(ToJson(report),
            "{\"volume\":\"here/v\\\"1\",\"volume_id\":\"\",\"via\":\"nbd\",\"uri\":\"\","
            "\"path\":\"/dev/nbd0\",\"pid\":\"12\",\"server_pid\":\"0\","
            "\"restarts\":\"18446744073709551615\",\"since_unix_seconds\":\"-1\","
            "\"read_only\":true,\"last_error\":\"\"}");
}

TEST(ReportTest, ErrorIsOneLine) { EXPECT_EQ(ErrorJson("one\ntwo"), "{\"error\":\"one two\"}"); }

TEST(ReportTest, UriEncodesWhatUrisDoNotHave) {
  EXPECT_EQ(SocketUri("/run/braid/a-b_c.~1"), "nbd+unix:///?socket=/run/braid/a-b_c.~1");
  EXPECT_EQ(SocketUri("/a b&c=%#\xc3"), "nbd+unix:///?socket=/a%20b%26c%3D%25%23%C3");
}

// ---- Choices

TEST(RestartPolicyTest, FirstAtOnceThenPatientThenAtOnceAgainAfterSettling) {
  RestartPolicy policy;
  const absl::Duration brief = absl::Milliseconds(3);
  std::vector<int64_t> delays(10);
  for (int64_t& delay : delays) delay = absl::ToInt64Milliseconds(policy.NextDelay(brief));
  EXPECT_THAT(delays, testing::ElementsAre(0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000));
  EXPECT_EQ(policy.NextDelay(RestartPolicy::kSettled), absl::ZeroDuration());
  EXPECT_EQ(policy.NextDelay(brief), RestartPolicy::kFirst);
}

TEST(OptionsTest, ThinVolumesThatAreWrittenGetAThreadForEachRequestThatMayBeHeld) {
  const auto threads = [](std::vector<std::string> more) {
    std::vector<std::string> words = {
        "braid-attach", "serve",       "--volume",
        "s/v",          "--volume-id", "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "--control",    "unix:/c",     "--dir",
        "/d",           "--via",       "socket"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    argv.reserve(words.size() + 1);
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const auto options = ParseOptions(static_cast<int>(words.size()), argv.data());
    EXPECT_TRUE(options.ok()) << options.status();
    return options.ok() ? options->threads : 0;
  };
  EXPECT_EQ(threads({}), 16);
  EXPECT_EQ(threads({"--thin"}), kMaxThreads);
  EXPECT_EQ(threads({"--thin", "--read-only"}), 16);
  EXPECT_EQ(threads({"--thin", "--threads", "4"}), 4);
}

TEST(ThreadsTest, EnoughForAFlushBesideReadsAndForEverythingWhereAllMayWait) {
  EXPECT_EQ(ChooseThreads(DeviceKind::kPageCache, 1), 16);
  EXPECT_EQ(ChooseThreads(DeviceKind::kPageCache, 2), 8);
  EXPECT_EQ(ChooseThreads(DeviceKind::kPageCache, kMaxConnections), 4);
  EXPECT_EQ(ChooseThreads(DeviceKind::kPageCache, 0), 16);
  for (const int connections : {1, 2, 16}) {
    EXPECT_EQ(ChooseThreads(DeviceKind::kSlow, connections), 128);
  }
  EXPECT_EQ(ChooseConnections(0), 1);  // unknown
  EXPECT_EQ(ChooseConnections(2), 2);
  EXPECT_EQ(ChooseConnections(64), 4);
}

TEST(UsageTest, MountPathsAreDecoded) {
  EXPECT_EQ(DecodeMountPath("/mnt/a\\040b\\134\\011"), "/mnt/a b\\\t");
  EXPECT_EQ(DecodeMountPath("/x\\"), "/x\\");
  EXPECT_EQ(DecodeMountPath("/x\\04"), "/x\\04");
  EXPECT_EQ(DecodeMountPath("/x\\999"), "/x\\999");
}

// ---- Log

TEST(LogTest, KeepsTwoBoundedFilesOfCleanLines) {
  char folder[] = "/tmp/braid-log-test.XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string path = absl::StrCat(folder, "/log");
  Log log;
  ASSERT_TRUE(log.Open(path).ok());
  for (int i = 0; i < 2000; ++i) log.Line("test", std::string(5000, 'x') + "\n\x1b");
  struct stat info {};
  for (const std::string& file : {path, path + ".old"}) {
    ASSERT_EQ(stat(file.c_str(), &info), 0);
    EXPECT_LE(static_cast<uint64_t>(info.st_size), Log::kMaxBytes);
    EXPECT_GT(info.st_size, 0);
    unlink(file.c_str());
  }
  rmdir(folder);
}

// ---- Event loop

TEST(EventLoopTest, TimersFireInOrderOfTheirTimeAndCancelledOnesDoNot) {
  EventLoop loop;
  std::string order;
  loop.After(absl::Milliseconds(20), [&] {
    order += "c";
    loop.Stop();
  });
  loop.After(absl::Milliseconds(1), [&] { order += "a"; });
  const EventLoop::TimerId late = loop.After(absl::Milliseconds(5), [&] { order += "x"; });
  loop.After(absl::Milliseconds(2), [&] {
    order += "b";
    loop.Cancel(late);
  });
  loop.Run();
  EXPECT_EQ(order, "abc");
}

TEST(EventLoopTest, AWatchOnAReusedDescriptorDoesNotHearItsPredecessorsEvent) {
  EventLoop loop;
  int first[2];
  int second[2];
  ASSERT_EQ(pipe(first), 0);
  ASSERT_EQ(pipe(second), 0);
  int wrong = 0;
  for (const int writer : {first[1], second[1]}) ASSERT_EQ(write(writer, "x", 1), 1);
  // Both are ready in the same round; whichever comes first replaces the other's watch.
  const auto replace = [&](int mine, int other) {
    return [&, mine, other](short) {
      loop.Unwatch(mine);
      char c = 0;
      ASSERT_EQ(read(other, &c, 1), 1);  // so that the new watch has nothing to hear
      loop.Watch(other, POLLIN, [&](short) { ++wrong; });
      loop.After(absl::Milliseconds(10), [&] { loop.Stop(); });
    };
  };
  loop.Watch(first[0], POLLIN, replace(first[0], second[0]));
  loop.Watch(second[0], POLLIN, replace(second[0], first[0]));
  loop.Run();
  EXPECT_EQ(wrong, 0);
  for (const int fd : {first[0], first[1], second[0], second[1]}) close(fd);
}

}  // namespace
}  // namespace braid::attach
