#include "lib/format/label.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/checksum.h"
#include "lib/base/units.h"
#include "lib/format/doc_example.h"

namespace braid {
namespace {

using ::testing::HasSubstr;

Label Example() {
  Label label;
  label.device = Uuid::Parse("11111111-2222-4333-8444-555555555555").value();
  label.cluster = Uuid::Parse("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee").value();
  label.site = "berlin";
  label.device_name = "disk1";
  label.device_class = "ssd";
  label.device_bytes = 10 * kGiB;
  label.data_bytes = 10 * kGiB - kLabelDataOffset;
  label.created_unix_seconds = 1767225600;
  label.sequence = 7;
  return label;
}

// With another byte somewhere and a checksum that fits again.
std::string WithByte(size_t at, uint8_t value) {
  std::string bytes = EncodeLabel(Example());
  bytes[at] = static_cast<char>(value);
  const uint32_t crc = Crc32c(absl::string_view(bytes).substr(0, kLabelBytes - 4));
  for (size_t i = 0; i < 4; ++i) {
    bytes[kLabelBytes - 4 + i] = static_cast<char>(static_cast<uint8_t>(crc >> (8 * i)));
  }
  return bytes;
}

TEST(Label, IsWhatItsPageShows) {
  EXPECT_EQ(EncodeLabel(Example()), DocExample("label.md", "label"));
  EXPECT_EQ(DecodeLabel(DocExample("label.md", "label")).value(), Example());
}

TEST(Label, LongestNamesAndLargestNumbersComeBack) {
  Label label = Example();
  label.site = label.device_name = label.device_class = std::string(kMaxNameBytes, 'x');
  label.device_bytes = UINT64_MAX;
  label.data_offset = 8 * kMiB;
  label.data_bytes = (uint64_t{1} << 56) - 8 * kMiB;
  label.created_unix_seconds = INT64_MAX;
  label.sequence = UINT64_MAX;
  EXPECT_EQ(DecodeLabel(EncodeLabel(label)).value(), label);
}

TEST(Label, CutShortAnywhereIsDamagedOrNone) {
  const std::string bytes = EncodeLabel(Example());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto label = DecodeLabel(absl::string_view(bytes).substr(0, size));
    ASSERT_FALSE(label.ok()) << size;
    ASSERT_EQ(label.status().code(),
              size < 8 ? absl::StatusCode::kNotFound : absl::StatusCode::kDataLoss);
  }
}

TEST(Label, WithAnyBitFlippedIsDamaged) {
  const std::string good = EncodeLabel(Example());
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const auto label = DecodeLabel(bytes);
    ASSERT_TRUE(absl::IsDataLoss(label.status())) << "bit " << bit << ": " << label.status();
  }
}

TEST(Label, OfOtherBytesIsNone) {
  EXPECT_TRUE(absl::IsNotFound(DecodeLabel("").status()));
  EXPECT_TRUE(absl::IsNotFound(DecodeLabel(std::string(kLabelBytes, '\0')).status()));
  EXPECT_TRUE(absl::IsNotFound(DecodeLabel(std::string(kLabelBytes, '\xff')).status()));
}

TEST(Label, OfANewerVersionIsNotTouched) {
  const auto label = DecodeLabel(WithByte(8, 2));
  EXPECT_TRUE(absl::IsUnimplemented(label.status()));
  EXPECT_THAT(std::string(label.status().message()), HasSubstr("; use the newer Braid"));
}

TEST(Label, WithARightChecksumAndAnImpossibleFieldIsDamaged) {
  const std::pair<size_t, uint8_t> changes[] = {
      {8, 0},      // version 0
      {12, 1},     // reserved
      {64, 1},     // data offset no multiple of 4 MiB
      {66, 0},     // data offset 0
      {72, 1},     // data bytes no multiple
      {78, 1},     // data past the device
      {87, 0x80},  // created before 1970
      {88, 0},     // no name
      {88, 5},     // name cut, its rest where zeros belong
      {88, 64},    // name longer than its field
      {88, 255},  {89, '/'}, {89, '\n'}, {100, 'x'}, {152, 0}, {216, 0},
  };
  for (const auto& [at, value] : changes) {
    const auto label = DecodeLabel(WithByte(at, value));
    EXPECT_TRUE(absl::IsDataLoss(label.status())) << at << ": " << label.status();
  }
  Label nil = Example();
  nil.device = Uuid();
  EXPECT_FALSE(CheckLabel(nil).ok());
  nil = Example();
  nil.cluster = Uuid();
  EXPECT_FALSE(CheckLabel(nil).ok());
}

TEST(ChooseLabel, TakesTheNewerOfTwoCopiesInEitherOrder) {
  Label newer = Example();
  newer.sequence = 8;
  newer.site = "paris";
  const std::string a = EncodeLabel(Example()), b = EncodeLabel(newer);
  EXPECT_EQ(ChooseLabel(a, b).value(), newer);
  EXPECT_EQ(ChooseLabel(b, a).value(), newer);
  EXPECT_EQ(ChooseLabel(a, a).value(), Example());
}

TEST(ChooseLabel, TakesTheGoodOneWhereTheOtherIsDamagedOrMissing) {
  const std::string good = EncodeLabel(Example());
  const std::string damaged = good.substr(0, 4000) + std::string(96, 'x');
  for (const std::string& bad : {damaged, std::string(), std::string(kLabelBytes, '\0')}) {
    EXPECT_EQ(ChooseLabel(good, bad).value(), Example());
    EXPECT_EQ(ChooseLabel(bad, good).value(), Example());
  }
}

TEST(ChooseLabel, SaysTheMoreTellingOfTwoErrors) {
  const std::string good = EncodeLabel(Example());
  const std::string damaged = good.substr(0, 4000), none(kLabelBytes, '\0'), newer = WithByte(8, 2);
  const auto code = [](const std::string& a, const std::string& b) {
    const auto one = ChooseLabel(a, b).status().code();
    EXPECT_EQ(one, ChooseLabel(b, a).status().code());
    return one;
  };
  EXPECT_EQ(code(none, none), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(none, damaged), absl::StatusCode::kDataLoss);
  EXPECT_EQ(code(newer, damaged), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(code(newer, none), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(code(newer, good), absl::StatusCode::kUnimplemented);
  Label other = Example();
  other.site = "paris";
  EXPECT_EQ(code(good, EncodeLabel(other)), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace braid
