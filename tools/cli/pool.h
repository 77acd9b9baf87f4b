// The table of pools, for `pool list` and `status`.
#ifndef BRAID_TOOLS_CLI_POOL_H_
#define BRAID_TOOLS_CLI_POOL_H_

#include "braid/v1/inventory.pb.h"
#include "tools/cli/table.h"

namespace braid::cli {

Table PoolTable(const v1::ListPoolsResponse& list);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_POOL_H_
