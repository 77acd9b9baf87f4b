// Partition tables (UEFI specification 2.10, chapter 5: GPT and the legacy MBR). Whatever is
// found is held against its checksums and its place; where two tables, or a table and a file
// system, could both be meant, nothing is: to take what an old owner left behind for the present
// file system would release the data of the present one.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/ext4/ext2fs_c.h"
#include "lib/ext4/reclaim.h"
#include "lib/ext4/superblock.h"

namespace braid::ext4 {
namespace {

constexpr size_t kMbrBytes = 512;
constexpr uint8_t kProtective = 0xee;
constexpr size_t kGptHeaderBytes = 92;
// Nothing makes more than 128; 16 MiB of entries would be read at most.
constexpr uint32_t kMaxEntries = 4096, kMaxEntryBytes = 4096;
// Logical partitions form a chain, which may be a circle. The kernel stops at 256 in all.
constexpr uint32_t kMaxLogical = 256;

struct Partition {
  uint64_t first = 0, count = 0;  // sectors
  uint32_t number = 0;
};

absl::Status Contradiction(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("the volume's partition table is damaged: ", what,
                                          "; repair it with sfdisk "
                                          "or gdisk"));
}

template <typename T>
T Little(absl::Span<const char> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

class Tables {
 public:
  Tables(const ReadVolume& read, uint64_t volume_bytes, uint32_t sector_bytes)
      : read_(read), sector_bytes_(sector_bytes), sectors_(volume_bytes / sector_bytes) {}

  uint64_t sector_bytes() const { return sector_bytes_; }

  // nullopt: no header there, or one whose checksums are wrong.
  absl::StatusOr<std::optional<std::vector<Partition>>> ReadGpt(uint64_t header_sector) const;
  absl::StatusOr<std::vector<Partition>> ReadMbr(absl::Span<const char> mbr) const;
  // Of the backup header.
  uint64_t last_sector() const { return sectors_ - 1; }
  absl::Status CheckApart(std::vector<Partition> partitions) const;

 private:
  absl::StatusOr<std::vector<char>> Read(uint64_t sector, uint64_t bytes) const {
    std::vector<char> data(bytes);
    if (!RangeFits(sector, DivideUp(bytes, sector_bytes_), sectors_)) {
      return Contradiction("it goes on beyond the end of the volume");
    }
    if (absl::Status s = read_(sector * sector_bytes_, absl::MakeSpan(data)); !s.ok()) return s;
    return data;
  }
  absl::Status ReadLogical(uint64_t extended_first, uint64_t extended_count,
                           std::vector<Partition>* partitions) const;

  const ReadVolume& read_;
  const uint32_t sector_bytes_;
  const uint64_t sectors_;
};

// CRC-32 of IEEE 802.3, which GPT uses: few bytes, so bit by bit.
uint32_t Crc32(absl::Span<const char> bytes) {
  uint32_t crc = ~0U;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320U : 0U);
  }
  return ~crc;
}

absl::StatusOr<std::optional<std::vector<Partition>>> Tables::ReadGpt(
    uint64_t header_sector) const {
  if (header_sector >= sectors_) return std::nullopt;
  absl::StatusOr<std::vector<char>> read = Read(header_sector, sector_bytes_);
  if (!read.ok()) return read.status();
  std::vector<char>& header = *read;
  const auto header_bytes = Little<uint32_t>(header, 12);
  if (std::memcmp(header.data(), "EFI PART", 8) != 0 || header_bytes < kGptHeaderBytes ||
      header_bytes > sector_bytes_) {
    return std::nullopt;
  }
  const auto checksum = Little<uint32_t>(header, 16);
  std::fill_n(header.begin() + 16, 4, '\0');
  if (Crc32(absl::MakeConstSpan(header).first(header_bytes)) != checksum ||
      Little<uint64_t>(header, 24) != header_sector) {
    return std::nullopt;
  }
  const auto first_usable = Little<uint64_t>(header, 40),
             last_usable = Little<uint64_t>(header, 48);
  const auto entries_sector = Little<uint64_t>(header, 72);
  const auto entry_count = Little<uint32_t>(header, 80), entry_bytes = Little<uint32_t>(header, 84);
  if (entry_count > kMaxEntries || entry_bytes < 128 || entry_bytes > kMaxEntryBytes ||
      !RangeFits(entries_sector, DivideUp(uint64_t{entry_count} * entry_bytes, sector_bytes_),
                 sectors_)) {
    return std::nullopt;
  }
  absl::StatusOr<std::vector<char>> entries =
      Read(entries_sector, uint64_t{entry_count} * entry_bytes);
  if (!entries.ok()) return entries.status();
  if (Crc32(*entries) != Little<uint32_t>(header, 88)) return std::nullopt;

  std::vector<Partition> partitions;
  for (uint32_t i = 0; i < entry_count; ++i) {
    const absl::Span<const char> entry =
        absl::MakeConstSpan(*entries).subspan(size_t{i} * entry_bytes, entry_bytes);
    if (std::all_of(entry.begin(), entry.begin() + 16, [](char c) { return c == 0; })) continue;
    const auto first = Little<uint64_t>(entry, 32), last = Little<uint64_t>(entry, 40);
    if (first < first_usable || last > last_usable || last < first || last >= sectors_) {
      return Contradiction(absl::StrCat("partition ", i + 1, " lies outside of the volume"));
    }
    partitions.push_back({.first = first, .count = last - first + 1, .number = i + 1});
  }
  if (absl::Status s = CheckApart(partitions); !s.ok()) return s;
  return partitions;
}

