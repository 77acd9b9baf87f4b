#include "lib/ext4/journal_log.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace braid::ext4 {
namespace {

// Walks the ring. One transaction is gathered, and enters the contents with its commit block.
class LogWalk {
 public:
  LogWalk(const JournalReader& reader, const JournalSuperblock& journal, LogPosition begin,
          LogPosition passes)
      : reader_(reader), journal_(journal), passes_(passes), block_(reader.block_bytes(), 0) {
    contents_.begin = contents_.end = begin;
    contents_.passed = Passes();
  }

  absl::StatusOr<LogContents> Run() {
    // Each turn takes a block of the ring or ends, and the ring is gone round once at most.
    while (true) {
      absl::StatusOr<bool> more = Step();
      if (!more.ok()) return more.status();
      if (!*more) return std::move(contents_);
    }
  }

 private:
  bool Passes() const {
    return contents_.end.sequence == passes_.sequence &&
           (passes_.block == 0 || contents_.end.block == passes_.block);
  }
  uint32_t At(uint64_t taken) const { return journal_.Advance(contents_.begin.block, taken); }

  // False at the end of the log.
  absl::StatusOr<bool> Step() {
    const uint64_t ring = journal_.end - journal_.first;
    if (taken_ >= ring) {
      // The kernel keeps some of the ring free, so a log that fills it was not written by it.
      // But an unfinished transaction may seem to go on in what is left of older ones.
      return false;
    }
    if (absl::Status s = reader_.Read(At(taken_), Block()); !s.ok()) return s;
    const std::optional<JournalHeader> header = ParseJournalHeader(block_);
    if (!header || header->sequence != contents_.end.sequence) return false;
    ++taken_;
    switch (static_cast<JournalBlock>(header->type)) {
      case JournalBlock::kDescriptor:
        return TakeDescriptor();
      case JournalBlock::kRevoke:
        if (!ControlBlockChecksumHolds(journal_, block_) ||
            !ParseRevokes(journal_, block_,
                          [this](uint64_t block) { revokes_.push_back(block); })) {
          damaged_ = true;
        }
        return true;
      case JournalBlock::kCommit:
        return TakeCommit();
    }
    return false;
  }

  absl::StatusOr<bool> TakeDescriptor() {
    if (!ControlBlockChecksumHolds(journal_, block_)) damaged_ = true;
    if (journal_.checksum_v1) checksum_ = AddToTransactionChecksum(checksum_, block_);
    const std::vector<JournalTag> tags = ParseTags(journal_, block_);
    if (taken_ + tags.size() > journal_.end - journal_.first) return false;
    for (const JournalTag& tag : tags) {
      const uint32_t at = At(taken_++);
      logged_.push_back({.log_block = at, .sequence = contents_.end.sequence, .tag = tag});
      if (!journal_.checksum_v1) continue;
      if (absl::Status s = reader_.Read(at, Block()); !s.ok()) return s;
      checksum_ = AddToTransactionChecksum(checksum_, block_);
    }
    return true;
  }

  absl::StatusOr<bool> TakeCommit() {
    const uint64_t seconds = CommitSeconds(block_);
    if (journal_.checksum_v1) damaged_ |= !TransactionChecksumHolds(checksum_, block_);
    if (journal_.BlocksHaveChecksums()) {
      damaged_ |= !CommitBlockChecksumHolds(journal_.seed, block_);
    }
    if (damaged_) {
      // Left by an older journal in the same place, or else this journal's and damaged: its
      // transactions are in order of time (the kernel's recovery tells them apart so too).
      if (seconds < last_commit_seconds_) return false;
      return absl::DataLossError(
          absl::StrCat("transaction ", contents_.end.sequence,
                       " in the journal is damaged (its checksum is wrong); unmount and run "
                       "e2fsck"));
    }
    last_commit_seconds_ = seconds;
    for (const LoggedBlock& logged : logged_) contents_.blocks[logged.tag.block] = logged;
    for (const uint64_t block : revokes_) contents_.revoked[block] = contents_.end.sequence;
    logged_.clear();
    revokes_.clear();
    checksum_ = kTransactionChecksumStart;
    contents_.end = {.sequence = contents_.end.sequence + 1, .block = At(taken_)};
    contents_.passed |= Passes();
    return true;
  }

