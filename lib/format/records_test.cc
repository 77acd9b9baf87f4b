#include "lib/format/records.h"

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/format/codec.h"
#include "lib/format/doc_example.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

Uuid Id(absl::string_view text) { return Uuid::Parse(text).value(); }
const Uuid kDevice = Id("11111111-2222-4333-8444-555555555555");
const Uuid kDevice2 = Id("66666666-7777-4888-9999-000000000000");
const Uuid kCluster = Id("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");

SiteRecord ExampleSite() {
  return {kCluster, Id("01234567-89ab-4def-8123-456789abcdef"), "berlin", Revision(42)};
}

DeviceRecord ExampleDevice() {
  DeviceRecord r;
  r.id = kDevice;
  r.name = "disk1";
  r.node = "server1";
  r.path = "/dev/sdb";
  r.device_class = "ssd";
  r.device_bytes = 10 * kGiB;
  r.data_offset = 4 * kMiB;
  r.data_bytes = 10 * kGiB - 4 * kMiB;
  r.created_unix_seconds = 1767225600;
  r.revision = Revision(40);
  return r;
}

VolumeRecord ExampleVolume() {
  VolumeRecord r;
  r.id = Id("0f1e2d3c-4b5a-4697-8877-665544332211");
  r.name = "web";
  r.size_bytes = 8 * kMiB;
  r.layout = Layout::kMirrored;
  r.legs = 2;
  r.device_class = "ssd";
  r.devices = {kDevice, kDevice2};
  r.state = VolumeState::kReady;
  r.attachment = {.epoch = Epoch(3),
                  .held = true,
                  .journal = Epoch(2),
                  .node = "server1",
                  .boot_id = Id("fedcba98-7654-4210-8fed-cba987654321"),
                  .pid = 4711,
                  .since_unix_seconds = 1767225660};
  r.created_unix_seconds = 1767225600;
  r.revision = Revision(42);
  return r;
}

VolumeRecord ExampleThinVolume() {
  VolumeRecord r;
  r.id = Id("0f1e2d3c-4b5a-4697-8877-665544332211");
  r.name = "lake";
  r.size_bytes = 64 * kTiB;
  r.state = VolumeState::kReady;
  r.thin = true;
  r.reserve_bytes = kGiB;
  r.on_full = OnFull::kWait;
  r.full_timeout_seconds = 90;
  r.map_sequence = 7;
  r.created_unix_seconds = 1767225600;
  r.revision = Revision(42);
  return r;
}

GrantRecord ExampleGrant() {
  GrantRecord r;
  r.handed_out = true;
  r.grant.count = 64;
  r.grant.legs = {{DeviceIndex(0), DeviceUnit(192), false},
                  {DeviceIndex(1), DeviceUnit(256), false}};
  return r;
}

MapRun ExampleRun() {
  MapRun run;
  run.count = 128;
  run.device = DeviceIndex(1);
  run.unit = DeviceUnit(128);
  run.stale = true;
  return run;
}

// Each kind by its bytes and what its decoder answers.
struct Kind {
  const char* name;
  std::string bytes;
  std::function<absl::Status(absl::string_view)> decode;
};

std::vector<Kind> Kinds() {
  return {
      {"format", EncodeStoreVersion(),
       [](absl::string_view b) { return DecodeStoreVersion(b).status(); }},
      {"site", EncodeSite(ExampleSite()),
       [](absl::string_view b) { return DecodeSite(b).status(); }},
      {"device", EncodeDevice(ExampleDevice()),
       [](absl::string_view b) { return DecodeDevice(b).status(); }},
      {"volume", EncodeVolume(ExampleVolume()),
       [](absl::string_view b) { return DecodeVolume(b).status(); }},
      {"thin-volume", EncodeVolume(ExampleThinVolume()),
       [](absl::string_view b) { return DecodeVolume(b).status(); }},
      {"run", EncodeRun(ExampleRun()), [](absl::string_view b) { return DecodeRun(b).status(); }},
      {"grant", EncodeGrant(ExampleGrant()),
       [](absl::string_view b) { return DecodeGrant(b).status(); }}};
}

