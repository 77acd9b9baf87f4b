#include "lib/ext4/image_fixture.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <ostream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/base/errno_status.h"

namespace braid::ext4 {

TempDirectory::TempDirectory() {
  // mkfs and its kind sync what they wrote, which in memory takes no time.
  const std::filesystem::path memory = "/dev/shm";
  std::error_code error;
  const bool fits = std::getenv("TMPDIR") == nullptr &&
                    std::filesystem::space(memory, error).available > (uint64_t{2} << 30);
  std::string name =
      (fits && !error ? memory : std::filesystem::temp_directory_path()) / "braid-ext4-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}
TempDirectory::~TempDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

CommandResult RunCommand(const std::string& command) {
  // mkfs and fsck are in sbin, which a user's path may lack.
  const std::string line = "PATH=$PATH:/usr/sbin:/sbin; exec 2>&1; " + command;
  FILE* const pipe = popen(line.c_str(), "re");
  if (pipe == nullptr) return {};
  CommandResult result;
  std::array<char, 4096> buffer{};
  while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) {
    result.output.append(buffer.data(), n);
  }
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

std::string Must(const std::string& command) {
  CommandResult result = RunCommand(command);
  EXPECT_EQ(result.status, 0) << command << "\n" << result.output;
  return result.output;
}

void MakeFile(const std::string& path, uint64_t bytes) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  ASSERT_TRUE(fd.valid()) << path;
  ASSERT_EQ(ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
}

void CopyFile(const std::string& from, const std::string& to) {
  Must(absl::StrCat("cp --sparse=always ", from, " ", to));
}

void WriteAt(const std::string& path, uint64_t offset, const std::string& data) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(pwrite(fd.get(), data.data(), data.size(), static_cast<off_t>(offset)),
            static_cast<ssize_t>(data.size()));
}

std::string ReadAt(const std::string& path, uint64_t offset, size_t bytes) {
  std::string data(bytes, '\0');
  EXPECT_TRUE(ReadFile(path)(offset, absl::MakeSpan(data)).ok());
  return data;
}

ReadVolume ReadFile(const std::string& path) {
  auto fd = std::make_shared<UniqueFd>(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  return [fd](uint64_t offset, absl::Span<char> data) -> absl::Status {
    while (!data.empty()) {
      const ssize_t n = pread(fd->get(), data.data(), data.size(), static_cast<off_t>(offset));
      if (n < 0) return ErrnoStatus(errno, "read of the image");
      if (n == 0) return absl::OutOfRangeError("read beyond the image");
      data.remove_prefix(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  };
}

Extents FreeBySystem(const std::string& path, uint64_t offset) {
  std::istringstream lines(
      Must(absl::StrCat("dumpe2fs ", path, offset == 0 ? "" : absl::StrCat("?offset=", offset))));
  uint64_t block_bytes = 0;
  Extents extents;
  for (std::string line; std::getline(lines, line);) {
    absl::string_view rest = line;
    if (absl::ConsumePrefix(&rest, "Block size:")) {
      EXPECT_TRUE(absl::SimpleAtoi(absl::StripAsciiWhitespace(rest), &block_bytes));
    }
    // Those of a group are indented; the file system's own count is not.
    if (!absl::ConsumePrefix(&rest, "  Free blocks: ")) continue;
    for (absl::string_view range : absl::StrSplit(rest, ", ", absl::SkipWhitespace())) {
      const std::vector<std::string> ends = absl::StrSplit(range, '-');
      uint64_t first = 0, last = 0;
      EXPECT_TRUE(absl::SimpleAtoi(ends.front(), &first) && absl::SimpleAtoi(ends.back(), &last));
      const FileSystem::Extent extent{.offset = offset + first * block_bytes,
                                      .length = (last - first + 1) * block_bytes};
      if (!extents.empty() && extents.back().offset + extents.back().length == extent.offset) {
        extents.back().length += extent.length;
      } else {
        extents.push_back(extent);
      }
    }
  }
  return extents;
}

absl::StatusOr<FileSystem::View> LookOnce(const ReadVolume& read, const Place& place) {
  absl::StatusOr<std::unique_ptr<FileSystem>> fs = FileSystem::Open(read, place);
  if (!fs.ok()) return fs.status();
  return (*fs)->Look(/*offline=*/true, [](uint32_t) {});
}

absl::StatusOr<FileSystem::View> LookOnce(const std::string& path) {
  return LookOnce(ReadFile(path), {.offset = 0, .length = std::filesystem::file_size(path)});
}

bool IsSubset(const Extents& part, const Extents& whole) {
  return std::all_of(part.begin(), part.end(), [&](const FileSystem::Extent& extent) {
    auto after = std::upper_bound(
        whole.begin(), whole.end(), extent.offset,
        [](uint64_t offset, const FileSystem::Extent& other) { return offset < other.offset; });
    if (after == whole.begin()) return false;
    const FileSystem::Extent& holds = *std::prev(after);
    return extent.offset + extent.length <= holds.offset + holds.length;
  });
}

uint64_t Bytes(const Extents& extents) {
  uint64_t bytes = 0;
  for (const FileSystem::Extent& extent : extents) bytes += extent.length;
  return bytes;
}

void PrintTo(const FileSystem::Extent& extent, std::ostream* os) {
  *os << "[" << extent.offset << " +" << extent.length << ")";
}

}  // namespace braid::ext4
