#include "lib/testing/sector_history.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <map>
#include <unordered_map>

#include "absl/strings/str_cat.h"

namespace braid {
namespace {

constexpr size_t kWords = kSectorBytes / sizeof(uint64_t);
// Odd, so multiplication by it loses nothing.
constexpr uint64_t kMix = 0x9e3779b97f4a7c15;

}  // namespace

// Injective in the id for one sector, and never 0 for an id that is not.
uint64_t SectorHistory::Encode(uint64_t id, uint64_t sector) {
  return id << 24 | ((sector * kMix) >> 40);
}

void SectorHistory::Fill(uint64_t id, uint64_t first_sector, absl::Span<char> data) {
  assert(data.size() % kSectorBytes == 0 && id != 0 && id < uint64_t{1} << 40);
  for (size_t at = 0; at < data.size(); at += sizeof(uint64_t)) {
    const uint64_t word = Encode(id, first_sector + at / kSectorBytes);
    memcpy(data.data() + at, &word, sizeof(word));
  }
}

void SectorHistory::AddChange(const Change& change) {
  MutexLock l(&mu_);
  changes_.push_back(change);
}

void SectorHistory::AddRead(uint64_t first_sector, uint64_t began, uint64_t ended,
                            absl::Span<const char> data) {
  MutexLock l(&mu_);
  for (size_t i = 0; i < data.size() / kSectorBytes; ++i) {
    uint64_t words[kWords];
    memcpy(words, data.data() + i * kSectorBytes, kSectorBytes);
    SectorRead read{first_sector + i, began, ended, words[0] >> 24};
    for (uint64_t word : words) read.whole = read.whole && word == words[0];
    // A word that no id gives for this sector was meant for another, or is torn.
    const uint64_t expected = read.id == 0 ? 0 : Encode(read.id, read.sector);
    read.whole = read.whole && words[0] == expected;
    reads_.push_back(read);
  }
}

std::string SectorHistory::JudgeSector(uint64_t sector, std::vector<Change>& changes,
                                       std::vector<SectorRead>& reads) const {
  const auto certainly_between = [&](uint64_t after, uint64_t before) {
    return std::any_of(changes.begin(), changes.end(), [&](const Change& x) {
      return x.certain && x.began > after && x.ended < before;
    });
  };
  std::sort(reads.begin(), reads.end(),
            [](const SectorRead& a, const SectorRead& b) { return a.ended < b.ended; });
  struct Explained {
    const SectorRead* read;
    uint64_t oldest_began;  // of the writes that may explain it
    uint64_t newest_ended;
  };
  std::vector<Explained> explained;
  for (const SectorRead& read : reads) {
    if (!read.whole && !reads_exclude_writes_ &&
        std::any_of(changes.begin(), changes.end(), [&](const Change& w) {
          return w.began < read.ended && w.ended > read.began;
        })) {
      continue;
    }
    Explained e{&read, UINT64_MAX, 0};
    bool any = false;
    for (const Change& w : changes) {
      if (w.id != read.id || w.began >= read.ended || certainly_between(w.ended, read.began)) {
        continue;
      }
      any = true;
      e.oldest_began = std::min(e.oldest_began, w.began);
      e.newest_ended = std::max(e.newest_ended, w.ended);
    }
    if (!any || !read.whole) {
      return absl::StrCat("sector ", sector, ": a read at [", read.began, ", ", read.ended,
                          "] gave ",
                          read.whole ? absl::StrCat("write ", read.id, ", which cannot be there")
                                     : "a torn or misplaced sector");
    }
    explained.push_back(e);
  }
  // New-old inversion between reads that follow each other.
  for (const Explained& later : explained) {
    for (const Explained& earlier : explained) {
      if (earlier.read->ended >= later.read->began) continue;
      if (later.newest_ended < earlier.oldest_began) {
        return absl::StrCat("sector ", sector, ": write ", earlier.read->id,
                            " was read, then write ", later.read->id, ", which is older");
      }
    }
  }
  // a, then b, then a again, though each was written once.
  struct Span {
    uint64_t first_end = UINT64_MAX, last_begin = 0;
  };
  std::unordered_map<uint64_t, Span> spans;
  for (const SectorRead& read : reads) {
    if (read.id == 0 || !read.whole) continue;
    Span& span = spans[read.id];
    span.first_end = std::min(span.first_end, read.ended);
    span.last_begin = std::max(span.last_begin, read.began);
  }
  for (const SectorRead& b : reads) {
    if (!b.whole) continue;
    for (const auto& [id, span] : spans) {
      if (id != b.id && b.began > span.first_end && b.ended < span.last_begin) {
        return absl::StrCat("sector ", sector, ": write ", id, " was read, then write ", b.id,
                            ", then write ", id, " again");
      }
    }
  }
  // What may still be there, or be again after a power cut.
  std::vector<Change> kept;
  for (const Change& w : changes) {
    const bool gone = std::any_of(changes.begin(), changes.end(), [&](const Change& x) {
      return x.certain && x.began > w.ended && (x.durable || !power_cuts_);
    });
    if (!gone) kept.push_back(w);
  }
  changes = std::move(kept);
  return "";
}

void SectorHistory::AddFlush(uint64_t began) {
  MutexLock l(&mu_);
  last_flush_ = std::max(last_flush_, began);
}

void SectorHistory::PowerCut() {
  MutexLock l(&mu_);
  assert(power_cuts_ && changes_.empty() && reads_.empty());
  for (std::vector<Change>& of_sector : carried_) {
    for (Change& change : of_sector) change.certain = change.certain && change.durable;
  }
}

std::string SectorHistory::Judge() {
  MutexLock l(&mu_);
  if (carried_.empty()) {
    // The zeros before the history, ended before the first stamp.
    carried_.resize(sectors_, {Change{.first_sector = 0, .sectors = sectors_, .durable = true}});
  }
  std::map<uint64_t, std::vector<SectorRead>> reads;
  for (const SectorRead& read : reads_) reads[read.sector].push_back(read);
  for (const Change& change : changes_) {
    for (uint64_t s = change.first_sector; s < change.first_sector + change.sectors; ++s) {
      carried_[s].push_back(change);
      reads[s];
    }
  }
  changes_.clear();
  reads_.clear();
  for (std::vector<Change>& of_sector : carried_) {
    for (Change& change : of_sector) change.durable |= change.ended < last_flush_;
  }
  for (auto& [sector, of_sector] : reads) {
    std::string fault = JudgeSector(sector, carried_[sector], of_sector);
    if (!fault.empty()) return fault;
  }
  return "";
}

}  // namespace braid
