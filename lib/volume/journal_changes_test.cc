// Map changes in the attachment's journal: what the next holder finds of them.

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lib/base/test_seed.h"
#include "lib/base/unique_fd.h"
#include "lib/mapping/page_table.h"
#include "lib/volume/attachment_journal.h"

namespace braid {
namespace {

using Kind = MapChange::Kind;

constexpr uint64_t kRing = AttachmentJournal::kChanges;
constexpr off_t kChangesAt = 16704;
constexpr off_t kScratchAt = 16672;
constexpr size_t kPlaceBytes = 64;

off_t PlaceOf(uint64_t number) {
  return kChangesAt + static_cast<off_t>((number % kRing) * kPlaceBytes);
}

// A change of which every field follows from its number.
MapChange ChangeOf(uint64_t number) {
  MapChange change{.kind = static_cast<Kind>(1 + number % 3),
                   .column = static_cast<uint32_t>(number % kMaxColumns),
                   .first = ColumnUnit(number * 1000003 % (uint64_t{1} << 40)),
                   .count = static_cast<uint32_t>(1 + number % 64)};
  if (change.kind == Kind::kUnbind) return change;
  for (size_t leg = 0; leg < kMaxLegs; ++leg) {
    change.legs[leg] = {.device = DeviceIndex(static_cast<uint16_t>(number + leg)),
                        .unit = DeviceUnit(number * 7919 % kMaxDeviceUnits),
                        .stale = leg == number % 5};
  }
  return change;
}

class JournalChangesTest : public testing::Test {
 protected:
  std::unique_ptr<AttachmentJournal> Open(bool map_changes = true) {
    return AttachmentJournal::Open(file_.get(), boot_, map_changes).value();
  }
  // As its holder leaves it: changes first to last, noted by `epoch`.
  void Leave(Epoch epoch, uint64_t first, uint64_t last, bool keep_past = false) {
    auto journal = Open();
    journal->Begin(epoch, keep_past);
    for (uint64_t n = first; n <= last; ++n) journal->NoteChange(n, ChangeOf(n));
  }
  // What the next holder finds: changes as they were noted, first to last.
  void ExpectFound(uint64_t first, uint64_t last) {
    const auto journal = Open();
    ASSERT_TRUE(journal->past().has_value());
    EXPECT_EQ(journal->last_change(), last);
    const AttachmentJournal::Past& past = *journal->past();
    if (last == 0) {
      EXPECT_TRUE(past.changes.empty());
      return;
    }
    EXPECT_EQ(past.first_change, first);
    ASSERT_EQ(past.changes.size(), last - first + 1);
    for (uint64_t n = first; n <= last; ++n) {
      ASSERT_EQ(past.changes[n - first], ChangeOf(n)) << n;
      ASSERT_EQ(journal->ReadChange(n), ChangeOf(n)) << n;
    }
  }
  template <class T>
  void Poke(off_t at, T value) {
    ASSERT_EQ(pwrite(file_.get(), &value, sizeof(value), at), static_cast<ssize_t>(sizeof(value)));
  }
  off_t FileBytes() {
    struct stat st {};
    EXPECT_EQ(fstat(file_.get(), &st), 0);
    return st.st_size;
  }

