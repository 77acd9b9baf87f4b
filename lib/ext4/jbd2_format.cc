#include "lib/ext4/jbd2_format.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/ext4/ext2fs_c.h"

namespace braid::ext4 {
namespace {

// Offsets in the superblock.
constexpr size_t kBlockBytesAt = 12, kTotalAt = 16, kFirstAt = 20, kSequenceAt = 24, kStartAt = 28,
                 kErrorAt = 32, kCompatAt = 36, kIncompatAt = 40, kReadOnlyCompatAt = 44,
                 kUuidAt = 48, kChecksumTypeAt = 80, kFastCommitBlocksAt = 84, kChecksumAt = 252;
constexpr size_t kUuidBytes = 16;
constexpr uint32_t kSuperblockV1 = 3, kSuperblockV2 = 4;
constexpr uint32_t kCompatChecksum = 1;
constexpr uint32_t kRevoke = 1, k64Bit = 2, kAsyncCommit = 4, kChecksumV2 = 8, kChecksumV3 = 16,
                   kFastCommit = 32;
constexpr uint8_t kCrc32c = 4;
// Where the superblock does not say how many blocks fast commits have.
constexpr uint32_t kDefaultFastCommitBlocks = 256;
// No journal of fewer blocks is mounted (JBD2_MIN_JOURNAL_BLOCKS).
constexpr uint32_t kMinLogBlocks = 1024;

constexpr size_t kHeaderBytes = 12, kTailBytes = 4;
constexpr uint16_t kTagEscaped = 1, kTagSameUuid = 2, kTagLast = 8;
// In a commit block, after the header.
constexpr size_t kCommitTypeAt = 12, kCommitSizeAt = 13, kCommitChecksumAt = 16,
                 kCommitSecondsAt = 48;
constexpr uint8_t kCommitCrc32 = 1, kCommitCrc32Bytes = 4;

uint8_t Byte(absl::Span<const char> block, size_t at) { return static_cast<uint8_t>(block[at]); }
uint16_t Be16(absl::Span<const char> block, size_t at) {
  return static_cast<uint16_t>(Byte(block, at) << 8 | Byte(block, at + 1));
}
uint32_t Be32(absl::Span<const char> block, size_t at) {
  return uint32_t{Be16(block, at)} << 16 | Be16(block, at + 2);
}
uint64_t Be64(absl::Span<const char> block, size_t at) {
  return uint64_t{Be32(block, at)} << 32 | Be32(block, at + 4);
}

// Without the inversion at the end that RFC 3720 has: so jbd2 chains it.
uint32_t Crc32cStep(uint32_t seed, absl::Span<const char> bytes) {
  return ext2fs_crc32c_le(seed, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
}

// The checksum of `block` with the four bytes at `at` as zeros.
uint32_t Crc32cWithout(uint32_t seed, absl::Span<const char> block, size_t at) {
  static constexpr std::array<char, 4> kZeros{};
  const uint32_t before = Crc32cStep(seed, block.subspan(0, at));
  return Crc32cStep(Crc32cStep(before, kZeros), block.subspan(at + kZeros.size()));
}

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the journal's superblock is damaged: ", what, "; unmount and run e2fsck"));
}

absl::Status CheckFeatures(absl::Span<const char> block, JournalSuperblock* journal) {
  const uint32_t compat = Be32(block, kCompatAt), incompat = Be32(block, kIncompatAt);
  if ((incompat & kAsyncCommit) != 0) {
    return absl::FailedPreconditionError(
        "the journal has asynchronous commits, whose commit record may reach the disk before what "
        "it commits; mount without journal_async_commit");
  }
  constexpr uint32_t kKnown = kRevoke | k64Bit | kChecksumV2 | kChecksumV3 | kFastCommit;
  if ((incompat & ~kKnown) != 0 || Be32(block, kReadOnlyCompatAt) != 0 ||
      (compat & ~kCompatChecksum) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the journal has features that this version of Braid does not know (",
                     absl::Hex(compat), ", ", absl::Hex(incompat), ", ",
                     absl::Hex(Be32(block, kReadOnlyCompatAt)), "); give space back with fstrim"));
  }
  journal->checksum_v1 = (compat & kCompatChecksum) != 0;
  journal->checksum_v2 = (incompat & kChecksumV2) != 0;
  journal->checksum_v3 = (incompat & kChecksumV3) != 0;
  if (journal->checksum_v1 + journal->checksum_v2 + journal->checksum_v3 > 1) {
    return Damaged("it names two kinds of checksum");
  }
  journal->wide_blocks = (incompat & k64Bit) != 0;
  journal->revokes = (incompat & kRevoke) != 0;
  journal->fast_commit = (incompat & kFastCommit) != 0;
  if (journal->BlocksHaveChecksums()) {
    if (Byte(block, kChecksumTypeAt) != kCrc32c) return Damaged("unknown kind of checksum");
    const uint32_t seen =
        Crc32cWithout(~0U, block.subspan(0, kJournalSuperblockBytes), kChecksumAt);
    if (seen != Be32(block, kChecksumAt)) return Damaged("its checksum is wrong");
    journal->seed = Crc32cStep(~0U, block.subspan(kUuidAt, kUuidBytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<JournalSuperblock> ParseJournalSuperblock(absl::Span<const char> block,
                                                         uint64_t journal_blocks) {
  if (block.size() < kJournalSuperblockBytes) return Damaged("it is too short");
  if (Be32(block, 0) != kJournalMagic) return Damaged("it does not begin with the magic number");
  const uint32_t type = Be32(block, 4);
  if (type != kSuperblockV1 && type != kSuperblockV2) return Damaged("it is no superblock");

  JournalSuperblock journal;
  if (type == kSuperblockV2) {  // version 1 ends before the features
    if (absl::Status s = CheckFeatures(block, &journal); !s.ok()) return s;
  }
  if (Be32(block, kBlockBytesAt) != block.size()) {
    return Damaged("its block size is not the file system's");
  }
  journal.total = Be32(block, kTotalAt);
  journal.first = Be32(block, kFirstAt);
  journal.sequence = Be32(block, kSequenceAt);
  journal.start = Be32(block, kStartAt);
  if (journal.total > journal_blocks) return Damaged("it is longer than the journal's inode");
  journal.end = journal.total;
  if (journal.fast_commit) {
    uint32_t blocks = Be32(block, kFastCommitBlocksAt);
    if (blocks == 0) blocks = kDefaultFastCommitBlocks;
    // Where they leave too little, kernels do not agree on where the log ends.
    if (blocks > journal.total || journal.total - blocks < kMinLogBlocks) {
      return Damaged("fast commits leave no room for the log");
    }
    journal.end = journal.total - blocks;
  }
  if (journal.total < kMinLogBlocks || journal.first < 1 || journal.first >= journal.end) {
    return Damaged("it has no room for a log");
  }
  if (journal.start != 0 && (journal.start < journal.first || journal.start >= journal.end)) {
    return Damaged("its log begins outside of it");
  }
  if (Be32(block, kErrorAt) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("the kernel noted error ",
                                                      static_cast<int32_t>(Be32(block, kErrorAt)),
                                                      " in the journal; unmount and run e2fsck"));
  }
  return journal;
}

std::optional<JournalHeader> ParseJournalHeader(absl::Span<const char> block) {
  if (block.size() < kHeaderBytes || Be32(block, 0) != kJournalMagic) return std::nullopt;
  return JournalHeader{.type = Be32(block, 4), .sequence = Be32(block, 8)};
}

std::vector<JournalTag> ParseTags(const JournalSuperblock& journal, absl::Span<const char> block) {
  // Version 2 was meant to have the size of version 1, and by mistake is two bytes longer.
  const size_t tag_bytes =
      journal.checksum_v3 ? 16 : 8 + (journal.wide_blocks ? 4 : 0) + (journal.checksum_v2 ? 2 : 0);
  const size_t end = block.size() - (journal.BlocksHaveChecksums() ? kTailBytes : 0);
  std::vector<JournalTag> tags;
  size_t at = kHeaderBytes;
  while (at + tag_bytes <= end) {
    JournalTag tag;
    tag.block = Be32(block, at);
    // Of version 3's four bytes of flags these are the lower two.
    const uint16_t flags = Be16(block, at + 6);
    if (journal.wide_blocks) tag.block |= uint64_t{Be32(block, at + 8)} << 32;
    if (journal.checksum_v3) tag.checksum = Be32(block, at + 12);
    if (journal.checksum_v2) tag.checksum = Be16(block, at + 4);
    tag.escaped = (flags & kTagEscaped) != 0;
    tags.push_back(tag);
    if ((flags & kTagLast) != 0) break;
    at += tag_bytes + ((flags & kTagSameUuid) != 0 ? 0 : kUuidBytes);
  }
  return tags;
}

bool ParseRevokes(const JournalSuperblock& journal, absl::Span<const char> block,
                  absl::FunctionRef<void(uint64_t block)> revoke) {
  constexpr size_t kFirstAtByte = kHeaderBytes + 4;
  const size_t end = Be32(block, kHeaderBytes);  // bytes used, with the header
  if (end < kFirstAtByte || end > block.size() - (journal.BlocksHaveChecksums() ? kTailBytes : 0)) {
    return false;
  }
  const size_t record_bytes = journal.wide_blocks ? 8 : 4;
  for (size_t at = kFirstAtByte; at + record_bytes <= end; at += record_bytes) {
    revoke(journal.wide_blocks ? Be64(block, at) : Be32(block, at));
  }
  return true;
}

uint64_t CommitSeconds(absl::Span<const char> commit_block) {
  return Be64(commit_block, kCommitSecondsAt);
}

bool ControlBlockChecksumHolds(const JournalSuperblock& journal, absl::Span<const char> block) {
  if (!journal.BlocksHaveChecksums()) return true;
  const size_t at = block.size() - kTailBytes;
  return Crc32cWithout(journal.seed, block, at) == Be32(block, at);
}

bool CommitBlockChecksumHolds(uint32_t seed, absl::Span<const char> block) {
  return Crc32cWithout(seed, block, kCommitChecksumAt) == Be32(block, kCommitChecksumAt);
}

bool TagChecksumHolds(const JournalSuperblock& journal, const JournalTag& tag, uint32_t sequence,
                      absl::Span<const char> block) {
  if (!journal.BlocksHaveChecksums()) return true;
  std::array<char, 4> number{};
  for (int i = 0; i < 4; ++i) number[i] = static_cast<char>(sequence >> (24 - 8 * i));
  const uint32_t seen = Crc32cStep(Crc32cStep(journal.seed, number), block);
  return tag.checksum == (journal.checksum_v2 ? seen & 0xffff : seen);
}

uint32_t AddToTransactionChecksum(uint32_t checksum, absl::Span<const char> block) {
  return ext2fs_crc32_be(checksum, reinterpret_cast<const unsigned char*>(block.data()),
                         block.size());
}

bool TransactionChecksumHolds(uint32_t checksum, absl::Span<const char> commit_block) {
  const uint8_t type = Byte(commit_block, kCommitTypeAt), size = Byte(commit_block, kCommitSizeAt);
  const uint32_t written = Be32(commit_block, kCommitChecksumAt);
  if (type == 0 && size == 0 && written == 0) return true;  // written without one
  return type == kCommitCrc32 && size == kCommitCrc32Bytes && written == checksum;
}

}  // namespace braid::ext4
