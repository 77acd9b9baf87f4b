// A whole site without gRPC, over a medium and a host that outlive it: destroyed and made
// again it is braidd restarted.
#ifndef BRAID_CONTROLPLANE_CORE_SITE_FOR_TEST_H_
#define BRAID_CONTROLPLANE_CORE_SITE_FOR_TEST_H_

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "controlplane/core/attachments.h"
#include "controlplane/core/fake_host.h"
#include "controlplane/core/inventory.h"
#include "controlplane/core/pools.h"
#include "controlplane/core/preparer.h"
#include "controlplane/core/site_state.h"
#include "controlplane/core/spaces.h"
#include "controlplane/core/volumes.h"
#include "lib/metadata/memory_store.h"

namespace braid {

// Leaves something at every 64 KiB of [begin, end) that no volume may show.
inline void LeaveSecrets(BlockDevice& device, uint64_t begin, uint64_t end) {
  const std::string secret(kSectorBytes, 's');
  for (uint64_t offset = begin; offset < end; offset += kSmallExtentBytes) {
    if (!device.Write(offset, absl::MakeConstSpan(secret)).ok()) std::abort();
  }
}

// Whether none of that is left where `run` lies.
inline bool HidesSecrets(BlockDevice& device, const MapRun& run) {
  std::string sector(kSectorBytes, 'x');
  for (uint64_t i = 0; i < run.count; ++i) {
    const uint64_t offset = (run.unit.value() + i) * kSmallExtentBytes;
    if (!device.Read(offset, absl::MakeSpan(sector)).ok()) return false;
    if (sector.find_first_not_of('\0') != std::string::npos) return false;
  }
  return true;
}

struct SiteForTest {
  static absl::StatusOr<std::unique_ptr<SiteForTest>> Open(std::shared_ptr<MemoryMedium> medium,
                                                           FakeHost* host,
                                                           const std::string& name = "berlin") {
    auto site = std::make_unique<SiteForTest>();
    absl::StatusOr<std::unique_ptr<MetadataStore>> store = OpenMemoryStore(std::move(medium));
    if (!store.ok()) return store.status();
    site->store = *std::move(store);
    absl::StatusOr<std::unique_ptr<SiteState>> state =
        SiteState::Load(site->store.get(), host, {.name = name, .node = "n1"});
    if (!state.ok()) return state.status();
    site->state = *std::move(state);
    site->attachments = std::make_unique<Attachments>(site->state.get(), "/locks");
    if (absl::Status freed = site->attachments->FreeAfterRestart(); !freed.ok()) return freed;
    site->pools = std::make_unique<Pools>(site->state.get(), Pools::Thresholds());
    site->spaces =
        std::make_unique<Spaces>(site->state.get(), site->attachments.get(), site->pools.get());
    site->preparer = std::make_unique<Preparer>(site->state.get());
    site->inventory = std::make_unique<Inventory>(site->state.get());
    site->volumes =
        std::make_unique<Volumes>(site->state.get(), site->preparer.get(), site->attachments.get());
    return site;
  }

  absl::Status AddDevice(const std::string& path, const std::string& node = "") {
    return inventory->AddDevice({.path = path, .device_class = "ssd", .node = node}).status();
  }
  // And waits until it is ready.
  absl::Status Create(const VolumeSpec& spec) {
    absl::StatusOr<CreatedVolume> created = volumes->Create(spec, /*dry_run=*/false);
    if (!created.ok()) return created.status();
    return volumes->AwaitReady(created->status.volume->record.id, [] { return false; }).status();
  }
  uint64_t FreeBytes() const {
    uint64_t bytes = 0;
    for (const DeviceUse& use : state->Devices()) bytes += use.free_bytes;
    return bytes;
  }

  // In the order in which each needs the ones above.
  std::unique_ptr<MetadataStore> store;
  std::unique_ptr<SiteState> state;
  std::unique_ptr<Attachments> attachments;
  std::unique_ptr<Pools> pools;
  std::unique_ptr<Spaces> spaces;
  std::unique_ptr<Preparer> preparer;
  std::unique_ptr<Inventory> inventory;
  std::unique_ptr<Volumes> volumes;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_SITE_FOR_TEST_H_
