#include "controlplane/server/options.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "controlplane/server/log.h"

namespace braid {
namespace {

TEST(ListenAddress, UnixAndTcpAreUnderstood) {
  auto socket = ParseListenAddress("unix:/run/braid/braidd.sock");
  ASSERT_TRUE(socket.ok());
  EXPECT_TRUE(socket->is_unix);
  EXPECT_EQ(socket->path, "/run/braid/braidd.sock");
  for (const auto& [text, loopback] :
       std::vector<std::pair<const char*, bool>>{{"tcp:127.0.0.1:7411", true},
                                                 {"tcp:127.9.9.9:0", true},
                                                 {"tcp:[::1]:7411", true},
                                                 {"tcp:localhost:7411", true},
                                                 {"tcp:0.0.0.0:7411", false},
                                                 {"tcp:[::]:7411", false},
                                                 {"tcp:127.0.0.1.example:7411", false}}) {
    auto address = ParseListenAddress(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_FALSE(address->is_unix);
    EXPECT_EQ(address->host_port, std::string(text).substr(4));
    EXPECT_EQ(address->is_loopback, loopback) << text;
  }
}

TEST(ListenAddress, NonsenseIsRefused) {
  for (const std::string& text :
       {std::string(""), std::string("/run/sock"), std::string("unix:"), std::string("unix:sock"),
        "unix:/" + std::string(200, 'a'), std::string("tcp:"), std::string("tcp:host"),
        std::string("tcp::1"), std::string("tcp:host:"), std::string("tcp:host:65536"),
        std::string("tcp:host:-1"), std::string("tcp:host:x"), std::string("udp:host:1")}) {
    EXPECT_EQ(ParseListenAddress(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ApplyConfig, SetsWhatNoFlagSaid) {
  DaemonOptions options{.site = "flag"};
  ASSERT_TRUE(ApplyConfig("site: file\nnode: n9\ndata-dir: /d\n"
                          "listen: [unix:/a, tcp:127.0.0.1:1]\n",
                          {"site"}, options)
                  .ok());
  EXPECT_EQ(options.site, "flag");
  EXPECT_EQ(options.node, "n9");
  EXPECT_EQ(options.data_dir, "/d");
  EXPECT_EQ(options.listen, (std::vector<std::string>{"unix:/a", "tcp:127.0.0.1:1"}));
  EXPECT_EQ(options.pool_low_percent, 80u);
  ASSERT_TRUE(ApplyConfig("pool-low-percent: 50\npool-critical-percent: 60",
                          {"pool-critical-percent"}, options)
                  .ok());
  EXPECT_EQ(options.pool_low_percent, 50u);
  EXPECT_EQ(options.pool_critical_percent, 95u);
  ASSERT_TRUE(ApplyConfig("listen: unix:/b", {}, options).ok());
  EXPECT_EQ(options.listen, std::vector<std::string>{"unix:/b"});
  EXPECT_TRUE(ApplyConfig("", {}, options).ok());
}

TEST(ApplyConfig, UnknownOrMalformedIsRefused) {
  for (const char* text :
       {"sight: berlin", "site: [a, b]", "listen: {a: b}", "just words", "- a", "site: 'unclosed",
        "[a]: b", "\x01\xff: x", "pool-low-percent: many", "pool-low-percent: [1]",
        "pool-critical-percent: -1", "test-commit-delay-ms: 5"}) {
    DaemonOptions options;
    EXPECT_EQ(ApplyConfig(text, {}, options).code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ParseOptions, MisuseIsTwoAndHelpIsZero) {
  const auto status = [](std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "braidd");
    const ParsedOptions parsed = ParseOptions(static_cast<int>(arguments.size()), arguments.data());
    return parsed.finished ? parsed.exit_status : -1;
  };
  EXPECT_EQ(status({"--help"}), 0);
  EXPECT_EQ(status({"--version"}), 0);
  EXPECT_EQ(status({"--nonsense"}), 2);
  EXPECT_EQ(status({"--listen", "nowhere"}), 2);
  EXPECT_EQ(status({"--site", "a/b"}), 2);
  EXPECT_EQ(status({"--run-dir", "relative"}), 2);
  EXPECT_EQ(status({"--config", "/nonexistent/braidd.yaml"}), 2);
  EXPECT_EQ(status({"--pool-low-percent", "0"}), 2);
  EXPECT_EQ(status({"--pool-low-percent", "101"}), 2);
  EXPECT_EQ(status({"--pool-low-percent", "-5"}), 2);
  EXPECT_EQ(status({"--pool-critical-percent", "x"}), 2);
  EXPECT_EQ(status({"--pool-low-percent", "60", "--pool-critical-percent", "50"}), 2);
  EXPECT_EQ(status({"--test-commit-delay-ms", "-1"}), 2);
  EXPECT_EQ(status({"--site", "s", "--node", "n", "--listen", "unix:/a", "--listen", "unix:/b"}),
            -1);
}

TEST(Log, NoValueCanForgeALine) {
  const std::string line = FormatLogLine(LogLevel::kInfo, "device added",
                                         {{"path", "a\nlevel=error msg=\"x\""}, {"count", 7}});
  EXPECT_EQ(line,
            "level=info msg=\"device added\" path=\"a\\nlevel=error msg=\\\"x\\\"\" count=7\n");
}

}  // namespace
}  // namespace braid
