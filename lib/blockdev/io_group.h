// Waits for a set of device requests.
#ifndef BRAID_LIB_BLOCKDEV_IO_GROUP_H_
#define BRAID_LIB_BLOCKDEV_IO_GROUP_H_

#include <atomic>
#include <cstdint>

namespace braid {

// Requests are submitted and waited for by one thread; they may complete on any.
// Costs no system call when all complete inside Submit.
class IoGroup {
 public:
  // `expected` requests will be submitted in this group. It tells a device whether
  // there is anything to be gained by going asynchronous; exactly as many must be
  // submitted before Wait.
  explicit IoGroup(uint32_t expected) : expected_(expected), pending_(expected) {}
  IoGroup(const IoGroup&) = delete;
  IoGroup& operator=(const IoGroup&) = delete;

  uint32_t expected() const { return expected_; }

  // Called by the device, once per request, after DeviceIo::error is set. The group and
  // the request may be gone when this returns.
  void Complete();

  // Returns when every request has completed; their results are visible then.
  void Wait();

 private:
  const uint32_t expected_;
  std::atomic<uint32_t> pending_;
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_IO_GROUP_H_