  const UniqueFd file_{memfd_create("braid-journal", MFD_CLOEXEC)};
  Uuid boot_ = Uuid::Random();
};

TEST_F(JournalChangesTest, TellsTheNextHolderInOrder) {
  Leave(Epoch(3), 41, 45);
  ExpectFound(41, 45);
  // The next one dies before it has begun, and the one after goes on.
  Open();
  Leave(Epoch(5), 46, 50, true);
  ExpectFound(41, 50);
}

TEST_F(JournalChangesTest, KeepsChangesWhenWritesAreSettled) {
  Leave(Epoch(3), 1, 5);
  {
    auto journal = Open();
    journal->Begin(Epoch(4), true);
    journal->ForgetPast();
    EXPECT_EQ(journal->last_change(), 5u);
    EXPECT_EQ(journal->ReadChange(2), ChangeOf(2));
  }
  ExpectFound(1, 5);
}

TEST_F(JournalChangesTest, DropsWhatDoesNotCountAnyMore) {
  Leave(Epoch(3), 1, 5);
  Leave(Epoch(5), 1, 0, false);
  ExpectFound(0, 0);
  Leave(Epoch(6), 90, 91, true);
  ExpectFound(90, 91);
  boot_ = Uuid::Random();
  EXPECT_FALSE(Open()->past().has_value());
  Leave(Epoch(7), 1, 0, true);
  ExpectFound(0, 0);
}

TEST_F(JournalChangesTest, KeepsTheNewestWhenItsPlacesAreUsedAgain) {
  constexpr uint64_t kLast = 2 * kRing + 100;
  Leave(Epoch(1), 1, kLast);
  ExpectFound(kLast - kRing + 1, kLast);
  EXPECT_EQ(Open()->ReadChange(kLast - kRing), std::nullopt);
  EXPECT_EQ(Open()->ReadChange(kLast + 1), std::nullopt);
}

TEST_F(JournalChangesTest, HasRoomOnlyWhereAsked) {
  {
    auto journal = Open(false);
    journal->Begin(Epoch(1), false);
    AttachmentJournal::Write(journal.get(), 512, 1024).Keep();
  }
  EXPECT_EQ(FileBytes(), kScratchAt);
  {
    auto journal = Open(true);
    ASSERT_TRUE(journal->past().has_value());
    EXPECT_EQ(journal->past()->writes.size(), 1u);
    journal->Begin(Epoch(2), true);
    journal->NoteChange(1, ChangeOf(1));
  }
  EXPECT_EQ(FileBytes(), kChangesAt + static_cast<off_t>(kRing * kPlaceBytes));
  EXPECT_EQ(Open(false)->past()->writes.size(), 1u);
  EXPECT_EQ(FileBytes(), kScratchAt);
  ExpectFound(0, 0);
}

TEST_F(JournalChangesTest, HasTheBytesOfTheTable) {
  constexpr uint64_t kNumber = 3 * kRing + 2;
  {
    auto journal = Open();
    journal->Begin(Epoch(1), false);
    journal->NoteChange(kNumber, {.kind = Kind::kMove,
                                  .column = 5,
                                  .first = ColumnUnit(0x1122334455),
                                  .count = 0x40,
                                  .legs = {{{DeviceIndex(0x0102), DeviceUnit(0x0304), true},
                                            {DeviceIndex(0xfffe), DeviceUnit(0x05), false}}}});
    journal->NoteScratch({.count = kSmallPerExtent,
                          .legs = {{DeviceIndex(3), DeviceUnit(4)}, {DeviceIndex(5), {}}}});
  }
  const std::array<uint64_t, 8> expected = {kNumber,
                                            0x1122334455,
                                            3 | 5 << 8 | uint64_t{0x40} << 32,
                                            MapWord::kMapped | MapWord::kStale | 0x0304'0102,
                                            MapWord::kMapped | 0x05'fffe,
                                            MapWord::kMapped,
                                            MapWord::kMapped,
                                            0};
  std::array<uint64_t, 8> found{};
  ASSERT_EQ(pread(file_.get(), found.data(), sizeof(found), kChangesAt + uint64_t{2} * 64),
            static_cast<ssize_t>(sizeof(found)));
  EXPECT_EQ(found, expected);
  std::array<uint64_t, 4> scratch{};
  ASSERT_EQ(pread(file_.get(), scratch.data(), sizeof(scratch), kScratchAt),
            static_cast<ssize_t>(sizeof(scratch)));
  EXPECT_EQ(scratch, (std::array<uint64_t, 4>{MapWord::kMapped | 0x04'0003,
                                              MapWord::kMapped | 0x0005, 0, 0}));
}

TEST_F(JournalChangesTest, SaysWhatIsToBeCommittedAgain) {
  Leave(Epoch(3), 41, 45);
  const auto journal = Open();
  const AttachmentJournal::Past& past = *journal->past();
  ASSERT_TRUE(past.ChangesAfter(43).ok());
  EXPECT_EQ(std::vector<MapChange>(past.ChangesAfter(43)->begin(), past.ChangesAfter(43)->end()),
            (std::vector<MapChange>{ChangeOf(44), ChangeOf(45)}));
  EXPECT_EQ(past.ChangesAfter(40)->size(), 5u);
  EXPECT_EQ(past.ChangesAfter(45)->size(), 0u);
  EXPECT_EQ(past.ChangesAfter(46)->size(), 0u);
  EXPECT_EQ(past.ChangesAfter(UINT64_MAX)->size(), 0u);
  EXPECT_EQ(past.ChangesAfter(39).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(past.ChangesAfter(0).status().code(), absl::StatusCode::kDataLoss);
}

// Between any two stores of a note the place holds no change; all others are there.
TEST_F(JournalChangesTest, LosesNothingToAKillWithinANote) {
  constexpr uint64_t kLast = kRing + 10;
  Leave(Epoch(1), 1, kLast);
  const off_t place = PlaceOf(kLast + 1);
  Poke<uint64_t>(place, 0);
  ExpectFound(kLast + 2 - kRing, kLast);
  std::mt19937_64 random(TestSeed());
  for (size_t word = 1; word < 8; ++word) {
    Poke<uint64_t>(place + static_cast<off_t>(word * 8), random());
    ExpectFound(kLast + 2 - kRing, kLast);
  }
}

struct Damage {
  const char* what;
  off_t in_place;
  uint64_t value;
  size_t bytes;
  // The number that is found damaged, of change 5 of 1 to 9.
  uint64_t damaged;
};

TEST_F(JournalChangesTest, RefusesToReplayOverDamage) {
  constexpr Damage kCases[] = {
      {"a number of another place", 0, 6, 8, UINT64_MAX},
      {"a number that nobody counts to", 0, (uint64_t{1} << 63) + 5, 8, UINT64_MAX},
      {"all ones", 0, UINT64_MAX, 8, UINT64_MAX},
      {"a first unit past every column", 8, uint64_t{1} << 50, 8, 5},
      {"a first unit that wraps", 8, UINT64_MAX, 8, 5},
      {"kind 0", 16, 0, 1, 5},
      {"kind 4", 16, 4, 1, 5},
      {"an unbind with places", 16, 2, 1, 5},
      {"a column too high", 17, kMaxColumns, 1, 5},
      {"something behind the column", 18, 1, 2, 5},
      {"no units", 20, 0, 4, 5},
      {"a hole", 24, 0, 8, 5},
      {"a table", 32, MapWord::kTable | 64, 8, 5},
      {"a flag that is none", 48, MapWord::kMapped | uint64_t{1} << 60, 8, 5},
      {"something at the end", 56, 1, 8, 5},
  };
  for (const Damage& c : kCases) {
    SCOPED_TRACE(c.what);
    Leave(Epoch(1), 1, 9);
    ASSERT_EQ(ChangeOf(5).kind, Kind::kMove);
    ASSERT_EQ(pwrite(file_.get(), &c.value, c.bytes, PlaceOf(5) + c.in_place),
              static_cast<ssize_t>(c.bytes));
    const auto journal = Open();
    ASSERT_TRUE(journal->past().has_value());
    const AttachmentJournal::Past& past = *journal->past();
    EXPECT_EQ(past.damaged_change, c.damaged);
    EXPECT_EQ(past.first_change, 6u);
    EXPECT_EQ(past.changes.size(), 4u);
    EXPECT_EQ(journal->ReadChange(5), std::nullopt);
    EXPECT_EQ(past.ChangesAfter(4).status().code(), absl::StatusCode::kDataLoss);
    // What the authority has cannot be lost here.
    EXPECT_EQ(past.ChangesAfter(5).ok(), c.damaged == 5);
  }
}

TEST_F(JournalChangesTest, RefusesToReplayOverAGap) {
  Leave(Epoch(1), 1, 9);
  Poke<uint64_t>(PlaceOf(4), 0);
  const auto journal = Open();
  EXPECT_EQ(journal->past()->damaged_change, 0u);
  EXPECT_EQ(journal->past()->first_change, 5u);
  EXPECT_EQ(journal->past()->ChangesAfter(3).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(journal->past()->ChangesAfter(4)->size(), 5u);
}

TEST_F(JournalChangesTest, TakesAnyBytes) {
  std::mt19937_64 random(TestSeed());
  for (int round = 0; round < 30; ++round) {
    Leave(Epoch(1), 1 + random() % 100, random() % (2 * kRing));
    std::vector<uint64_t> words(8 + random() % 4096);
    for (uint64_t& word : words) word = random() % 4 == 0 ? random() : random() % 20000;
    const size_t bytes = words.size() * 8;
    const auto at = kScratchAt + static_cast<off_t>(random() % (kRing * kPlaceBytes + 32 - bytes));
    ASSERT_EQ(pwrite(file_.get(), words.data(), bytes, at), static_cast<ssize_t>(bytes));
    const auto journal = Open();
    if (!journal->past().has_value()) continue;  // the scratch row was hit
    const AttachmentJournal::Past& past = *journal->past();
    for (size_t i = 0; i < past.changes.size(); ++i) {
      ASSERT_EQ(journal->ReadChange(past.first_change + i), past.changes[i]);
    }
    (void)past.ChangesAfter(random() % 20000);
    journal->Begin(Epoch(2), true);
    journal->NoteChange(journal->last_change() + 1, ChangeOf(1));
  }
}

TEST_F(JournalChangesTest, MarksALegStaleUnlessItIsTheLastInSync) {
  auto journal = Open();
  journal->Begin(Epoch(1), false);
  MapChange change{.kind = Kind::kBind, .first = ColumnUnit(7), .count = 2};
  change.legs[0] = {DeviceIndex(1), DeviceUnit(10)};
  change.legs[1] = {DeviceIndex(0), DeviceUnit(20)};  // what legs 2 and 3 seem to be on
  journal->NoteChange(1, change);
  journal->NoteChange(2, {.kind = Kind::kUnbind, .first = ColumnUnit(7), .count = 2});
  for (uint64_t n = 1; n <= 2; ++n) journal->MarkChangeStale(n, DeviceIndex(9), 2);
  EXPECT_EQ(journal->ReadChange(1), change);
  for (uint64_t n = 1; n <= 2; ++n) journal->MarkChangeStale(n, DeviceIndex(0), 2);
  change.legs[1].stale = true;
  EXPECT_EQ(journal->ReadChange(1), change);
  journal->MarkChangeStale(1, DeviceIndex(1), 2);
  EXPECT_EQ(journal->ReadChange(1), change) << "the last in sync";
  EXPECT_EQ(Open()->past()->changes[0], change);
}

TEST_F(JournalChangesTest, TellsOfARowThatMayNotBeZero) {
  auto journal = Open();
  journal->Begin(Epoch(1), false);
  EXPECT_EQ(Open()->past()->scratch, std::nullopt);
  const Grant wide{kSmallPerExtent,
                   {{DeviceIndex(1), DeviceUnit(2)},
                    {DeviceIndex(3), DeviceUnit(4)},
                    {DeviceIndex(0), DeviceUnit(0)},
                    {DeviceIndex(5), DeviceUnit(kMaxDeviceUnits - 64)}}};
  const Grant narrow{kSmallPerExtent, {{DeviceIndex(0), DeviceUnit(0)}}};
  for (const Grant& row : {wide, narrow}) {
    journal->NoteScratch(row);
    EXPECT_EQ(Open()->past()->scratch, row);
  }
  journal->ClearScratch();
  EXPECT_EQ(Open()->past()->scratch, std::nullopt);
  journal->NoteScratch(wide);
  Open()->Begin(Epoch(2), true);
  EXPECT_EQ(Open()->past()->scratch, wide);
  Poke<uint64_t>(kScratchAt + 8, 1);
  EXPECT_FALSE(Open()->past().has_value()) << "damaged";
  Open()->Begin(Epoch(3), false);
  EXPECT_EQ(Open()->past()->scratch, std::nullopt);
}

// A process that notes as fast as it can, killed at any moment: what it had noted is there,
// whole, and at most the one it was at.
TEST_F(JournalChangesTest, SurviveTheDeathOfTheirProcess) {
  struct Shared {
    std::atomic<uint64_t> noted;
  };
  auto* const shared = static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  std::mt19937_64 random(TestSeed());
  Leave(Epoch(1), 1, kRing);
  shared->noted = kRing;
  for (uint64_t round = 0; round < 100; ++round) {
    const uint64_t before = shared->noted;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto journal = Open();
      journal->Begin(Epoch(2 + round), true);
      for (uint64_t n = journal->last_change() + 1;; ++n) {
        journal->NoteChange(n, ChangeOf(n));
        shared->noted.store(n);
      }
    }
    while (shared->noted == before && waitpid(child, nullptr, WNOHANG) == 0) usleep(50);
    usleep(static_cast<useconds_t>(random() % 1500));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);

    const uint64_t noted = shared->noted;
    ASSERT_GT(noted, before) << "the child did not begin";
    const auto journal = Open();
    ASSERT_TRUE(journal->past().has_value());
    const AttachmentJournal::Past& past = *journal->past();
    ASSERT_EQ(past.damaged_change, 0u);
    ASSERT_GE(journal->last_change(), noted);
    ASSERT_LE(journal->last_change(), noted + 1);
    // All but the place that was being changed, if any.
    ASSERT_GE(past.changes.size(), kRing - 1);
    for (size_t i = 0; i < past.changes.size(); ++i) {
      ASSERT_EQ(past.changes[i], ChangeOf(past.first_change + i)) << "round " << round;
    }
  }
  munmap(shared, sizeof(Shared));
}

}  // namespace
}  // namespace braid
