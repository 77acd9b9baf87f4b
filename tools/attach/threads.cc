#include "tools/attach/threads.h"

#include <algorithm>

namespace braid::attach {

// Measured by ./measure-threads (docs/PERFORMANCE.md, "Threads per connection"): nbdkit
// file, pinned to one core, fio's nbd engine on the other, operations a second, medians:
//
//                                       -t 1     -t 2     -t 4    -t 16
//   page cache, 4K randread d1, 1 conn  16,141   15,978   15,899   16,110
//   page cache, 4K randread d1, 2 conn  41,323   33,441   33,225   33,932
//   page cache, 4K randread d32        186,038  177,351  180,885  181,101
//   page cache, 4K randwrite d32       232,807  225,953  219,865  223,103
//   page cache, 1M read d8, 1 conn       2,232    2,819    2,768    2,257
//   page cache, 1M write d8, 1 conn      1,758    2,454    2,553    2,444
//   1 ms slower, 4K randread d32           909    1,823    3,635   14,626
//   reads beside flushes to a disk, 1    7,743   15,509   30,905   35,210
//   reads beside flushes to a disk, 2   17,987   47,244   30,310   39,935
//
// One thread wins what is small and never waits, by 3 % (20 % at depth 1 over two
// connections), and loses everything else: large requests 26 to 45 %, and whatever shares
// a connection with a flush a factor of two to four. A volume with a file system flushes,
// so one thread is never the default, although it would avoid nbdkit 1.32's abort when a
// client hangs up with requests in flight: the clients we start ourselves (the kernel,
// nbdfuse) do not do that while they are used, and any other hurts its own attachment.
// About sixteen threads in all carry the flush case; more of them only add wake-ups.
// Where any request may wait, a connection needs as many threads as it has requests in
// flight: 128 is the kernel client's limit. So it is for thin volumes, whose first writes are
// held while the pool is full; threads that sleep cost nothing but their stacks.
int ChooseThreads(DeviceKind kind, int connections) {
  if (kind == DeviceKind::kSlow) return kMaxThreads;
  constexpr int kInAll = 16;
  constexpr int kFewest = 4;
  return std::max(kFewest, kInAll / std::max(connections, 1));
}

// One for each core, as a connection is served by threads of its own; beyond four the
// client's queues are what is full.
int ChooseConnections(int processors) { return std::clamp(processors, 1, 4); }

}  // namespace braid::attach