// The same frame around another body, or with a version that far from its own.
std::string Reframe(absl::string_view bytes, absl::string_view body, int newer = 0) {
  ByteWriter writer = BeginFrame(bytes[0], static_cast<uint8_t>(bytes[1] + newer));
  writer.Raw(body);
  return FinishFrame(std::move(writer));
}
std::string BodyOf(const std::string& bytes) { return bytes.substr(2, bytes.size() - 6); }

TEST(Records, AreWhatTheirPageShows) {
  for (const Kind& kind : Kinds()) {
    EXPECT_EQ(kind.bytes, DocExample("store.md", kind.name)) << kind.name;
  }
}

TEST(Records, ComeBackAsTheyWere) {
  EXPECT_EQ(DecodeStoreVersion(EncodeStoreVersion()).value(), kStoreVersion);
  EXPECT_EQ(DecodeSite(EncodeSite(ExampleSite())).value(), ExampleSite());
  EXPECT_EQ(DecodeDevice(EncodeDevice(ExampleDevice())).value(), ExampleDevice());
  EXPECT_EQ(DecodeVolume(EncodeVolume(ExampleVolume())).value(), ExampleVolume());
  EXPECT_EQ(DecodeVolume(EncodeVolume(ExampleThinVolume())).value(), ExampleThinVolume());
  EXPECT_EQ(DecodeRun(EncodeRun(ExampleRun())).value(), ExampleRun());
  EXPECT_EQ(DecodeGrant(EncodeGrant(ExampleGrant())).value(), ExampleGrant());
}

TEST(Records, CutShortAnywhereOrWithAnyBitFlippedAreDamaged) {
  for (const Kind& kind : Kinds()) {
    for (size_t size = 0; size < kind.bytes.size(); ++size) {
      EXPECT_TRUE(absl::IsDataLoss(kind.decode(absl::string_view(kind.bytes).substr(0, size))))
          << kind.name << " cut to " << size;
    }
    for (size_t bit = 0; bit < 8 * kind.bytes.size(); ++bit) {
      std::string bytes = kind.bytes;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      EXPECT_TRUE(absl::IsDataLoss(kind.decode(bytes))) << kind.name << " bit " << bit;
    }
  }
}

TEST(Records, WithARightChecksumButBodiesTooShortOrLongAreDamaged) {
  for (const Kind& kind : Kinds()) {
    const std::string body = BodyOf(kind.bytes);
    for (size_t size = 0; size < body.size(); ++size) {
      EXPECT_TRUE(absl::IsDataLoss(kind.decode(Reframe(kind.bytes, body.substr(0, size)))))
          << kind.name << " cut to " << size;
    }
    EXPECT_TRUE(absl::IsDataLoss(kind.decode(Reframe(kind.bytes, body + '\0')))) << kind.name;
  }
}

TEST(Records, OfAnotherVersionAreNotRead) {
  for (const Kind& kind : Kinds()) {
    const absl::Status status = kind.decode(Reframe(kind.bytes, "from the future", 1));
    EXPECT_TRUE(absl::IsUnimplemented(status)) << kind.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("; use the newer Braid")) << kind.name;
    EXPECT_TRUE(absl::IsDataLoss(kind.decode(Reframe(kind.bytes, BodyOf(kind.bytes), -1))));
  }
  EXPECT_TRUE(absl::IsUnimplemented(DecodeStoreVersion(EncodeStoreVersion(1)).status()));
  EXPECT_TRUE(absl::IsUnimplemented(DecodeStoreVersion(EncodeStoreVersion(3)).status()));
  EXPECT_TRUE(absl::IsDataLoss(DecodeStoreVersion(EncodeStoreVersion(0)).status()));
}

TEST(Records, OfAnotherKindAreDamaged) {
  const std::vector<Kind> kinds = Kinds();
  for (const Kind& a : kinds) {
    for (const Kind& b : kinds) {
      EXPECT_EQ(a.decode(b.bytes).ok(), a.bytes[0] == b.bytes[0]) << a.name << " from " << b.name;
    }
  }
}

