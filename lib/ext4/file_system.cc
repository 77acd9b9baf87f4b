// A pass over one file system. Look takes a snapshot, reads the bitmaps of the groups that
// changed since the last one, and takes further snapshots for those groups whose bitmap and
// descriptor do not fit each other, since they were written between the two reads.
//
// What is remembered of a group is its free blocks as of some commit; `seen_` is the end of a
// snapshot that is not newer than any of them, so whatever a transaction wrote since is in the
// next one's ChangedSince.
#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/uuid.h"
#include "lib/ext4/group_space.h"
#include "lib/ext4/journal_inode.h"
#include "lib/ext4/journal_log.h"
#include "lib/ext4/reclaim.h"
#include "lib/ext4/snapshot.h"
#include "lib/ext4/superblock.h"
#include "lib/ext4/volume_io.h"

namespace braid::ext4 {
namespace {

// A group is unsettled when a checkpoint came between two reads; that the same happens to it
// again and again is for a caller to know.
constexpr int kRounds = 8;
constexpr absl::Duration kPause = absl::Milliseconds(5);
// Bitmaps that lie side by side (flex_bg) are read together.
constexpr uint64_t kMaxReadBytes = 1 << 20;

absl::StatusOr<ext2_super_block> ReadSuperblock(FileSystemBytes& bytes) {
  ext2_super_block superblock;
  absl::Status s = bytes.Read(
      kSuperblockOffset, absl::MakeSpan(reinterpret_cast<char*>(&superblock), sizeof(superblock)));
  if (!s.ok()) return s;
  return superblock;
}

Uuid UuidOf(const ext2_super_block& superblock) {
  std::array<uint8_t, Uuid::kBytes> bytes{};
  static_assert(sizeof(superblock.s_uuid) == bytes.size());
  std::memcpy(bytes.data(), superblock.s_uuid, bytes.size());
  return Uuid(bytes);
}

// What changes when something else than this mount wrote to the file system: another mount,
// e2fsck, a resize.
struct Mount {
  uint32_t mount_time = 0, mount_count = 0, check_time = 0;
  uint64_t blocks = 0;
  friend bool operator==(const Mount&, const Mount&) = default;
};
Mount MountOf(const ext2_super_block& superblock) {
  return {.mount_time = superblock.s_mtime,
          .mount_count = superblock.s_mnt_count,
          .check_time = superblock.s_lastcheck,
          .blocks = BlockCount(superblock)};
}

}  // namespace

struct FileSystem::State {
  State(ReadVolume read_volume, const Place& where, const Uuid& id, JournalReader reader,
        std::vector<BlockRange> in_use, uint32_t groups_now)
      : read(std::move(read_volume)),
        place(where),
        uuid(id),
        description(absl::StrCat("ext4 (", id.ToString(), ")")),
        journal(std::move(reader)),
        journal_ranges(std::move(in_use)),
        groups(groups_now) {
    for (const JournalReader::Run& run : journal.runs()) {
      journal_extents.push_back(
          {.offset = run.volume_offset, .length = uint64_t{run.count} * journal.block_bytes()});
    }
  }

  struct Group {
    bool known = false;
    GroupDescriptor descriptor;
    std::vector<GroupRun> free;
  };

  absl::Status Begin(const Snapshot& snapshot, bool offline);
  absl::Status CheckSame(const Snapshot& snapshot) const;
  absl::Status ReadGroups(const Snapshot& snapshot, std::vector<uint32_t>* pending,
                          absl::FunctionRef<void(uint32_t)> progress);
  absl::Status TakeGroup(const Snapshot& snapshot, uint32_t group, absl::Span<const char> bitmap,
                         std::vector<uint32_t>* unsettled);
  std::vector<Extent> FreeExtents(const Snapshot& snapshot) const;

  const ReadVolume read;
  const Place place;
  const Uuid uuid;
  const std::string description;
  const JournalReader journal;
  const std::vector<BlockRange> journal_ranges;  // with the tree that leads to it
  std::vector<Extent> journal_extents;

