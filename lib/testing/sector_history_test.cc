#include "lib/testing/sector_history.h"

#include <string>

#include "gtest/gtest.h"

namespace braid {
namespace {

using Change = SectorHistory::Change;

std::string Content(uint64_t id, uint64_t sector = 0) {
  std::string data(kSectorBytes, '\0');
  if (id != 0) SectorHistory::Fill(id, sector, absl::MakeSpan(data));
  return data;
}

Change Write(uint64_t id, uint64_t began, uint64_t ended, bool certain = true) {
  return {.id = id,
          .first_sector = 0,
          .sectors = 1,
          .began = began,
          .ended = ended,
          .certain = certain};
}

struct TimedRead {
  uint64_t began, ended, id;
};

std::string JudgeOf(const std::vector<Change>& changes, const std::vector<TimedRead>& reads) {
  SectorHistory history(1, true);
  for (const Change& c : changes) history.AddChange(c);
  for (const TimedRead& r : reads) history.AddRead(0, r.began, r.ended, Content(r.id));
  return history.Judge();
}

TEST(SectorHistory, AcceptsWhatARegisterMayDo) {
  EXPECT_EQ(JudgeOf({}, {{1, 2, 0}}), "");
  EXPECT_EQ(JudgeOf({Write(7, 1, 2)}, {{3, 4, 7}}), "");
  // While the write runs a reader may see either, but never the old after the new.
  EXPECT_EQ(JudgeOf({Write(7, 1, 9)}, {{2, 3, 0}, {4, 5, 7}, {6, 7, 7}}), "");
  // Writes that overlap may take effect in either order.
  EXPECT_EQ(JudgeOf({Write(7, 1, 5), Write(8, 2, 4)}, {{6, 7, 7}, {8, 9, 7}}), "");
  // A write that failed may be there or not.
  EXPECT_EQ(JudgeOf({Write(7, 1, 2), Write(8, 3, 4, false)}, {{5, 6, 7}, {7, 8, 7}}), "");
  EXPECT_EQ(JudgeOf({Write(7, 1, 2), Write(8, 3, 4, false)}, {{5, 6, 8}}), "");
}

TEST(SectorHistory, NamesWhatItMayNot) {
  // Lost.
  EXPECT_NE(JudgeOf({Write(7, 1, 2)}, {{3, 4, 0}}), "");
  // From the future.
  EXPECT_NE(JudgeOf({Write(7, 5, 6)}, {{3, 4, 7}}), "");
  // Foreign.
  EXPECT_NE(JudgeOf({Write(7, 1, 2)}, {{3, 4, 9}}), "");
  // Overwritten.
  EXPECT_NE(JudgeOf({Write(7, 1, 2), Write(8, 3, 4)}, {{5, 6, 7}}), "");
  // Turned back while the write was still running.
  EXPECT_NE(JudgeOf({Write(7, 1, 9)}, {{2, 3, 7}, {4, 5, 0}}), "");
  // To and fro between two writes that overlapped.
  EXPECT_NE(JudgeOf({Write(7, 1, 20), Write(8, 2, 21)}, {{3, 4, 7}, {5, 6, 8}, {7, 8, 7}}), "");
}

TEST(SectorHistory, SeesTornAndMisplacedSectors) {
  for (bool strict : {true, false}) {
    SectorHistory history(2, strict);
    history.AddChange({.id = 7, .first_sector = 0, .sectors = 2, .began = 1, .ended = 2});
    std::string torn = Content(7);
    torn.replace(256, 256, 256, '\0');
    history.AddRead(0, 3, 4, torn);
    EXPECT_NE(history.Judge(), "");
    history.AddRead(1, 5, 6, Content(7, 0));
    EXPECT_NE(history.Judge(), "");
  }
}

TEST(SectorHistory, RemembersAcrossJudgements) {
  SectorHistory history(1, true);
  history.AddChange(Write(7, 1, 2));
  EXPECT_EQ(history.Judge(), "");
  history.AddRead(0, 3, 4, Content(7));
  EXPECT_EQ(history.Judge(), "");
  history.AddRead(0, 5, 6, Content(0));
  EXPECT_NE(history.Judge(), "");
}

TEST(SectorHistory, TakesBackWhatWasNotDurableAtAPowerCut) {
  // 7 is flushed, 8 acknowledged only; what was read before says nothing.
  const auto after_cut = [](const std::vector<uint64_t>& reads, bool fua) {
    SectorHistory history(1, true, /*power_cuts=*/true);
    history.AddChange(Write(5, 1, 2));
    history.AddChange(Write(7, 3, 4));
    history.AddFlush(5);
    Change last = Write(8, 6, 7);
    last.durable = fua;
    history.AddChange(last);
    history.AddRead(0, 8, 9, Content(8));
    EXPECT_EQ(history.Judge(), "");
    history.PowerCut();
    uint64_t now = 10;
    for (uint64_t id : reads) {
      history.AddRead(0, now, now + 1, Content(id));
      now += 2;
    }
    return history.Judge();
  };
  EXPECT_EQ(after_cut({7, 7}, false), "");
  EXPECT_EQ(after_cut({8, 8}, false), "");
  EXPECT_EQ(after_cut({8}, true), "");
  EXPECT_NE(after_cut({7}, true), "");
  EXPECT_NE(after_cut({5}, false), "");
  EXPECT_NE(after_cut({0}, false), "");
  EXPECT_NE(after_cut({9}, false), "");
  EXPECT_NE(after_cut({8, 7}, false), "");
}

}  // namespace
}  // namespace braid