  absl::Span<char> Block() { return absl::MakeSpan(block_); }

  const JournalReader& reader_;
  const JournalSuperblock& journal_;
  const LogPosition passes_;
  std::vector<char> block_;
  LogContents contents_;
  uint64_t taken_ = 0;  // blocks from `begin`
  uint64_t last_commit_seconds_ = 0;
  // Of the transaction that is being read.
  std::vector<LoggedBlock> logged_;
  std::vector<uint64_t> revokes_;
  uint32_t checksum_ = kTransactionChecksumStart;
  bool damaged_ = false;
};

}  // namespace

JournalReader::JournalReader(ReadVolume read, std::vector<Run> runs, uint32_t block_bytes)
    : read_(std::move(read)),
      runs_(std::move(runs)),
      block_bytes_(block_bytes),
      block_count_(runs_.empty() ? 0 : runs_.back().first + runs_.back().count) {}

absl::Status JournalReader::Read(uint32_t block, absl::Span<char> data) const {
  if (block >= block_count_) {
    return absl::OutOfRangeError(absl::StrCat("the journal has no block ", block));
  }
  const auto after = std::upper_bound(runs_.begin(), runs_.end(), block,
                                      [](uint32_t b, const Run& run) { return b < run.first; });
  const Run& run = *std::prev(after);
  return read_(run.volume_offset + uint64_t{block - run.first} * block_bytes_, data);
}

absl::StatusOr<JournalSuperblock> JournalReader::ReadSuperblock() const {
  std::vector<char> block(block_bytes_);
  if (absl::Status s = Read(0, absl::MakeSpan(block)); !s.ok()) return s;
  return ParseJournalSuperblock(block, block_count_);
}

absl::StatusOr<LogContents> ReadLog(const JournalReader& reader, const JournalSuperblock& journal,
                                    LogPosition begin, LogPosition passes) {
  return LogWalk(reader, journal, begin, passes).Run();
}

absl::StatusOr<std::string> ReadLogged(const JournalReader& reader,
                                       const JournalSuperblock& journal,
                                       const LoggedBlock& logged) {
  std::string data(reader.block_bytes(), '\0');
  if (absl::Status s = reader.Read(logged.log_block, absl::MakeSpan(data)); !s.ok()) return s;
  if (!TagChecksumHolds(journal, logged.tag, logged.sequence, absl::MakeConstSpan(data))) {
    return absl::DataLossError(absl::StrCat("block ", logged.tag.block, " in transaction ",
                                            logged.sequence,
                                            " of the journal is damaged (its checksum is wrong); "
                                            "unmount and run e2fsck"));
  }
  if (logged.tag.escaped) {
    std::memcpy(data.data(), kJournalMagicBytes.data(), kJournalMagicBytes.size());
  }
  return data;
}

absl::StatusOr<bool> HasPendingFastCommit(const JournalReader& reader,
                                          const JournalSuperblock& journal, uint32_t sequence) {
  const uint32_t first = journal.end + 1;
  if (!journal.fast_commit || first >= journal.total) return false;
  std::vector<char> block(reader.block_bytes());
  if (absl::Status s = reader.Read(first, absl::MakeSpan(block)); !s.ok()) return s;
  // The first is a head: tag 9 (16 bits), length, features (32 bits), the transaction that was
  // running; little-endian. Whether the rest is whole does not matter: it is refused.
  struct Head {
    uint16_t tag, length;
    uint32_t features, sequence;
  } head{};
  constexpr uint16_t kHeadTag = 9;
  std::memcpy(&head, block.data(), sizeof(head));
  return head.tag == kHeadTag && head.sequence == sequence;
}

}  // namespace braid::ext4
