// Waits for a set of device requests.
//
// A request completes in one of three ways: inside Submit; later, on a thread of the
// device's own; or later, by work that only the waiting thread can do (its io_uring has
// to be entered and its completions taken). For the last, the device hands the group an
// IoDriver, and Wait drives it until the driven requests are complete; then it sleeps
// for those that other threads complete.
//
// Groups nest: a device may, inside Submit or Drive, submit and wait for a group of its
// own on the same thread. The inner Wait may complete requests of the outer group on the
// way, since one driver serves all groups of its thread; completing only counts, it
// never calls back into a device.
#ifndef BRAID_LIB_BLOCKDEV_IO_GROUP_H_
#define BRAID_LIB_BLOCKDEV_IO_GROUP_H_

#include <atomic>
#include <cstdint>

namespace braid {

// Moves requests of the calling thread forward.
class IoDriver {
 public:
  // Blocks until at least one request of this thread has moved forward. Called only
  // while the thread has requests with this driver.
  virtual void Drive() = 0;

 protected:
  ~IoDriver() = default;
};

// Requests are submitted and waited for by one thread; they may complete on any. Lives
// until Wait has returned. Costs no system call when all complete inside Submit.
class IoGroup {
 public:
  // `expected` requests will be submitted in this group. It tells a device whether
  // there is anything to be gained by going asynchronous; exactly as many must be
  // submitted before Wait. Below 2^31.
  explicit IoGroup(uint32_t expected);
  ~IoGroup();
  IoGroup(const IoGroup&) = delete;
  IoGroup& operator=(const IoGroup&) = delete;

  uint32_t expected() const { return expected_; }

  // Called by the device, once per request, after DeviceIo::error is set, on any
  // thread. The group and the request may be gone when this returns.
  void Complete();

  // For a device whose request needs the waiting thread: AddDriven inside Submit, then
  // CompleteDriven instead of Complete, both on the submitting thread. All driven
  // requests of a group have the same driver.
  void AddDriven(IoDriver& driver);
  uint32_t driven() const { return driven_; }  // and not complete
  void CompleteDriven();

  // Returns when every request has completed; their results are visible then.
  void Wait();

 private:
  const uint32_t expected_;
  // Of the submitting thread only.
  uint32_t driven_ = 0;
  IoDriver* driver_ = nullptr;
  // Requests not complete yet, and kSleeping once Wait needs to be woken.
  std::atomic<uint32_t> pending_;
};

}  // namespace braid

#endif  // BRAID_LIB_BLOCKDEV_IO_GROUP_H_
