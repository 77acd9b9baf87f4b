#include "nbdkit-plugin/error_log.h"

#include <cerrno>
#include <string>

#include "gtest/gtest.h"

namespace braid {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

TEST(ErrorLog, FirstOfAKindIsSaidAndRepetitionsAreCounted) {
  ErrorLog log;
  EXPECT_EQ(log.Line("read", EIO, "read at 0 failed", kStart), "read at 0 failed");
  for (int i = 1; i <= 1000; ++i)
    EXPECT_EQ(log.Line("read", EIO, "read failed", kStart + i * absl::Milliseconds(9)),
              std::nullopt);
  EXPECT_EQ(log.Line("read", EIO, "read at 7 failed", kStart + ErrorLog::kInterval),
            "read at 7 failed (1000 more like it since the last such line)");
  EXPECT_EQ(log.Line("read", EIO, "read at 8 failed", kStart + 3 * ErrorLog::kInterval),
            "read at 8 failed");
}

TEST(ErrorLog, KindsDoNotHideEachOther) {
  ErrorLog log;
  EXPECT_TRUE(log.Line("read", EIO, "a", kStart));
  EXPECT_TRUE(log.Line("write", EIO, "b", kStart));
  EXPECT_TRUE(log.Line("read", ENOSPC, "c", kStart));
  EXPECT_FALSE(log.Line("write", EIO, "d", kStart));
}

TEST(ErrorLog, OneLineHasNoControlCharactersAndAnEnd) {
  EXPECT_EQ(OneLine("a\nb\r\x1b[31mc"), "a b  [31mc");
  EXPECT_EQ(OneLine("é; stays"), "é; stays");
  EXPECT_EQ(OneLine(std::string(5000, 'x')).size(), 1000U);
}

}  // namespace
}  // namespace braid