// Bodies that a checksum vouches for and that were never written: nothing but an error or
// a record that passes its check comes out.
TEST(Records, OfRandomBodiesNeverPassUnchecked) {
  std::mt19937_64 random(TestSeed());
  int good = 0;
  for (int i = 0; i < 20000; ++i) {
    for (const Kind& kind : Kinds()) {
      std::string body = BodyOf(kind.bytes);
      for (uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
        body[random() % body.size()] = static_cast<char>(random());
      }
      const std::string bytes = Reframe(kind.bytes, body);
      const absl::Status status = kind.decode(bytes);
      if (status.ok()) {
        ++good;
      } else {
        ASSERT_TRUE(absl::IsDataLoss(status) || kind.name == std::string("format")) << status;
      }
      if (auto v = DecodeVolume(bytes); v.ok()) {
        ASSERT_EQ(EncodeVolume(*v), bytes);
      }
      if (auto d = DecodeDevice(bytes); d.ok()) {
        ASSERT_EQ(EncodeDevice(*d), bytes);
      }
      if (auto s = DecodeSite(bytes); s.ok()) {
        ASSERT_EQ(EncodeSite(*s), bytes);
      }
      if (auto r = DecodeRun(bytes); r.ok()) {
        ASSERT_EQ(EncodeRun(*r), bytes);
      }
      if (auto g = DecodeGrant(bytes); g.ok()) {
        ASSERT_EQ(EncodeGrant(*g), bytes);
      }
    }
  }
  EXPECT_GT(good, 0);
}

TEST(CheckVolume, RefusesEveryFieldOutOfItsRange) {
  const std::pair<const char*, std::function<void(VolumeRecord&)>> changes[] = {
      {"nil id", [](VolumeRecord& r) { r.id = Uuid(); }},
      {"no name", [](VolumeRecord& r) { r.name = ""; }},
      {"slash", [](VolumeRecord& r) { r.name = "a/b"; }},
      {"size 0", [](VolumeRecord& r) { r.size_bytes = 0; }},
      {"half sector", [](VolumeRecord& r) { r.size_bytes = 768; }},
      {"2^63", [](VolumeRecord& r) { r.size_bytes = uint64_t{1} << 63; }},
      {"5 legs", [](VolumeRecord& r) { r.legs = 5; }},
      {"no columns", [](VolumeRecord& r) { r.columns = 0; }},
      {"mirror of 1", [](VolumeRecord& r) { r.legs = 1; }},
      {"linear of 2", [](VolumeRecord& r) { r.layout = Layout::kLinear; }},
      {"striped of 1", [](VolumeRecord& r) { r.layout = Layout::kStripedMirrors; }},
      {"striped copies", [](VolumeRecord& r) { r.layout = Layout::kStriped; }},
      {"no layout", [](VolumeRecord& r) { r.layout = static_cast<Layout>(0); }},
      {"layout 5", [](VolumeRecord& r) { r.layout = static_cast<Layout>(5); }},
      {"state 0", [](VolumeRecord& r) { r.state = static_cast<VolumeState>(0); }},
      {"state 4", [](VolumeRecord& r) { r.state = static_cast<VolumeState>(4); }},
      {"class", [](VolumeRecord& r) { r.device_class = "-ssd"; }},
      {"nil device", [](VolumeRecord& r) { r.devices[1] = Uuid(); }},
      {"device twice", [](VolumeRecord& r) { r.devices[1] = r.devices[0]; }},
      {"held by none", [](VolumeRecord& r) { r.attachment.node = ""; }},
      {"held in epoch 0", [](VolumeRecord& r) { r.attachment.epoch = Epoch(0); }},
      {"journal of now", [](VolumeRecord& r) { r.attachment.journal = Epoch(3); }},
      {"since", [](VolumeRecord& r) { r.attachment.since_unix_seconds = -1; }},
      {"created", [](VolumeRecord& r) { r.created_unix_seconds = -1; }},
      {"stripe",
       [](VolumeRecord& r) {
         r.layout = Layout::kStripedMirrors;
         r.columns = 2;
         r.stripe_bytes = 5000;
       }},
      {"thick on no device", [](VolumeRecord& r) { r.devices.clear(); }},
      {"thick with a reserve", [](VolumeRecord& r) { r.reserve_bytes = kSmallExtentBytes; }},
      {"thick that waits", [](VolumeRecord& r) { r.on_full = OnFull::kWait; }},
      {"thick with map changes", [](VolumeRecord& r) { r.map_sequence = 1; }},
  };
  EXPECT_TRUE(CheckVolume(ExampleVolume()).ok());
  for (const auto& [what, change] : changes) {
    VolumeRecord record = ExampleVolume();
    change(record);
    EXPECT_TRUE(absl::IsInvalidArgument(CheckVolume(record))) << what;
  }
}

