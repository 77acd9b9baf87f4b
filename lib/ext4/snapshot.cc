#include "lib/ext4/snapshot.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/ext4/superblock.h"

namespace braid::ext4 {
namespace {

// The tail moves when a quarter of the log has been written in place, or space is short; reading
// the log takes milliseconds. A control block half written is whole after one.
constexpr int kTries = 10;
constexpr absl::Duration kFirstPause = absl::Milliseconds(1);  // doubled each time: 0.5 s in all

bool SameTail(const JournalSuperblock& a, const JournalSuperblock& b) {
  return a.sequence == b.sequence && a.start == b.start && a.first == b.first && a.end == b.end;
}

absl::Status Overwritten() {
  return absl::AbortedError(
      "the journal was written over while it was read; try again when there is less to write");
}

// Whatever may look different when what was being written is there.
bool WorthAnotherLook(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDataLoss(status);
}

// Calls `look` until it is content; what was damaged each time is damaged.
absl::Status LookAgain(int tries, absl::FunctionRef<absl::Status()> look) {
  absl::Duration pause = kFirstPause;
  while (true) {
    absl::Status status = look();
    if (--tries <= 0 || !WorthAnotherLook(status)) return status;
    absl::SleepFor(pause);
    pause *= 2;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Snapshot>> Snapshot::Take(const ReadVolume& read, const Place& place,
                                                         const JournalReader& journal,
                                                         std::optional<LogPosition> since,
                                                         bool offline) {
  std::unique_ptr<Snapshot> snapshot;
  absl::Status status = LookAgain(offline ? 1 : kTries, [&] {
    snapshot.reset(new Snapshot(read, place, journal));
    return snapshot->Fill(since, offline);
  });
  if (!status.ok()) return status;
  return snapshot;
}

absl::Status Snapshot::Fill(std::optional<LogPosition> since, bool offline) {
  absl::StatusOr<JournalSuperblock> superblock = journal_.ReadSuperblock();
  if (!superblock.ok()) return superblock.status();
  superblock_ = *superblock;
  if (absl::Status s = ReadLogSince(since); !s.ok()) return s;

  bytes_.Replace(journal_.block_bytes(), [this](uint64_t block) { return Find(block); });
  if (absl::Status s = PinSuperblock(); !s.ok()) return s;
  absl::StatusOr<Ext2> fs = bytes_.Open();
  if (!fs.ok()) return fs.status();
  fs_ = *std::move(fs);
  if (absl::Status s = LoadBitmaps(); !s.ok()) return s;
  if (offline) return CheckOffline();

  absl::StatusOr<JournalSuperblock> now = journal_.ReadSuperblock();
  if (!now.ok()) return now.status();
  // Of an empty log nothing was used.
  if (superblock_.start != 0 && !SameTail(superblock_, *now)) return Overwritten();
  return absl::OkStatus();
}

absl::Status Snapshot::ReadLogSince(std::optional<LogPosition> since) {
  const LogPosition tail{.sequence = superblock_.sequence, .block = superblock_.start};
  // What lies before the tail may be written over. Where each block of the log's own has a
  // checksum it is read all the same, for which blocks changed: a chain of whole transactions
  // from `since` to the tail cannot have been.
  const bool before_tail = since && !SequenceAtLeast(since->sequence, tail.sequence);
  if (before_tail && superblock_.BlocksHaveChecksums() && since->block >= superblock_.first &&
      since->block < superblock_.end) {
    absl::StatusOr<LogContents> log = ReadLog(journal_, superblock_, *since, tail);
    if (log.ok() && log->passed) {
      log_ = *std::move(log);
      end_ = tail.block == 0 ? tail : log_.end;
      since_sequence_ = since->sequence;
      return absl::OkStatus();
    }
  }
  log_ = {};
  if (tail.block == 0) {
    end_ = tail;
    if (since && since->sequence == tail.sequence) since_sequence_ = since->sequence;
    return absl::OkStatus();
  }
  absl::StatusOr<LogContents> log =
      ReadLog(journal_, superblock_, tail, before_tail ? tail : since.value_or(tail));
  if (!log.ok()) return log.status();
  log_ = *std::move(log);
  end_ = log_.end;
  if (since && !before_tail && log_.passed) since_sequence_ = since->sequence;
  return absl::OkStatus();
}

const LoggedBlock* Snapshot::LiveCopy(uint64_t block) const {
  if (superblock_.start == 0) return nullptr;
  const auto logged = log_.blocks.find(block);
  if (logged == log_.blocks.end() ||
      !SequenceAtLeast(logged->second.sequence, superblock_.sequence)) {
    return nullptr;
  }
  const auto revoked = log_.revoked.find(block);
  if (revoked != log_.revoked.end() && SequenceAtLeast(revoked->second, logged->second.sequence)) {
    return nullptr;
  }
  return &logged->second;
}

absl::StatusOr<const std::string*> Snapshot::Find(uint64_t block) {
  if (const auto copy = copies_.find(block); copy != copies_.end()) return copy->second.get();
  const LoggedBlock* const logged = LiveCopy(block);
  if (logged == nullptr) return nullptr;
  absl::StatusOr<std::string> data = ReadLogged(journal_, superblock_, *logged);
  if (!data.ok()) return data.status();
  return copies_.emplace(block, std::make_unique<const std::string>(*std::move(data)))
      .first->second.get();
}

// The superblock is checked, then read again by libext2fs: both shall see the same bytes.
absl::Status Snapshot::PinSuperblock() {
  const uint32_t block_bytes = journal_.block_bytes();
  const uint64_t block = kSuperblockOffset / block_bytes;
  std::string data(block_bytes, '\0');
  if (absl::Status s = bytes_.Read(block * block_bytes, absl::MakeSpan(data)); !s.ok()) return s;
  ext2_super_block superblock;
  std::memcpy(&superblock, data.data() + kSuperblockOffset % block_bytes, sizeof(superblock));
  if (absl::Status s = CheckSuperblock(superblock, place_.length); !s.ok()) return s;
  if (BlockBytes(superblock) != block_bytes) {
    return absl::FailedPreconditionError("the file system was made anew; look at it afresh");
  }
  if (superblock_.start != 0 &&
      (superblock.s_feature_incompat & EXT3_FEATURE_INCOMPAT_RECOVER) == 0) {
    return absl::FailedPreconditionError(
        "the journal is not empty, but the superblock says that it is; unmount and run e2fsck");
  }
  copies_[block] = std::make_unique<const std::string>(std::move(data));
  return absl::OkStatus();
}

absl::Status Snapshot::LoadBitmaps() {
  if (log_.blocks.empty()) return absl::OkStatus();
  for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
    absl::StatusOr<const std::string*> copy = Find(ext2fs_block_bitmap_loc(fs_.get(), group));
    if (!copy.ok()) return copy.status();
  }
  return absl::OkStatus();
}

absl::Status Snapshot::CheckOffline() {
  if (superblock_.start == 0) return absl::OkStatus();
  absl::StatusOr<bool> pending = HasPendingFastCommit(journal_, superblock_, end_.sequence);
  if (!pending.ok()) return pending.status();
  if (*pending) {
    return absl::FailedPreconditionError(
        "the journal holds fast commits that are not replayed; mount the file system once, or "
        "run e2fsck");
  }
  // e2fsck 1.47 goes on into the fast commits' blocks where the log ends, so it loses what comes
  // after; the kernel writes the log as it is read here.
  if (superblock_.fast_commit && end_.block < superblock_.start) {
    return absl::FailedPreconditionError(
        "the journal has room for fast commits and its log goes round its end, which e2fsck and "
        "the kernel replay differently; mount the file system once");
  }
  // Recovery fails on any block that is damaged, be it of a bitmap or not, and what e2fsck then
  // does is not to be foreseen.
  for (const auto& [block, logged] : log_.blocks) {
    if (LiveCopy(block) == nullptr) continue;
    absl::StatusOr<std::string> data = ReadLogged(journal_, superblock_, logged);
    if (!data.ok()) return data.status();
  }
  return absl::OkStatus();
}

std::optional<bool> Snapshot::ChangedSince(uint64_t block) const {
  if (!since_sequence_) return std::nullopt;
  const auto logged = log_.blocks.find(block);
  return logged != log_.blocks.end() && SequenceAtLeast(logged->second.sequence, *since_sequence_);
}

const std::string* Snapshot::LoggedBitmap(uint64_t block) const {
  const auto copy = copies_.find(block);
  return copy == copies_.end() ? nullptr : copy->second.get();
}

absl::StatusOr<uint32_t> LastCommitted(const JournalReader& journal) {
  uint32_t sequence = 0;
  absl::Status status = LookAgain(kTries, [&]() -> absl::Status {
    absl::StatusOr<JournalSuperblock> superblock = journal.ReadSuperblock();
    if (!superblock.ok()) return superblock.status();
    sequence = superblock->sequence - 1;
    if (superblock->start == 0) return absl::OkStatus();
    const LogPosition tail{.sequence = superblock->sequence, .block = superblock->start};
    absl::StatusOr<LogContents> log = ReadLog(journal, *superblock, tail, tail);
    if (!log.ok()) return log.status();
    sequence = log->end.sequence - 1;
    absl::StatusOr<JournalSuperblock> now = journal.ReadSuperblock();
    if (!now.ok()) return now.status();
    return SameTail(*superblock, *now) ? absl::OkStatus() : Overwritten();
  });
  if (!status.ok()) return status;
  return sequence;
}

}  // namespace braid::ext4
