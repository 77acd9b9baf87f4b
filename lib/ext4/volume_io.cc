#include "lib/ext4/volume_io.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"

namespace braid::ext4 {
namespace {

FileSystemBytes* BytesOf(io_channel channel) {
  return static_cast<FileSystemBytes*>(channel->private_data);
}

errcode_t Close(io_channel channel) {
  if (--channel->refcount > 0) return 0;
  std::free(channel->name);
  std::free(channel);
  return 0;
}

errcode_t SetBlockSize(io_channel channel, int bytes) {
  if (bytes <= 0) return EXT2_ET_INVALID_ARGUMENT;
  channel->block_size = bytes;
  return 0;
}

// `count` is of blocks, or when negative of bytes.
errcode_t ReadBlocks64(io_channel channel, unsigned long long block, int count, void* data) {
  const auto block_bytes = static_cast<uint64_t>(channel->block_size);
  const std::optional<uint64_t> offset = CheckedMul(block, block_bytes);
  if (!offset) return EXT2_ET_SHORT_READ;
  const uint64_t bytes = count < 0 ? static_cast<uint64_t>(-static_cast<int64_t>(count))
                                   : static_cast<uint64_t>(count) * block_bytes;
  return BytesOf(channel)->ReadForLibrary(*offset, absl::MakeSpan(static_cast<char*>(data), bytes));
}
errcode_t ReadBlocks(io_channel channel, unsigned long block, int count, void* data) {
  return ReadBlocks64(channel, block, count, data);
}

errcode_t RefuseWrite(io_channel, unsigned long, int, const void*) { return EXT2_ET_RO_FILSYS; }
errcode_t RefuseWrite64(io_channel, unsigned long long, int, const void*) {
  return EXT2_ET_RO_FILSYS;
}
errcode_t RefuseChange(io_channel, unsigned long long, unsigned long long) {
  return EXT2_ET_RO_FILSYS;
}
errcode_t Flush(io_channel) { return 0; }
errcode_t ReadAhead(io_channel, unsigned long long, unsigned long long) { return 0; }

errcode_t OpenChannel(const char* name, int flags, io_channel* channel);

// libext2fs gives nothing but a name to the manager's open, so the name is the address of the
// FileSystemBytes, made by Open below.
struct struct_io_manager MakeManager() {
  struct struct_io_manager manager {};
  manager.magic = EXT2_ET_MAGIC_IO_MANAGER;
  manager.name = "Braid volume, read only";
  manager.open = OpenChannel;
  manager.close = Close;
  manager.set_blksize = SetBlockSize;
  manager.read_blk = ReadBlocks;
  manager.read_blk64 = ReadBlocks64;
  manager.write_blk = RefuseWrite;
  manager.write_blk64 = RefuseWrite64;
  manager.write_byte = RefuseWrite;
  manager.flush = Flush;
  manager.discard = RefuseChange;
  manager.zeroout = RefuseChange;
  manager.cache_readahead = ReadAhead;
  return manager;
}
io_manager Manager() {
  static struct struct_io_manager manager = MakeManager();
  return &manager;
}

errcode_t OpenChannel(const char* name, int flags, io_channel* channel) {
  uint64_t address = 0;
  if ((flags & IO_FLAG_RW) != 0) return EXT2_ET_RO_FILSYS;
  if (!absl::SimpleAtoi(name, &address)) return EXT2_ET_BAD_DEVICE_NAME;
  auto* const made = static_cast<io_channel>(std::calloc(1, sizeof(struct struct_io_channel)));
  if (made == nullptr) return EXT2_ET_NO_MEMORY;
  made->magic = EXT2_ET_MAGIC_IO_CHANNEL;
  made->manager = Manager();
  made->name = strdup(name);
  made->block_size = 1024;
  made->refcount = 1;
  made->private_data = reinterpret_cast<void*>(static_cast<uintptr_t>(address));
  *channel = made;
  return 0;
}

std::string ErrorText(errcode_t error) {
  static const bool known = [] {
    initialize_ext2_error_table();
    return true;
  }();
  return known ? error_message(error) : "";
}

}  // namespace

absl::Status FileSystemBytes::Read(uint64_t offset, absl::Span<char> data) {
  if (!RangeFits(offset, data.size(), place_.length)) {
    return absl::DataLossError(absl::StrCat("the file system points beyond its end, at byte ",
                                            offset, "; unmount and run e2fsck"));
  }
  if (!replaced_) return read_(place_.offset + offset, data);
  while (!data.empty()) {
    const uint64_t block = offset / block_bytes_, skip = offset % block_bytes_;
    const size_t bytes = std::min<uint64_t>(data.size(), block_bytes_ - skip);
    absl::StatusOr<const std::string*> replacement = replaced_(block);
    if (!replacement.ok()) return replacement.status();
    if (*replacement != nullptr) {
      std::memcpy(data.data(), (*replacement)->data() + skip, bytes);
    } else if (absl::Status s = read_(place_.offset + offset, data.first(bytes)); !s.ok()) {
      return s;
    }
    data.remove_prefix(bytes);
    offset += bytes;
  }
  return absl::OkStatus();
}

errcode_t FileSystemBytes::ReadForLibrary(uint64_t offset, absl::Span<char> data) {
  if (reads_left_ == 0) {
    failure_ = absl::DataLossError(
        "the file system's structures lead in a circle; unmount and run e2fsck");
    return EXT2_ET_SHORT_READ;
  }
  --reads_left_;
  absl::Status s = Read(offset, data);
  if (s.ok()) return 0;
  failure_ = std::move(s);
  return EXT2_ET_SHORT_READ;
}

absl::Status FileSystemBytes::Call(uint64_t max_reads, const std::function<errcode_t()>& call) {
  failure_ = absl::OkStatus();
  reads_left_ = max_reads;
  const errcode_t error = call();
  reads_left_ = 0;
  if (error == 0) return absl::OkStatus();
  if (!failure_.ok()) return failure_;
  return absl::DataLossError(
      absl::StrCat("libext2fs: ", ErrorText(error), "; unmount and run e2fsck"));
}

absl::StatusOr<Ext2> FileSystemBytes::Open() {
  ext2_filsys opened = nullptr;
  const std::string name = absl::StrCat(reinterpret_cast<uintptr_t>(this));
  // One read for each block of descriptors where they are apart (meta_bg), and the superblock.
  constexpr uint64_t kMaxReads = 1 << 20;
  absl::Status s = Call(kMaxReads, [&] {
    return ext2fs_open2(name.c_str(), nullptr, EXT2_FLAG_64BITS, 0, 0, Manager(), &opened);
  });
  if (!s.ok()) return s;
  return Ext2(opened);
}

}  // namespace braid::ext4