TEST(CheckVolume, HoldsThinOnesToTheirRules) {
  const std::pair<const char*, std::function<void(VolumeRecord&)>> changes[] = {
      {"preparing", [](VolumeRecord& r) { r.state = VolumeState::kPreparing; }},
      {"reserve beyond its size", [](VolumeRecord& r) { r.reserve_bytes = 65 * kTiB; }},
      {"half a unit reserved", [](VolumeRecord& r) { r.reserve_bytes = 32 * kKiB; }},
      {"no word on full", [](VolumeRecord& r) { r.on_full = static_cast<OnFull>(0); }},
      {"on full 3", [](VolumeRecord& r) { r.on_full = static_cast<OnFull>(3); }},
      {"timeout of fail", [](VolumeRecord& r) { r.on_full = OnFull::kFail; }},
      {"timeout", [](VolumeRecord& r) { r.full_timeout_seconds = kMaxFullTimeoutSeconds + 1; }},
  };
  EXPECT_TRUE(CheckVolume(ExampleThinVolume()).ok());
  for (const auto& [what, change] : changes) {
    VolumeRecord record = ExampleThinVolume();
    change(record);
    EXPECT_TRUE(absl::IsInvalidArgument(CheckVolume(record))) << what;
  }
  VolumeRecord whole = ExampleThinVolume();
  whole.reserve_bytes = whole.size_bytes;
  EXPECT_TRUE(CheckVolume(whole).ok());
}

TEST(CheckGrantBounds, RefusesWhatNoVolumeCanBind) {
  const std::pair<const char*, std::function<void(Grant&)>> changes[] = {
      {"nothing", [](Grant& g) { g.count = 0; }},
      {"no legs", [](Grant& g) { g.legs.clear(); }},
      {"5 legs",
       [](Grant& g) {
         for (uint16_t i = 2; i < 5; ++i) g.legs.push_back({DeviceIndex(i), DeviceUnit(0), false});
       }},
      {"one device", [](Grant& g) { g.legs[1].device = g.legs[0].device; }},
      {"stale", [](Grant& g) { g.legs[1].stale = true; }},
      {"past the last unit", [](Grant& g) { g.legs[1].unit = DeviceUnit(kMaxDeviceUnits - 63); }},
      {"wraps", [](Grant& g) { g.count = UINT64_MAX; }},
  };
  EXPECT_TRUE(CheckGrantBounds(ExampleGrant().grant).ok());
  for (const auto& [what, change] : changes) {
    Grant grant = ExampleGrant().grant;
    change(grant);
    EXPECT_TRUE(absl::IsInvalidArgument(CheckGrantBounds(grant))) << what;
  }
}

TEST(CheckDevice, RefusesEveryFieldOutOfItsRange) {
  const std::pair<const char*, std::function<void(DeviceRecord&)>> changes[] = {
      {"nil id", [](DeviceRecord& r) { r.id = Uuid(); }},
      {"name", [](DeviceRecord& r) { r.name = std::string(64, 'x'); }},
      {"node", [](DeviceRecord& r) { r.node = ""; }},
      {"class", [](DeviceRecord& r) { r.device_class = ""; }},
      {"relative path", [](DeviceRecord& r) { r.path = "dev/sdb"; }},
      {"NUL in path", [](DeviceRecord& r) { r.path = std::string("/a\0b", 4); }},
      {"long path", [](DeviceRecord& r) { r.path = "/" + std::string(4095, 'x'); }},
      {"offset", [](DeviceRecord& r) { r.data_offset = 0; }},
      {"odd offset", [](DeviceRecord& r) { r.data_offset = 5 * kMiB; }},
      {"no data", [](DeviceRecord& r) { r.data_bytes = 0; }},
      {"odd data", [](DeviceRecord& r) { r.data_bytes = 5 * kMiB; }},
      {"past the end", [](DeviceRecord& r) { r.data_bytes += 4 * kMiB; }},
      {"wraps", [](DeviceRecord& r) { r.data_bytes = UINT64_MAX - 4 * kMiB + 1; }},
      {"past 2^56",
       [](DeviceRecord& r) {
         r.device_bytes = UINT64_MAX;
         r.data_bytes = uint64_t{1} << 56;
       }},
  };
  EXPECT_TRUE(CheckDevice(ExampleDevice()).ok());
  for (const auto& [what, change] : changes) {
    DeviceRecord record = ExampleDevice();
    change(record);
    EXPECT_TRUE(absl::IsInvalidArgument(CheckDevice(record))) << what;
  }
}