struct MbrEntry {
  uint8_t type = 0;
  uint64_t first = 0, count = 0;
  bool IsExtended() const { return type == 0x05 || type == 0x0f || type == 0x85; }
};
std::array<MbrEntry, 4> EntriesOf(absl::Span<const char> mbr) {
  std::array<MbrEntry, 4> entries;
  for (size_t i = 0; i < entries.size(); ++i) {
    const size_t at = 446 + 16 * i;
    entries[i] = {.type = static_cast<uint8_t>(mbr[at + 4]),
                  .first = Little<uint32_t>(mbr, at + 8),
                  .count = Little<uint32_t>(mbr, at + 12)};
  }
  return entries;
}
bool HasSignature(absl::Span<const char> mbr) { return Little<uint16_t>(mbr, 510) == 0xaa55; }

// What ends every MBR also ends boot sectors, whose code then stands where entries would.
bool LooksLikeMbr(absl::Span<const char> mbr) {
  if (!HasSignature(mbr)) return false;
  bool any = false;
  for (size_t i = 0; i < 4; ++i) {
    const auto boot = static_cast<uint8_t>(mbr[446 + 16 * i]);
    if (boot != 0 && boot != 0x80) return false;
    any |= mbr[446 + 16 * i + 4] != 0;
  }
  return any;
}

absl::StatusOr<std::vector<Partition>> Tables::ReadMbr(absl::Span<const char> mbr) const {
  std::vector<Partition> partitions;
  const std::array<MbrEntry, 4> entries = EntriesOf(mbr);
  std::vector<Partition> primaries;  // extended ones too
  for (uint32_t i = 0; i < entries.size(); ++i) {
    const MbrEntry& entry = entries[i];
    if (entry.type == 0 || entry.count == 0) continue;
    if (entry.first == 0 || !RangeFits(entry.first, entry.count, sectors_)) {
      return Contradiction(absl::StrCat("partition ", i + 1, " lies outside of the volume"));
    }
    primaries.push_back({.first = entry.first, .count = entry.count, .number = i + 1});
    if (!entry.IsExtended()) partitions.push_back(primaries.back());
  }
  if (absl::Status s = CheckApart(primaries); !s.ok()) return s;
  for (const MbrEntry& entry : entries) {
    if (!entry.IsExtended() || entry.count == 0) continue;
    if (absl::Status s = ReadLogical(entry.first, entry.count, &partitions); !s.ok()) return s;
  }
  if (absl::Status s = CheckApart(partitions); !s.ok()) return s;
  return partitions;
}

// Each link of the chain has a table of its own: a logical partition, which begins counted from
// that table, and the next link, counted from the extended partition.
absl::Status Tables::ReadLogical(uint64_t extended_first, uint64_t extended_count,
                                 std::vector<Partition>* partitions) const {
  const uint64_t extended_end = extended_first + extended_count;
  uint64_t table = extended_first;
  uint32_t number = 5;
  for (const Partition& partition : *partitions) number = std::max(number, partition.number + 1);
  for (uint32_t links = 0;; ++links) {
    if (links == kMaxLogical) return Contradiction("its logical partitions do not end");
    absl::StatusOr<std::vector<char>> sector = Read(table, sector_bytes_);
    if (!sector.ok()) return sector.status();
    if (!HasSignature(*sector)) {
      return Contradiction(
          absl::StrCat("there is no table of a logical partition at sector ", table));
    }
    const std::array<MbrEntry, 4> entries = EntriesOf(*sector);
    uint64_t next = 0;
    for (size_t i = 0; i < 2; ++i) {  // the others are never used
      const MbrEntry& entry = entries[i];
      if (entry.type == 0 || entry.count == 0) continue;
      if (entry.IsExtended()) {
        if (next != 0) return Contradiction("a link of its logical partitions leads to two");
        next = extended_first + entry.first;
        if (next >= extended_end || next == extended_first) {
          return Contradiction("its logical partitions leave the extended one");
        }
        continue;
      }
      const uint64_t first = table + entry.first;
      if (entry.first == 0 || first >= extended_end || entry.count > extended_end - first) {
        return Contradiction(absl::StrCat("partition ", number, " lies outside of its place"));
      }
      partitions->push_back({.first = first, .count = entry.count, .number = number++});
    }
    if (next == 0) return absl::OkStatus();
    table = next;
  }
}

