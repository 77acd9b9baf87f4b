// For tests: records of a small site, and a store's whole contents to compare.
#ifndef BRAID_LIB_METADATA_SAMPLE_RECORDS_H_
#define BRAID_LIB_METADATA_SAMPLE_RECORDS_H_

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "lib/metadata/metadata_store.h"

namespace braid {

// Not random, so that histories can be told in advance.
inline Uuid SampleId(uint8_t kind, uint64_t number) {
  std::array<uint8_t, Uuid::kBytes> bytes{};
  bytes[0] = kind;
  for (size_t i = 0; i < 8; ++i) bytes[15 - i] = static_cast<uint8_t>(number >> (8 * i));
  return Uuid(bytes);
}

inline SiteRecord SampleSite(uint64_t revision) {
  return {SampleId('c', 1), SampleId('s', 1), "berlin", Revision(revision)};
}

inline DeviceRecord SampleDevice(uint64_t number, uint64_t revision = 1) {
  DeviceRecord r;
  r.id = SampleId('d', number);
  r.name = absl::StrCat("disk", number);
  r.node = "server1";
  r.path = absl::StrCat("/srv/disk", number);
  r.device_class = "ssd";
  r.device_bytes = kGiB;
  r.data_offset = 4 * kMiB;
  r.data_bytes = kGiB - 4 * kMiB;
  r.revision = Revision(revision);
  return r;
}

inline VolumeRecord SampleVolume(uint64_t number, uint64_t revision = 1) {
  VolumeRecord r;
  r.id = SampleId('v', number);
  r.name = absl::StrCat("volume", number);
  r.size_bytes = kGiB;
  r.layout = Layout::kMirrored;
  r.legs = 2;
  r.devices = {SampleId('d', 1), SampleId('d', 2)};
  r.revision = Revision(revision);
  return r;
}

inline std::vector<MapRun> SampleRuns(uint64_t count, uint64_t unit) {
  std::vector<MapRun> runs;
  for (uint64_t i = 0; i < count; ++i) {
    runs.push_back({0, static_cast<uint32_t>(i % 2), ColumnUnit(i / 2 * 300), 1 + i % 7,
                    DeviceIndex(static_cast<uint16_t>(i % 2)), DeviceUnit(unit + 64 * i),
                    i % 5 == 0});
  }
  return runs;
}

inline std::vector<GrantRecord> SampleGrants(uint64_t count, uint64_t unit) {
  std::vector<GrantRecord> grants;
  for (uint64_t i = 0; i < count; ++i) {
    const auto first = static_cast<uint16_t>(i % 2);
    GrantRecord grant;
    grant.handed_out = i % 3 == 0;
    grant.grant.count = 1 + i % 64;
    grant.grant.legs = {
        {DeviceIndex(first), DeviceUnit(unit + 64 * i), false},
        {DeviceIndex(static_cast<uint16_t>(1 - first)), DeviceUnit(unit + 64 * i + 7), false}};
    grants.push_back(grant);
  }
  return grants;
}

// All that one revision of a growing site holds, in one batch.
inline MetadataBatch SampleBatch(uint64_t revision) {
  MetadataBatch batch;
  batch.PutSite(SampleSite(revision));
  // Grants have no call that replaces them all: a volume's deletion takes the old ones.
  batch.DeleteVolume(SampleId('v', 1));
  batch.PutVolume(SampleVolume(1, revision));
  batch.ReplaceRuns(SampleId('v', 1), SampleRuns(1 + revision % 40, revision * 64));
  for (const GrantRecord& grant : SampleGrants(revision % 7, revision * 64)) {
    batch.PutGrant(SampleId('v', 1), grant);
  }
  return batch;
}

struct StoreContents {
  SiteRecord site;
  std::vector<DeviceRecord> devices;
  std::vector<VolumeRecord> volumes;
  std::vector<std::pair<Uuid, MapRun>> runs;  // of the volumes there are
  std::vector<std::pair<Uuid, GrantRecord>> grants;
  friend bool operator==(const StoreContents&, const StoreContents&) = default;
};

inline absl::StatusOr<StoreContents> ReadContents(MetadataReader& store) {
  StoreContents all;
  if (auto site = store.ReadSite(); site.ok()) {
    all.site = *site;
  } else if (!absl::IsNotFound(site.status())) {
    return site.status();
  }
  absl::Status s = store.ForEachDevice([&](const DeviceRecord& r) {
    all.devices.push_back(r);
    return absl::OkStatus();
  });
  if (!s.ok()) return s;
  s = store.ForEachVolume([&](const VolumeRecord& r) {
    all.volumes.push_back(r);
    return absl::OkStatus();
  });
  if (!s.ok()) return s;
  for (const VolumeRecord& volume : all.volumes) {
    s = store.ForEachRun(volume.id, [&](const MapRun& run) {
      all.runs.emplace_back(volume.id, run);
      return absl::OkStatus();
    });
    if (!s.ok()) return s;
    s = store.ForEachGrant(volume.id, [&](const GrantRecord& grant) {
      all.grants.emplace_back(volume.id, grant);
      return absl::OkStatus();
    });
    if (!s.ok()) return s;
  }
  return all;
}

// What the store holds after SampleBatch(revision) alone.
inline StoreContents SampleContents(uint64_t revision) {
  StoreContents all;
  all.site = SampleSite(revision);
  all.volumes = {SampleVolume(1, revision)};
  // The store's order: by column, leg, first unit.
  for (uint32_t leg : {0u, 1u}) {
    for (const MapRun& run : SampleRuns(1 + revision % 40, revision * 64)) {
      if (run.leg == leg) all.runs.emplace_back(SampleId('v', 1), run);
    }
  }
  // By device and unit of the first leg.
  for (uint16_t device : {uint16_t{0}, uint16_t{1}}) {
    for (const GrantRecord& grant : SampleGrants(revision % 7, revision * 64)) {
      if (grant.grant.legs[0].device == DeviceIndex(device)) {
        all.grants.emplace_back(SampleId('v', 1), grant);
      }
    }
  }
  return all;
}

}  // namespace braid

#endif  // BRAID_LIB_METADATA_SAMPLE_RECORDS_H_
