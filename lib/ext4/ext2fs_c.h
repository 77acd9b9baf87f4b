// libext2fs, and what C++ needs to include it without warnings; nothing else includes it.
// Debian builds it with large files; its structures are little-endian as the disk is.
#ifndef BRAID_LIB_EXT4_EXT2FS_C_H_
#define BRAID_LIB_EXT4_EXT2FS_C_H_

#include <bit>
#include <memory>

extern "C" {
#include <ext2fs/ext2_fs.h>
#include <ext2fs/ext2fs.h>
}

namespace braid::ext4 {

static_assert(std::endian::native == std::endian::little,
              "ext4's little-endian structures are read in place");

struct FreeExt2 {
  void operator()(struct_ext2_filsys* fs) const { ext2fs_free(fs); }
};
using Ext2 = std::unique_ptr<struct_ext2_filsys, FreeExt2>;

}  // namespace braid::ext4

#endif  // BRAID_LIB_EXT4_EXT2FS_C_H_