absl::Status Tables::CheckApart(std::vector<Partition> partitions) const {
  std::sort(partitions.begin(), partitions.end(),
            [](const Partition& a, const Partition& b) { return a.first < b.first; });
  for (size_t i = 1; i < partitions.size(); ++i) {
    if (partitions[i].first < partitions[i - 1].first + partitions[i - 1].count) {
      return Contradiction(absl::StrCat("partitions ", partitions[i - 1].number, " and ",
                                        partitions[i].number, " overlap"));
    }
  }
  return absl::OkStatus();
}

// Signatures of what else may have been put where an ext4 superblock was left behind.
struct Signature {
  uint64_t offset;
  absl::string_view bytes, name;
};
constexpr Signature kOthers[] = {
    {0, "XFSB", "XFS"},
    {0, "LUKS\xba\xbe", "LUKS"},
    {512, "LABELONE", "an LVM physical volume"},
    {4096 - 10, "SWAPSPACE2", "swap space"},
    {65536 + 64, "_BHRfS_M", "btrfs"},
    {4096, "\xfc\x4e\x2b\xa9", "a member of an MD array"},
};

absl::StatusOr<bool> HoldsExt4(const ReadVolume& read, const Place& place) {
  if (place.length < kSuperblockOffset + kSuperblockBytes) return false;
  std::vector<char> data(kSuperblockBytes);
  absl::Status s = read(place.offset + kSuperblockOffset, absl::MakeSpan(data));
  if (!s.ok()) return s;
  if (!LooksLikeSuperblock(data)) return false;
  for (const Signature& other : kOthers) {
    std::string bytes(other.bytes.size(), '\0');
    if (!RangeFits(other.offset, bytes.size(), place.length)) continue;
    s = read(place.offset + other.offset, absl::MakeSpan(bytes));
    if (!s.ok()) return s;
    if (absl::string_view(bytes) == other.bytes) {
      return absl::DataLossError(absl::StrCat(
          place.partition == 0 ? "the volume" : absl::StrCat("partition ", place.partition),
          " looks like both ext4 and ", other.name, "; wipe the one it is not (wipefs)"));
    }
  }
  return true;
}

// The table's partitions; nullopt when the volume has no table.
absl::StatusOr<std::optional<std::pair<std::vector<Partition>, uint64_t>>> FindTable(
    const ReadVolume& read, uint64_t volume_bytes) {
  using Found = std::pair<std::vector<Partition>, uint64_t>;
  std::vector<char> mbr(kMbrBytes);
  if (volume_bytes < mbr.size()) return std::nullopt;
  if (absl::Status s = read(0, absl::MakeSpan(mbr)); !s.ok()) return s;
  const bool is_mbr = LooksLikeMbr(mbr);
  const std::array<MbrEntry, 4> entries = EntriesOf(mbr);
  const bool protective = is_mbr && std::any_of(entries.begin(), entries.end(), [](const auto& e) {
                            return e.type == kProtective;
                          });
  // The protective MBR is what makes a GPT one that counts: a tool that puts an MBR, or a file
  // system, over it may leave the GPT's own sectors as they are.
  if (protective) {
    for (const uint32_t sector_bytes : {512U, 4096U}) {
      const Tables tables(read, volume_bytes, sector_bytes);
      if (volume_bytes < 3 * uint64_t{sector_bytes}) continue;
      for (const uint64_t header : {uint64_t{1}, tables.last_sector()}) {
        absl::StatusOr<std::optional<std::vector<Partition>>> gpt = tables.ReadGpt(header);
        if (!gpt.ok()) return gpt.status();
        if (*gpt) return Found(**std::move(gpt), sector_bytes);
      }
    }
    return Contradiction("both headers of the GPT are");
  }
  if (!is_mbr) return std::nullopt;
  const Tables tables(read, volume_bytes, kMbrBytes);
  absl::StatusOr<std::vector<Partition>> partitions = tables.ReadMbr(mbr);
  if (!partitions.ok()) return partitions.status();
  return Found(*std::move(partitions), kMbrBytes);
}

}  // namespace

absl::StatusOr<std::vector<Place>> FindFileSystems(const ReadVolume& read, uint64_t volume_bytes) {
  const Place whole{.offset = 0, .length = volume_bytes};
  absl::StatusOr<bool> on_whole = HoldsExt4(read, whole);
  if (!on_whole.ok()) return on_whole.status();
  auto table = FindTable(read, volume_bytes);
  if (!table.ok()) return table.status();
  if (!*table) return *on_whole ? std::vector<Place>{whole} : std::vector<Place>();
  if (*on_whole) {
    return absl::DataLossError(
        "the volume has both a partition table and an ext4 file system; wipe the one that is not "
        "in use (wipefs)");
  }
  std::vector<Place> places;
  const auto& [partitions, sector_bytes] = **table;
  for (const Partition& partition : partitions) {
    const Place place{.offset = partition.first * sector_bytes,
                      .length = partition.count * sector_bytes,
                      .partition = partition.number};
    absl::StatusOr<bool> holds = HoldsExt4(read, place);
    if (!holds.ok()) return holds.status();
    if (*holds) places.push_back(place);
  }
  std::sort(places.begin(), places.end(),
            [](const Place& a, const Place& b) { return a.offset < b.offset; });
  return places;
}

}  // namespace braid::ext4
