// How many threads nbdkit gives each connection, and how many connections a path opens.
#ifndef BRAID_TOOLS_ATTACH_THREADS_H_
#define BRAID_TOOLS_ATTACH_THREADS_H_

namespace braid::attach {

enum class DeviceKind {
  kPageCache,  // local devices behind the kernel's page cache: only a flush waits
  kSlow,       // any request may wait: a network, a device opened O_DIRECT, a hold
};

inline constexpr int kMaxThreads = 128;
inline constexpr int kMaxConnections = 16;

// nbdkit's -t. `connections` is what the client is expected to open, at least 1.
int ChooseThreads(DeviceKind kind, int connections);

// For the paths that open connections themselves, on a machine of `processors` cores.
int ChooseConnections(int processors);

}  // namespace braid::attach

#endif  // BRAID_TOOLS_ATTACH_THREADS_H_
