// Images of file systems for tests, made and judged by the e2fsprogs that users have.
#ifndef BRAID_LIB_EXT4_IMAGE_FIXTURE_H_
#define BRAID_LIB_EXT4_IMAGE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/unique_fd.h"
#include "lib/ext4/reclaim.h"

namespace braid::ext4 {

// A directory that goes with the object.
class TempDirectory {
 public:
  TempDirectory();
  ~TempDirectory();
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

struct CommandResult {
  int status = -1;  // of the shell
  std::string output;
};
CommandResult RunCommand(const std::string& command);
// Fails the test where the command fails.
std::string Must(const std::string& command);

// A sparse file of `bytes`.
void MakeFile(const std::string& path, uint64_t bytes);
// Copies with holes.
void CopyFile(const std::string& from, const std::string& to);
void WriteAt(const std::string& path, uint64_t offset, const std::string& data);
std::string ReadAt(const std::string& path, uint64_t offset, size_t bytes);

ReadVolume ReadFile(const std::string& path);

using Extents = std::vector<FileSystem::Extent>;
// As dumpe2fs says, of the file system in the file `path`, which begins at `offset` in a volume.
Extents FreeBySystem(const std::string& path, uint64_t offset = 0);
// Open and Look, offline.
absl::StatusOr<FileSystem::View> LookOnce(const std::string& path);
absl::StatusOr<FileSystem::View> LookOnce(const ReadVolume& read, const Place& place);

bool IsSubset(const Extents& part, const Extents& whole);
uint64_t Bytes(const Extents& extents);

}  // namespace braid::ext4

// gtest prints what it compares.
namespace braid::ext4 {
void PrintTo(const FileSystem::Extent& extent, std::ostream* os);
}

#endif  // BRAID_LIB_EXT4_IMAGE_FIXTURE_H_
