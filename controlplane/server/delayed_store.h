// A store whose commits take longer, for tests and benches of what must not wait for them
// (braidd --test-commit-delay-ms).
#ifndef BRAID_CONTROLPLANE_SERVER_DELAYED_STORE_H_
#define BRAID_CONTROLPLANE_SERVER_DELAYED_STORE_H_

#include <memory>

#include "absl/time/time.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

// As `store`, but each Commit waits for `delay` first: nothing is durable before.
std::unique_ptr<MetadataStore> DelayCommits(std::unique_ptr<MetadataStore> store,
                                            absl::Duration delay);

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_SERVER_DELAYED_STORE_H_
