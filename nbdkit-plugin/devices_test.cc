#include "nbdkit-plugin/devices.h"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "lib/format/label.h"

namespace braid {
namespace {

constexpr uint64_t kSize = 16 * kMiB;

class DevicesTest : public testing::Test {
 protected:
  DevicesTest() {
    std::string pattern = "/tmp/braid-devices-XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~DevicesTest() override { std::filesystem::remove_all(dir_); }

  // A file of kSize bytes with both copies of a label.
  DeviceIdentity MakeDevice(const std::string& name) {
    DeviceIdentity identity{Uuid::Random(), name, dir_ + "/" + name, kSize};
    Label label;
    label.device = identity.id;
    label.cluster = Uuid::Random();
    label.site = "s";
    label.device_name = name;
    label.device_class = "ssd";
    label.device_bytes = kSize;
    label.data_bytes = kSize - kLabelDataOffset;
    label.sequence = 1;
    std::ofstream(identity.path).close();
    std::filesystem::resize_file(identity.path, kSize);
    for (const uint64_t offset : kLabelOffsets) Put(identity, offset, EncodeLabel(label));
    return identity;
  }
  static void Put(const DeviceIdentity& identity, uint64_t offset, const std::string& bytes) {
    std::fstream file(identity.path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  OpenedDevices Open(const std::vector<DeviceIdentity>& identities) {
    return OpenDevices(identities, false,
                       {.log = [this](absl::string_view line) { lines_.emplace_back(line); },
                        .sleep = [](absl::Duration) { return true; }});
  }

  std::string dir_;
  std::vector<std::string> lines_;
};

TEST_F(DevicesTest, DevicesWithTheirLabelsOpenInOrder) {
  const std::vector<DeviceIdentity> identities = {MakeDevice("a"), MakeDevice("b")};
  Put(identities[1], kLabelDataOffset, "hello");
  OpenedDevices opened = Open(identities);
  ASSERT_EQ(opened.devices.size(), 2U);
  EXPECT_EQ(opened.missing, 0U);
  EXPECT_TRUE(lines_.empty());
  std::string text(5, '\0');
  ASSERT_TRUE(opened.devices[1]->Read(kLabelDataOffset, absl::MakeSpan(text)).ok());
  EXPECT_EQ(text, "hello");
}

TEST_F(DevicesTest, OneGoodLabelCopyIsEnough) {
  const DeviceIdentity identity = MakeDevice("a");
  Put(identity, kLabelOffsets[0], std::string(kLabelBytes, '\xff'));
  EXPECT_EQ(Open({identity}).missing, 0U);
}

TEST_F(DevicesTest, WhatIsNotTheDeviceIsReplacedByOneThatFails) {
  struct Case {
    const char* name;
    const char* said;
    std::function<void(DeviceIdentity&)> spoil;
  };
  const std::vector<Case> cases = {
      {"gone", "gone", [](DeviceIdentity& d) { std::filesystem::remove(d.path); }},
      {"directory", "",
       [](DeviceIdentity& d) {
         std::filesystem::remove(d.path);
         std::filesystem::create_directory(d.path);
       }},
      {"other", "label of another device", [](DeviceIdentity& d) { d.id = Uuid::Random(); }},
      {"shrunk", "has shrunk",
       [](DeviceIdentity& d) { std::filesystem::resize_file(d.path, kSize - 1); }},
      {"blank", "label",
       [](DeviceIdentity& d) {
         for (const uint64_t offset : kLabelOffsets) Put(d, offset, std::string(kLabelBytes, '\0'));
       }},
      {"damaged", "label",
       [](DeviceIdentity& d) {
         for (const uint64_t offset : kLabelOffsets) Put(d, offset + 100, "damage");
       }},
      {"tiny", "", [](DeviceIdentity& d) { std::filesystem::resize_file(d.path, 10); }},
  };
  for (const Case& c : cases) {
    lines_.clear();
    DeviceIdentity spoilt = MakeDevice(c.name);
    c.spoil(spoilt);
    OpenedDevices opened = Open({spoilt, MakeDevice("good")});
    EXPECT_EQ(opened.missing, 1U) << c.name;
    ASSERT_EQ(opened.devices.size(), 2U);
    ASSERT_EQ(lines_.size(), 1U) << c.name;
    EXPECT_TRUE(absl::StrContains(lines_[0], c.name)) << lines_[0];
    EXPECT_TRUE(absl::StrContains(lines_[0], c.said)) << lines_[0];
    EXPECT_EQ(opened.devices[0]->traits().size_bytes, kSize);
    char byte = 0;
    EXPECT_FALSE(opened.devices[0]->Read(kLabelDataOffset, absl::MakeSpan(&byte, 1)).ok());
    EXPECT_TRUE(opened.devices[1]->Read(kLabelDataOffset, absl::MakeSpan(&byte, 1)).ok());
  }
}

}  // namespace
}  // namespace braid
