// The ext4 file systems of a volume, for reclaim.h.
#ifndef BRAID_NBDKIT_PLUGIN_RECLAIM_EXT4_H_
#define BRAID_NBDKIT_PLUGIN_RECLAIM_EXT4_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "lib/ext4/reclaim.h"
#include "nbdkit-plugin/reclaim.h"

namespace braid {

absl::StatusOr<FoundFileSystems> FindExt4(const ext4::ReadVolume& read, uint64_t volume_bytes);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_RECLAIM_EXT4_H_
