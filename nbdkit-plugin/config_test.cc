#include "nbdkit-plugin/config.h"

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace braid {
namespace {

TEST(Config, DefaultsAreFilledIn) {
  PluginConfig config;
  ASSERT_TRUE(SetOption(config, "volume", "v1").ok());
  ASSERT_TRUE(CompleteConfig(config, nullptr).ok());
  EXPECT_EQ(config.control, kDefaultControl);
  EXPECT_EQ(config.target, "unix:/run/braid/braidd.sock");
  EXPECT_EQ(config.control_timeout, absl::Seconds(10));
  EXPECT_FALSE(config.read_only);
}

TEST(Config, CommandLineGoesBeforeEnvironmentBeforeDefault) {
  PluginConfig from_environment;
  ASSERT_TRUE(SetOption(from_environment, "volume", "v").ok());
  ASSERT_TRUE(CompleteConfig(from_environment, "unix:/tmp/e.sock").ok());
  EXPECT_EQ(from_environment.target, "unix:/tmp/e.sock");

  PluginConfig from_command_line;
  ASSERT_TRUE(SetOption(from_command_line, "volume", "v").ok());
  ASSERT_TRUE(SetOption(from_command_line, "control", "unix:/tmp/c.sock").ok());
  ASSERT_TRUE(CompleteConfig(from_command_line, "nonsense").ok());
  EXPECT_EQ(from_command_line.target, "unix:/tmp/c.sock");

  PluginConfig bad_environment;
  ASSERT_TRUE(SetOption(bad_environment, "volume", "v").ok());
  const absl::Status status = CompleteConfig(bad_environment, "nonsense");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "BRAID_CONTROL")) << status;
}

TEST(Config, TargetsAreAbsoluteAndEncoded) {
  const std::string here = std::filesystem::current_path().native();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"unix:/run/x.sock", "unix:/run/x.sock"},
      {"unix:/run/a b%41#?.sock", "unix:/run/a%20b%2541%23%3F.sock"},
      {"unix:/run/\xc3\xa9.sock", "unix:/run/%C3%A9.sock"},
      {"localhost:7070", "dns:///localhost:7070"},
      {"[::1]:7070", "dns:///[::1]:7070"},
      {"h:65535", "dns:///h:65535"},
  };
  for (const auto& [given, wanted] : cases) {
    const absl::StatusOr<std::string> target = ControlTarget(given);
    ASSERT_TRUE(target.ok()) << given << ": " << target.status();
    EXPECT_EQ(*target, wanted);
  }
  if (here.size() < 90) {
    EXPECT_EQ(*ControlTarget("unix:x.sock"), absl::StrCat("unix:", here, "/x.sock"));
  }
}

TEST(Config, BadValuesAreRefusedWithOneLineThatHelps) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"volume", ""},
      {"volume", "a b"},
      {"volume", "a\nb"},
      {"volume", std::string(128, 'v')},
      {"control", ""},
      {"control", "unix:"},
      {"control", std::string("unix:/a\0b", 9)},
      {"control", "unix:/" + std::string(107, 'p')},
      {"control", "/run/braid/braidd.sock"},
      {"control", "localhost"},
      {"control", ":7070"},
      {"control", "localhost:0"},
      {"control", "localhost:65536"},
      {"control", "localhost:-1"},
      {"control", "local host:1"},
      {"control", "ipv4:/x:1"},
      {"control-timeout", ""},
      {"control-timeout", "-1"},
      {"control-timeout", "1.5"},
      {"control-timeout", "3601"},
      {"control-timeout", "99999999999999999999"},
      {"readonly", ""},
      {"readonly", "maybe"},
      {"no-such-key", "x"},
  };
  for (const auto& [key, value] : cases) {
    PluginConfig config;
    const absl::Status status = SetOption(config, key, value);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << key << "=" << value << ": " << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "; ")) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "\n")) << status;
  }
}

TEST(Config, LongestPathThatTheKernelTakesIsTaken) {
  EXPECT_TRUE(ControlTarget("unix:/" + std::string(106, 'p')).ok());
}

TEST(Config, VolumeIsNeededOnce) {
  PluginConfig config;
  EXPECT_TRUE(absl::IsInvalidArgument(CompleteConfig(config, nullptr)));
  ASSERT_TRUE(SetOption(config, "volume", "site/v").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(SetOption(config, "volume", "w")));
  EXPECT_EQ(config.volume, "site/v");
}

TEST(Config, BooleansAreReadAsNbdkitReadsThem) {
  for (const char* yes : {"1", "true", "T", "Yes", "y", "ON"}) {
    PluginConfig config;
    ASSERT_TRUE(SetOption(config, "readonly", yes).ok()) << yes;
    EXPECT_TRUE(config.read_only) << yes;
    ASSERT_TRUE(SetOption(config, "readonly", "off").ok());
    EXPECT_FALSE(config.read_only) << yes;
  }
}

}  // namespace
}  // namespace braid
