// Files and loop devices that tests make and that are gone when they end.
#ifndef BRAID_LIB_BLOCKDEV_TEST_FILES_H_
#define BRAID_LIB_BLOCKDEV_TEST_FILES_H_

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "lib/base/unique_fd.h"

namespace braid {

[[noreturn]] inline void TestSetupFailed(const char* what) {
  fprintf(stderr, "test setup: %s: %s\n", what, strerror(errno));
  abort();
}

// A sparse file of `size_bytes` in a directory (by default $TMPDIR or /var/tmp, which is
// no tmpfs), unlinked at the end.
class TestFile {
 public:
  explicit TestFile(uint64_t size_bytes, const char* directory = nullptr) {
    if (directory == nullptr) directory = getenv("TMPDIR");
    path_ = std::string(directory != nullptr ? directory : "/var/tmp") + "/braid-test-XXXXXX";
    const UniqueFd fd(mkstemp(path_.data()));
    if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
      TestSetupFailed(path_.c_str());
    }
  }
  ~TestFile() { unlink(path_.c_str()); }
  TestFile(const TestFile&) = delete;
  TestFile& operator=(const TestFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A free loop device over a file. The kernel detaches it at its last close, also when the
// test dies, since it is marked so as soon as it is attached.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    const UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
    const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!backing.valid() || !control.valid()) TestSetupFailed("open loop control");
    loop_config config{};
    config.fd = static_cast<uint32_t>(backing.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    // Another process may take the free one first.
    for (int attempt = 0; attempt < 100; ++attempt) {
      const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) TestSetupFailed("LOOP_CTL_GET_FREE");
      path_ = "/dev/loop" + std::to_string(number);
      fd_.Reset(open(path_.c_str(), O_RDWR | O_CLOEXEC));
      if (fd_.valid() && ioctl(fd_.get(), LOOP_CONFIGURE, &config) == 0) return;
    }
    TestSetupFailed("LOOP_CONFIGURE");
  }

  const std::string& path() const { return path_; }
  std::string name() const { return path_.substr(strlen("/dev/")); }

 private:
  std::string path_;
  UniqueFd fd_;
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_TEST_FILES_H_
