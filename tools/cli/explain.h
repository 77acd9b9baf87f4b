// A volume in plain words.
#ifndef BRAID_TOOLS_CLI_EXPLAIN_H_
#define BRAID_TOOLS_CLI_EXPLAIN_H_

#include <string>
#include <vector>

#include "braid/v1/inventory.pb.h"
#include "braid/v1/volume.pb.h"

namespace braid::cli {

// Shape, places, space, health and what to do about it, attachment. Pure.
std::string ExplainVolume(const v1::Volume& volume, const std::vector<v1::MapRow>& rows,
                          const v1::ListDevicesResponse& devices,
                          const v1::ListPoolsResponse& pools);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_EXPLAIN_H_