TEST(CheckRunBounds, RefusesWhatNoMapCanHold) {
  const auto check = [](uint32_t column, uint32_t leg, uint64_t first, uint64_t count,
                        uint64_t unit) {
    return CheckRunBounds({column, leg, ColumnUnit(first), count, DeviceIndex(0), DeviceUnit(unit)})
        .ok();
  };
  EXPECT_TRUE(check(63, 3, 0, 1, kMaxDeviceUnits - 1));
  EXPECT_TRUE(check(0, 0, 7, 64, kMaxDeviceUnits - 64));
  EXPECT_FALSE(check(64, 0, 0, 1, 0));
  EXPECT_FALSE(check(0, 4, 0, 1, 0));
  EXPECT_FALSE(check(0, 0, 0, 0, 0));
  EXPECT_FALSE(check(0, 0, 0, 1, kMaxDeviceUnits));
  EXPECT_FALSE(check(0, 0, 0, 64, kMaxDeviceUnits - 63));
  EXPECT_FALSE(check(0, 0, 0, kMaxDeviceUnits + 1, 0));
  EXPECT_FALSE(check(0, 0, 0, UINT64_MAX, 1));
  EXPECT_FALSE(check(0, 0, 0, 1, UINT64_MAX));
  EXPECT_FALSE(check(0, 0, UINT64_MAX, 1, 0));
}

TEST(EncodeVolume, CutsAFaultThatIsTooLongBetweenCharacters) {
  VolumeRecord record = ExampleVolume();
  record.fault = "x" + std::string(3000, '.');
  EXPECT_EQ(DecodeVolume(EncodeVolume(record)).value().fault, record.fault.substr(0, 1024));
  record.fault = "x";
  while (record.fault.size() < 2000) record.fault += "\xc3\xa4";  // two bytes each
  EXPECT_EQ(DecodeVolume(EncodeVolume(record)).value().fault, record.fault.substr(0, 1023));
}

TEST(EncodeVolume, TakesAsManyDevicesAsAMapCanName) {
  VolumeRecord record = ExampleVolume();
  record.devices.clear();
  for (size_t i = 0; i < kMaxDevices; ++i) record.devices.push_back(Uuid::Random());
  EXPECT_EQ(DecodeVolume(EncodeVolume(record)).value(), record);
  record.devices.push_back(Uuid::Random());
  EXPECT_FALSE(CheckVolume(record).ok());
}

TEST(CheckName, TakesWhatIsSafeEverywhere) {
  for (const char* name : {"a", "9", "web-1", "A.b_c-d", "x."}) {
    EXPECT_TRUE(CheckName("volume name", name).ok()) << name;
  }
  EXPECT_TRUE(CheckName("volume name", std::string(63, 'a')).ok());
}

TEST(CheckName, SaysWhatIsWrongInOneLine) {
  const std::pair<std::string, const char*> names[] = {
      {"", "is empty; use"},
      {std::string(64, 'a'), "is 64 bytes long; use at most 63"},
      {".hidden", "does not begin with"},
      {"-rf", "does not begin with"},
      {"a/b", "has '/' in it"},
      {"a b", "has ' ' in it"},
      {"a\nb", "has '\\n' in it"},
      {std::string("a\0b", 3), "has '\\x00' in it"},
      {"caf\xc3\xa9", "has '\\xc3' in it"},
  };
  for (const auto& [name, why] : names) {
    const absl::Status status = CheckName("volume name", name);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(why));
    EXPECT_THAT(message, HasSubstr("volume name"));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace braid