  std::optional<LogPosition> seen;
  Mount mount;
  std::vector<BlockRange> metadata;
  std::vector<Group> groups;
  uint32_t done = 0;  // groups of this pass
  // What unsettled groups looked like, to tell damage from change.
  absl::flat_hash_map<uint32_t, std::pair<GroupDescriptor, std::string>> looked;
};

FileSystem::FileSystem(std::unique_ptr<State> state) : state_(std::move(state)) {}
FileSystem::~FileSystem() = default;

const std::string& FileSystem::description() const { return state_->description; }
const Place& FileSystem::place() const { return state_->place; }
uint32_t FileSystem::block_bytes() const { return state_->journal.block_bytes(); }
const std::vector<FileSystem::Extent>& FileSystem::journal() const {
  return state_->journal_extents;
}
uint32_t FileSystem::group_count() const { return static_cast<uint32_t>(state_->groups.size()); }

absl::StatusOr<std::unique_ptr<FileSystem>> FileSystem::Open(ReadVolume read, const Place& place) {
  FileSystemBytes bytes(read, place);
  absl::StatusOr<ext2_super_block> superblock = ReadSuperblock(bytes);
  if (!superblock.ok()) return superblock.status();
  if (absl::Status s = CheckSuperblock(*superblock, place.length); !s.ok()) return s;
  // The journal does not move while its file system is in use, so what is in place will do.
  const uint32_t block_bytes = BlockBytes(*superblock);
  std::string head(block_bytes, '\0');
  const uint64_t head_block = kSuperblockOffset / block_bytes;
  if (absl::Status s = bytes.Read(head_block * block_bytes, absl::MakeSpan(head)); !s.ok()) {
    return s;
  }
  std::memcpy(head.data() + kSuperblockOffset % block_bytes, &*superblock, sizeof(*superblock));
  bytes.Replace(block_bytes, [&](uint64_t block) {
    return block == head_block ? &head : nullptr;  // as checked, whatever is written meanwhile
  });
  absl::StatusOr<Ext2> fs = bytes.Open();
  if (!fs.ok()) return fs.status();
  absl::StatusOr<JournalBlocks> blocks = FindJournal(bytes, fs->get());
  if (!blocks.ok()) return blocks.status();

  std::vector<JournalReader::Run> runs;
  uint32_t next = 0;
  for (const BlockRange& range : blocks->in_order) {
    runs.push_back({.volume_offset = place.offset + range.first * block_bytes,
                    .first = next,
                    .count = static_cast<uint32_t>(range.count)});
    next += static_cast<uint32_t>(range.count);
  }
  JournalReader journal(read, std::move(runs), block_bytes);
  if (absl::StatusOr<JournalSuperblock> s = journal.ReadSuperblock(); !s.ok()) return s.status();
  std::vector<BlockRange> in_use = std::move(blocks->in_order);
  in_use.insert(in_use.end(), blocks->tree.begin(), blocks->tree.end());
  return std::unique_ptr<FileSystem>(new FileSystem(
      std::make_unique<State>(std::move(read), place, UuidOf(*superblock), std::move(journal),
                              std::move(in_use), static_cast<uint32_t>(GroupCount(*superblock)))));
}

absl::StatusOr<uint32_t> FileSystem::ReadCommittedSequence() const {
  return LastCommitted(state_->journal);
}

absl::StatusOr<FileSystem::View> FileSystem::Look(
    bool offline, absl::FunctionRef<void(uint32_t groups_done)> progress) {
  State& state = *state_;
  View view;
  std::vector<uint32_t> pending;
  std::unique_ptr<Snapshot> snapshot;
  state.done = 0;
  state.looked.clear();
  for (int round = 0; round == 0 || !pending.empty(); ++round) {
    if (round == kRounds) {
      return absl::AbortedError(absl::StrCat(
          pending.size(), " block groups changed each time they were read; try again later"));
    }
    if (round > 0) absl::SleepFor(kPause * round);
    absl::StatusOr<std::unique_ptr<Snapshot>> taken = Snapshot::Take(
        state.read, state.place, state.journal, round == 0 ? state.seen : std::nullopt, offline);
    if (!taken.ok()) return taken.status();
    snapshot = *std::move(taken);
    if (round == 0) {
      if (absl::Status s = state.Begin(*snapshot, offline); !s.ok()) return s;
      view.sequence = snapshot->sequence();
      view.groups_total = static_cast<uint32_t>(state.groups.size());
      for (uint32_t group = 0; group < state.groups.size(); ++group) {
        if (!state.groups[group].known) pending.push_back(group);
      }
      view.groups_unchanged = view.groups_total - static_cast<uint32_t>(pending.size());
      state.done = view.groups_unchanged;
    } else if (absl::Status s = state.CheckSame(*snapshot); !s.ok()) {
      return s;
    }
    if (absl::Status s = state.ReadGroups(*snapshot, &pending, progress); !s.ok()) return s;
  }
  view.free = state.FreeExtents(*snapshot);
  return view;
}

// Forgets what the snapshot says has changed.
absl::Status FileSystem::State::Begin(const Snapshot& snapshot, bool offline) {
  ext2_filsys fs = snapshot.fs();
  if (UuidOf(*fs->super) != uuid) {
    return absl::FailedPreconditionError(
        "another file system is there than when it was opened; look at it afresh");
  }
  absl::StatusOr<std::vector<BlockRange>> in_use = MetadataRanges(fs, journal_ranges);
  if (!in_use.ok()) return in_use.status();
  const Mount mounted = MountOf(*fs->super);
  const bool all = offline || !seen || !(mounted == mount) || *in_use != metadata;
  mount = mounted;
  metadata = *std::move(in_use);
  groups.resize(fs->group_desc_count);
  for (uint32_t group = 0; group < groups.size(); ++group) {
    Group& known = groups[group];
    const GroupDescriptor descriptor = DescriptorOf(fs, group);
    known.known = known.known && !all && known.descriptor == descriptor &&
                  !snapshot.ChangedSince(descriptor.bitmap_block).value_or(true);
  }
  seen = snapshot.end();
  return absl::OkStatus();
}

// A later snapshot of the same pass.
absl::Status FileSystem::State::CheckSame(const Snapshot& snapshot) const {
  absl::StatusOr<std::vector<BlockRange>> in_use = MetadataRanges(snapshot.fs(), journal_ranges);
  if (!in_use.ok()) return in_use.status();
  if (UuidOf(*snapshot.fs()->super) != uuid || !(MountOf(*snapshot.fs()->super) == mount) ||
      *in_use != metadata) {
    return absl::AbortedError("the file system was resized or mounted meanwhile; try again");
  }
  return absl::OkStatus();
}

// Leaves in `pending` the groups whose bitmap and descriptor do not fit each other.
absl::Status FileSystem::State::ReadGroups(const Snapshot& snapshot, std::vector<uint32_t>* pending,
                                           absl::FunctionRef<void(uint32_t)> progress) {
  ext2_filsys fs = snapshot.fs();
  const uint32_t block_bytes = journal.block_bytes();
  std::vector<uint32_t> unsettled;
  std::vector<char> bitmaps;
  for (size_t i = 0; i < pending->size();) {
    const uint32_t group = (*pending)[i];
    const GroupDescriptor descriptor = DescriptorOf(fs, group);
    const std::string* const logged = snapshot.LoggedBitmap(descriptor.bitmap_block);
    size_t run = 1;
    if (descriptor.uninitialized || logged != nullptr) {
      const absl::Span<const char> bitmap =
          logged == nullptr ? absl::Span<const char>() : absl::MakeConstSpan(*logged);
      if (absl::Status s = TakeGroup(snapshot, group, bitmap, &unsettled); !s.ok()) return s;
    } else {
      while (i + run < pending->size() && run < kMaxReadBytes / block_bytes) {
        const GroupDescriptor next = DescriptorOf(fs, (*pending)[i + run]);
        if (next.uninitialized || next.bitmap_block != descriptor.bitmap_block + run ||
            snapshot.LoggedBitmap(next.bitmap_block) != nullptr) {
          break;
        }
        ++run;
      }
      const uint64_t offset = descriptor.bitmap_block * block_bytes;
      bitmaps.resize(run * block_bytes);
      absl::Status s = FileSystemBytes(read, place).Read(offset, absl::MakeSpan(bitmaps));
      for (size_t j = 0; s.ok() && j < run; ++j) {
        s = TakeGroup(snapshot, (*pending)[i + j],
                      absl::MakeConstSpan(bitmaps).subspan(j * block_bytes, block_bytes),
                      &unsettled);
      }
      if (!s.ok()) return s;
    }
    i += run;
    progress(done);
  }
  *pending = std::move(unsettled);
  return absl::OkStatus();
}

absl::Status FileSystem::State::TakeGroup(const Snapshot& snapshot, uint32_t group,
                                          absl::Span<const char> bitmap,
                                          std::vector<uint32_t>* unsettled) {
  absl::StatusOr<std::vector<GroupRun>> free = FreeRuns(snapshot.fs(), group, metadata, bitmap);
  if (free.ok()) {
    groups[group] = {
        .known = true, .descriptor = DescriptorOf(snapshot.fs(), group), .free = *std::move(free)};
    ++done;
    return absl::OkStatus();
  }
  // Between two looks a committed state has come in place whole, or another one is under way;
  // what is the same both times is damaged.
  std::pair<GroupDescriptor, std::string> now(DescriptorOf(snapshot.fs(), group),
                                              std::string(bitmap.begin(), bitmap.end()));
  const auto [before, first] = looked.try_emplace(group, now);
  if (!first && before->second == now) return free.status();
  before->second = std::move(now);
  unsettled->push_back(group);
  return absl::OkStatus();
}

std::vector<FileSystem::Extent> FileSystem::State::FreeExtents(const Snapshot& snapshot) const {
  const uint64_t block_bytes = journal.block_bytes();
  std::vector<Extent> extents;
  for (uint32_t group = 0; group < groups.size(); ++group) {
    const uint64_t begin = ext2fs_group_first_block2(snapshot.fs(), group);
    for (const GroupRun& run : groups[group].free) {
      const Extent extent{.offset = place.offset + (begin + run.first) * block_bytes,
                          .length = run.count * block_bytes};
      if (!extents.empty() && extents.back().offset + extents.back().length == extent.offset) {
        extents.back().length += extent.length;
      } else {
        extents.push_back(extent);
      }
    }
  }
  return extents;
}

std::optional<uint32_t> CommitSequence(absl::Span<const char> block) {
  const std::optional<JournalHeader> header = ParseJournalHeader(block);
  if (!header || header->type != static_cast<uint32_t>(JournalBlock::kCommit)) return std::nullopt;
  return header->sequence;
}

}  // namespace braid::ext4
