#include "nbdkit-plugin/write_watch.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"

namespace braid {
namespace {

constexpr uint32_t kLastTick = UINT32_MAX;

// Sequences of a journal wrap around: jbd2 compares them like this.
bool IsAfter(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

bool Overlap(const WriteWatch::Range& a, uint64_t offset, uint64_t length) {
  return a.offset < offset + length && offset < a.offset + a.length;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WriteWatch>> WriteWatch::Create(uint64_t volume_bytes) {
  const uint64_t count = volume_bytes / kStampBytes + 1;
  absl::StatusOr<ReservedMemory> stamps = ReservedMemory::Allocate(count * sizeof(uint32_t));
  if (!stamps.ok()) return stamps.status();
  return absl::WrapUnique(new WriteWatch(volume_bytes, *std::move(stamps)));
}

WriteWatch::WriteWatch(uint64_t volume_bytes, ReservedMemory stamps)
    : volume_bytes_(volume_bytes), stamps_(std::move(stamps)) {}

WriteWatch::Change::Change(WriteWatch* watch, uint64_t offset, absl::Span<const char> data)
    : watch_(watch) {
  if (watch_ == nullptr || data.empty()) return;
  // A commit turns the clock before it is stamped itself: it may be in the view.
  if (watch_->MayTouchJournal(offset, data.size())) watch_->Look(*this, offset, data);
  watch_->Stamp(offset, data.size());
}

WriteWatch::Change::Change(WriteWatch* watch, uint64_t offset, uint64_t length, Kind kind)
    : watch_(watch) {
  if (watch_ == nullptr || length == 0) return;
  if (watch_->MayTouchJournal(offset, length)) watch_->Spoil(offset, length);
  if (kind == Kind::kZero) watch_->Stamp(offset, length);
}

WriteWatch::Change::~Change() {
  if (!commits_.empty()) watch_->End(*this);
}

void WriteWatch::Stamp(uint64_t offset, uint64_t length) {
  // A range that the volume will refuse.
  if (offset >= volume_bytes_ || length > volume_bytes_ - offset) return;
  const uint32_t tick = tick_.load(std::memory_order_seq_cst);
  auto* const stamps = static_cast<uint32_t*>(stamps_.data());
  const uint64_t last = (offset + length - 1) / kStampBytes;
  for (uint64_t i = offset / kStampBytes; i <= last; ++i) {
    const std::atomic_ref<uint32_t> stamp(stamps[i]);
    // Mostly it is there already, and the cache line stays shared. Never back, for another
    // write may have come in between with a later one.
    uint32_t old = stamp.load(std::memory_order_relaxed);
    while (old < tick && !stamp.compare_exchange_weak(old, tick, std::memory_order_seq_cst)) {
    }
  }
  if (!changed_.load(std::memory_order_relaxed)) changed_.store(true, std::memory_order_relaxed);
}

bool WriteWatch::StampedBelow(uint32_t tick, uint64_t offset, uint64_t length) const {
  if (length == 0) return true;
  if (offset >= volume_bytes_ || length > volume_bytes_ - offset) return false;
  auto* const stamps = static_cast<uint32_t*>(stamps_.data());
  const uint64_t last = (offset + length - 1) / kStampBytes;
  for (uint64_t i = offset / kStampBytes; i <= last; ++i)
    if (std::atomic_ref<uint32_t>(stamps[i]).load(std::memory_order_seq_cst) >= tick) return false;
  return true;
}

bool WriteWatch::MayTouchJournal(uint64_t offset, uint64_t length) const {
  return offset < journals_end_.load(std::memory_order_acquire) &&
         offset + length > journals_begin_.load(std::memory_order_acquire);
}

void WriteWatch::Look(Change& change, uint64_t offset, absl::Span<const char> data) {
  const MutexLock lock(&mu_);
  for (auto& [number, watched] : journals_) {
    const uint64_t block = watched.journal.block_bytes;
    for (const Range& place : watched.journal.places) {
      if (!Overlap(place, offset, data.size())) continue;
      const uint64_t begin = std::max(offset, place.offset);
      const uint64_t end = std::min(offset + data.size(), place.offset + place.length);
      if ((begin - place.offset) % block != 0 || (end - place.offset) % block != 0) {
        // Part of a block: what it will be cannot be said.
        Forget(watched);
        continue;
      }
      for (uint64_t at = begin; at < end; at += block) {
        const std::optional<uint32_t> sequence =
            watched.journal.commit_in(data.subspan(at - offset, block));
        if (!sequence.has_value()) continue;
        SeeCommit(watched, *sequence);
        change.commits_.push_back({number, *sequence});
      }
    }
  }
}

void WriteWatch::Spoil(uint64_t offset, uint64_t length) {
  const MutexLock lock(&mu_);
  for (auto& [number, watched] : journals_)
    for (const Range& place : watched.journal.places)
      if (Overlap(place, offset, length)) Forget(watched);
}

void WriteWatch::SeeCommit(Watched& watched, uint32_t sequence) {
  std::deque<Seen>& seen = watched.seen;
  // Sent again, as kernels do after a connection broke.
  if (!seen.empty() && seen.back().sequence == sequence) {
    ++seen.back().under_way;
    return;
  }
  if (!seen.empty() && !IsAfter(sequence, seen.back().sequence)) Forget(watched);
  Tick();
  seen.push_back({sequence, tick_.load(std::memory_order_relaxed), 1});
  if (seen.size() > kCommits) seen.pop_front();
}

void WriteWatch::End(const Change& change) {
  const MutexLock lock(&mu_);
  for (const Change::Commit& commit : change.commits_) {
    const auto at = journals_.find(commit.journal);
    if (at == journals_.end()) continue;
    Watched& watched = at->second;
    const auto seen = std::find_if(watched.seen.begin(), watched.seen.end(), [&](const Seen& s) {
      return s.sequence == commit.sequence && s.under_way > 0;
    });
    if (seen == watched.seen.end()) continue;  // forgotten since
    if (change.ok_) {
      --seen->under_way;
    } else {
      Forget(watched);
    }
  }
}

void WriteWatch::Forget(Watched& watched) {
  watched.seen.clear();
  Tick();
}

void WriteWatch::Tick() {
  const uint32_t tick = tick_.load(std::memory_order_relaxed);
  if (tick < kLastTick) tick_.store(tick + 1, std::memory_order_seq_cst);
}

void WriteWatch::SpanJournals() {
  uint64_t begin = UINT64_MAX;
  uint64_t end = 0;
  for (const auto& [number, watched] : journals_) {
    for (const Range& place : watched.journal.places) {
      begin = std::min(begin, place.offset);
      end = std::max(end, place.offset + place.length);
    }
  }
  journals_begin_.store(begin, std::memory_order_release);
  journals_end_.store(end, std::memory_order_release);
}

uint64_t WriteWatch::Add(Journal journal) {
  const MutexLock lock(&mu_);
  const uint64_t number = next_journal_++;
  journals_[number].journal = std::move(journal);
  SpanJournals();
  return number;
}

void WriteWatch::Remove(uint64_t journal) {
  const MutexLock lock(&mu_);
  journals_.erase(journal);
  SpanJournals();
}

uint32_t WriteWatch::SettledBelow(uint64_t journal, uint32_t sequence) const {
  const MutexLock lock(&mu_);
  const auto at = journals_.find(journal);
  if (at == journals_.end()) return 0;
  const std::deque<Seen>& seen = at->second.seen;
  // The clock has stopped: later writes have stamps no higher than earlier ones.
  if (tick_.load(std::memory_order_relaxed) == kLastTick) return 0;
  for (const Seen& commit : seen)
    if (commit.sequence == sequence - 1) return commit.tick;
  return 0;
}

std::optional<uint32_t> WriteWatch::Newest(uint64_t journal) const {
  const MutexLock lock(&mu_);
  const auto at = journals_.find(journal);
  if (at == journals_.end() || at->second.seen.empty()) return std::nullopt;
  return at->second.seen.back().sequence;
}

bool WriteWatch::UnderWay(uint64_t journal, uint32_t sequence) const {
  const MutexLock lock(&mu_);
  const auto at = journals_.find(journal);
  if (at == journals_.end()) return false;
  const std::deque<Seen>& seen = at->second.seen;
  return std::any_of(seen.begin(), seen.end(), [&](const Seen& commit) {
    return !IsAfter(commit.sequence, sequence) && commit.under_way > 0;
  });
}

}  // namespace braid
