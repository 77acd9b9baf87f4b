// What a caller asks of a new volume, made whole and checked. Pure.
#ifndef BRAID_CONTROLPLANE_CORE_VOLUME_SPEC_H_
#define BRAID_CONTROLPLANE_CORE_VOLUME_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/format/records.h"
#include "lib/mapping/geometry.h"

namespace braid {

// As in CreateVolumeRequest: 0, "" and nullopt leave the choice to us.
struct VolumeSpec {
  std::string name;
  uint64_t size_bytes = 0;
  std::optional<Layout> layout;
  uint32_t stripes = 0;
  uint64_t stripe_bytes = 0;
  uint32_t copies = 0;
  std::string device_class;
  bool thin = false;
  // Of thin volumes only.
  uint64_t reserve_bytes = 0;
  std::optional<OnFull> on_full;
  uint64_t full_timeout_seconds = 0;
};

// InvalidArgument unless a volume can have this size.
absl::Status CheckVolumeSize(uint64_t size_bytes);

struct VolumePlan {
  Layout layout = Layout::kLinear;
  // Shapes that would do, the most wanted first; more than one when the number of stripes
  // was left to us.
  std::vector<Geometry> shapes;
};

// InvalidArgument says which part is wrong and what would be right.
absl::StatusOr<VolumePlan> PlanVolume(const VolumeSpec& spec);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_VOLUME_SPEC_H_
