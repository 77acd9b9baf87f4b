#include "lib/metadata/log_check.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/checksum.h"
#include "lib/format/codec.h"

namespace braid {
namespace {

// Appends records as RocksDB's log writer does.
class Log {
 public:
  void Append(std::string record) {
    begins_.push_back(bytes_.size());
    bool first = true;
    do {
      size_t room = 32768 - bytes_.size() % 32768;
      if (room < 7) {
        bytes_.append(room, '\0');
        room = 32768;
      }
      const size_t part = std::min(record.size(), room - 7);
      const bool last = part == record.size();
      const auto type = static_cast<uint8_t>(first ? (last ? 1 : 2) : (last ? 4 : 3));
      const std::string covered = std::string(1, static_cast<char>(type)) + record.substr(0, part);
      const uint32_t crc = Crc32c(covered);
      ByteWriter head;
      head.U32(((crc >> 15) | (crc << 17)) + 0xa282ead8U);
      head.U16(static_cast<uint16_t>(part));
      bytes_ += head.bytes() + covered;
      record.erase(0, part);
      first = false;
    } while (!record.empty());
  }
  const std::string& bytes() const { return bytes_; }
  size_t begin_of_last() const { return begins_.back(); }

 private:
  std::string bytes_;
  std::vector<size_t> begins_;
};

std::string Text(size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) text.push_back(static_cast<char>(1 + i * 7 % 250));
  return text;
}

Log Sample(const std::vector<size_t>& sizes) {
  Log log;
  for (size_t size : sizes) log.Append(Text(size));
  return log;
}

TEST(CheckLog, FindsWholeLogsWhole) {
  for (const auto& sizes : std::vector<std::vector<size_t>>{
           {}, {0}, {100}, {1, 2, 3}, {32761}, {32760}, {32754, 10}, {32755, 10}, {100000, 5}}) {
    const auto end = CheckLog(Sample(sizes).bytes());
    ASSERT_TRUE(end.ok()) << end.status();
    EXPECT_EQ(*end, LogEnd::kWhole);
  }
}

TEST(CheckLog, FindsALogCutWithinItsLastRecordTorn) {
  for (const auto& sizes : std::vector<std::vector<size_t>>{{300, 200}, {50, 70000}}) {
    const Log log = Sample(sizes);
    for (size_t size = log.begin_of_last() + 1; size < log.bytes().size(); ++size) {
      // The cuts that matter lie at fragments' and sectors' ends; skip some of the rest.
      if (log.bytes().size() > 1000 && size % 32768 > 20 && size % 97 != 0) continue;
      const auto end = CheckLog(log.bytes().substr(0, size));
      ASSERT_TRUE(end.ok()) << size << ": " << end.status();
      // Up to a block's end there may be room for no fragment, which looks whole.
      ASSERT_EQ(*end, LogEnd::kTorn) << size;
    }
  }
}

TEST(CheckLog, FindsALastRecordThatLacksSectorsTorn) {
  const Log log = Sample({300, 5000});
  for (size_t sector = 512; sector + 512 <= log.bytes().size(); sector += 512) {
    std::string bytes = log.bytes();
    bytes.replace(sector, 512, 512, '\0');
    EXPECT_EQ(CheckLog(bytes).value(), LogEnd::kTorn) << sector;
    bytes.replace(sector, bytes.size() - sector, bytes.size() - sector, '\0');
    EXPECT_EQ(CheckLog(bytes).value(), LogEnd::kTorn) << sector;
  }
  EXPECT_EQ(CheckLog(log.bytes() + std::string(3000, '\0')).value(), LogEnd::kTorn);
}

TEST(CheckLog, FindsASyncedRecordThatLacksSectorsDamaged) {
  const Log log = Sample({5000, 10});
  std::string bytes = log.bytes();
  bytes.replace(1024, 512, 512, '\0');
  EXPECT_TRUE(absl::IsDataLoss(CheckLog(bytes).status()));
}

TEST(CheckLog, FindsAnyFlippedBitDamage) {
  for (const auto& sizes : std::vector<std::vector<size_t>>{{300}, {40, 50, 60}, {3, 1500, 20}}) {
    const Log log = Sample(sizes);
    for (size_t bit = 0; bit < 8 * log.bytes().size(); ++bit) {
      std::string bytes = log.bytes();
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      ASSERT_TRUE(absl::IsDataLoss(CheckLog(bytes).status()))
          << "bit " << bit << " of " << log.bytes().size() << " bytes";
    }
  }
}

TEST(CheckLog, FindsFlippedBitsOfRecordsOverSeveralBlocksDamage) {
  const Log log = Sample({40, 70000, 20, 33000});
  for (size_t byte = 0; byte < log.bytes().size(); byte += byte % 32768 < 80 ? 1 : 61) {
    std::string bytes = log.bytes();
    bytes[byte] = static_cast<char>(bytes[byte] ^ 0x10);
    ASSERT_TRUE(absl::IsDataLoss(CheckLog(bytes).status())) << byte;
  }
}

TEST(CheckLog, FindsBytesThatAreNoLogDamaged) {
  EXPECT_TRUE(absl::IsDataLoss(CheckLog(std::string(1000, '\x05')).status()));
}

}  // namespace
}  // namespace braid
