#include "tools/attach/directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/errno_status.h"

namespace braid::attach {

namespace {

// Someone who locks just as the last one removes the file has locked a file without a name.
constexpr int kLockTries = 100;

std::string ReadWhere(int fd) {
  char buffer[4096];
  const ssize_t got = pread(fd, buffer, sizeof buffer, 0);
  absl::string_view where(buffer, got > 0 ? static_cast<size_t>(got) : 0);
  where = where.substr(0, where.find('\n'));
  return where.empty() ? "this machine" : std::string(where);
}

}  // namespace

absl::StatusOr<Directory> Directory::Open(const std::string& path, absl::string_view volume) {
  // The first attachment of this machine also makes the folder of all of them.
  const std::string parent = path.substr(0, path.rfind('/'));
  if (!parent.empty() && mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("cannot make the folder ", parent));
  }
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("cannot make the folder ", path));
  }
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 0022) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " is not a folder that only its owner, who must be us, can write to; choose "
                     "another with --dir"));
  }
  Directory made;
  made.path_ = path;
  const std::string lock_path = made.File("lock");
  for (int i = 0; i < kLockTries; ++i) {
    UniqueFd fd(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) {
      // The last one removed the folder between our mkdir and here.
      if (errno == ENOENT && (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST)) continue;
      return ErrnoStatus(errno, absl::StrCat("cannot make ", lock_path));
    }
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("cannot lock ", lock_path));
      return absl::AlreadyExistsError(
          absl::StrCat(volume, " is already attached at ", ReadWhere(fd.get())));
    }
    struct stat ours {};
    struct stat named {};
    if (fstat(fd.get(), &ours) == 0 && lstat(lock_path.c_str(), &named) == 0 &&
        ours.st_ino == named.st_ino && ours.st_dev == named.st_dev) {
      made.lock_ = std::move(fd);
      return made;
    }
  }
  return absl::UnavailableError(absl::StrCat(lock_path, " keeps vanishing; try again"));
}

std::string Directory::File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

void Directory::SetWhere(absl::string_view where) {
  const std::string line = absl::StrCat(where, "\n");
  if (ftruncate(lock_.get(), 0) == 0) (void)!pwrite(lock_.get(), line.data(), line.size(), 0);
}

void Directory::Remove() {
  if (!lock_.valid()) return;
  for (const absl::string_view name : {"log", "log.old", "lock"}) {
    (void)unlink(File(name).c_str());
  }
  (void)rmdir(path_.c_str());
  lock_.Reset();
}

}  // namespace braid::attach
