#include "lib/format/records.h"

#include <cassert>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "lib/base/checked.h"
#include "lib/format/codec.h"
#include "lib/format/device_range.h"
#include "lib/mapping/page_table.h"

namespace braid {
namespace {

constexpr char kStoreKind = 'f', kSiteKind = 's', kDeviceKind = 'd', kVolumeKind = 'v',
               kRunKind = 'r', kGrantKind = 'g';
// Of stores with format kStoreVersion. Format 1 had volumes without the fields of thin ones,
// and runs that counted large extents, both as version 1.
constexpr uint8_t kVolumeVersion = 2, kRunVersion = 2, kRecordVersion = 1;  // 1: all others

absl::Status Damaged(absl::string_view what, absl::string_view how) {
  return absl::DataLossError(absl::StrCat(what, " is damaged: ", how));
}

// A record is what its fields say, they are all there is, and each is in its range.
template <class Record>
absl::StatusOr<Record> Checked(absl::string_view what, const ByteReader& reader, Record record,
                               const absl::Status& check) {
  if (!reader.done()) return Damaged(what, "its fields do not fill it");
  if (!check.ok()) return Damaged(what, check.message());
  return record;
}

absl::Status CheckLayout(const VolumeRecord& v) {
  bool fits = false;
  switch (v.layout) {
    case Layout::kLinear:
      fits = v.columns == 1 && v.legs == 1;
      break;
    case Layout::kStriped:
      fits = v.columns > 1 && v.legs == 1;
      break;
    case Layout::kMirrored:
      fits = v.columns == 1 && v.legs > 1;
      break;
    case Layout::kStripedMirrors:
      fits = v.columns > 1 && v.legs > 1;
      break;
  }
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layout ", static_cast<int>(v.layout),
                                                 " does not have ", v.columns, " columns and ",
                                                 v.legs, " legs"));
}

absl::Status CheckAttachment(const AttachmentRecord& a) {
  if (!a.node.empty()) {
    if (absl::Status s = CheckName("holder's node", a.node); !s.ok()) return s;
  }
  if (a.held && (a.node.empty() || a.epoch == Epoch(0))) {
    return absl::InvalidArgumentError("attachment is held by no node or in no epoch");
  }
  if (a.journal != Epoch(0) && a.journal >= a.epoch) {
    return absl::InvalidArgumentError("attachment took over a journal that is not older");
  }
  if (a.since_unix_seconds < 0) return absl::InvalidArgumentError("attachment time is negative");
  return absl::OkStatus();
}

void WriteAttachment(ByteWriter& writer, const AttachmentRecord& a) {
  writer.U64(a.epoch.value());
  writer.Bool(a.held);
  writer.Bool(a.read_only);
  writer.U64(a.journal.value());
  writer.Text(a.node);
  writer.Id(a.boot_id);
  writer.U64(a.pid);
  writer.I64(a.since_unix_seconds);
}

AttachmentRecord ReadAttachment(ByteReader& reader) {
  AttachmentRecord a;
  a.epoch = Epoch(reader.U64());
  a.held = reader.Bool();
  a.read_only = reader.Bool();
  a.journal = Epoch(reader.U64());
  a.node = reader.Text();
  a.boot_id = reader.Id();
  a.pid = reader.U64();
  a.since_unix_seconds = reader.I64();
  return a;
}

absl::Status CheckThin(const VolumeRecord& r) {
  if (r.on_full != OnFull::kFail && r.on_full != OnFull::kWait) {
    return absl::InvalidArgumentError(absl::StrCat("on_full ", static_cast<int>(r.on_full)));
  }
  if (r.on_full == OnFull::kFail && r.full_timeout_seconds != 0) {
    return absl::InvalidArgumentError("a timeout, but full does not wait");
  }
  if (r.full_timeout_seconds > kMaxFullTimeoutSeconds) {
    return absl::InvalidArgumentError(absl::StrCat("a timeout of ", r.full_timeout_seconds, " s"));
  }
  if (r.thin) {
    if (r.reserve_bytes % kSmallExtentBytes != 0 || r.reserve_bytes > r.size_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("a reserve of ", r.reserve_bytes, " bytes"));
    }
    // Preparing zeroes all that a volume has.
    if (r.state == VolumeState::kPreparing) {
      return absl::InvalidArgumentError("thin, yet in preparation");
    }
    return absl::OkStatus();
  }
  if (r.reserve_bytes != 0 || r.on_full != OnFull::kFail || r.map_sequence != 0) {
    return absl::InvalidArgumentError("not thin, yet with fields of a thin volume");
  }
  if (r.devices.empty()) return absl::InvalidArgumentError("not thin, yet on no device");
  return absl::OkStatus();
}

// At most kMaxFaultBytes, not ending within a UTF-8 character.
absl::string_view CutFault(absl::string_view fault) {
  if (fault.size() <= kMaxFaultBytes) return fault;
  size_t end = kMaxFaultBytes;
  while (end > 0 && (static_cast<uint8_t>(fault[end]) & 0xc0) == 0x80) --end;
  return fault.substr(0, end);
}

}  // namespace

absl::Status CheckSite(const SiteRecord& r) {
  if (r.cluster.IsNil()) return absl::InvalidArgumentError("cluster UUID is nil");
  if (r.site.IsNil()) return absl::InvalidArgumentError("site UUID is nil");
  return CheckName("site name", r.name);
}

absl::Status CheckDevice(const DeviceRecord& r) {
  if (r.id.IsNil()) return absl::InvalidArgumentError("device UUID is nil");
  if (absl::Status s = CheckName("device name", r.name); !s.ok()) return s;
  if (absl::Status s = CheckName("node name", r.node); !s.ok()) return s;
  if (absl::Status s = CheckPath("device path", r.path); !s.ok()) return s;
  if (absl::Status s = CheckName("device class", r.device_class); !s.ok()) return s;
  if (r.created_unix_seconds < 0) return absl::InvalidArgumentError("creation time is negative");
  return CheckDeviceRange(r.device_bytes, r.data_offset, r.data_bytes);
}

absl::Status CheckVolume(const VolumeRecord& r) {
  if (r.id.IsNil()) return absl::InvalidArgumentError("volume UUID is nil");
  if (absl::Status s = CheckName("volume name", r.name); !s.ok()) return s;
  if (auto g = Geometry::Make(r.size_bytes, r.columns, r.stripe_bytes, r.legs); !g.ok()) {
    return g.status();
  }
  if (absl::Status s = CheckLayout(r); !s.ok()) return s;
  if (!r.device_class.empty()) {
    if (absl::Status s = CheckName("device class", r.device_class); !s.ok()) return s;
  }
  if (r.devices.size() > kMaxDevices) {
    return absl::InvalidArgumentError(absl::StrCat(r.devices.size(), " devices"));
  }
  absl::flat_hash_set<Uuid> seen;
  for (const Uuid& device : r.devices) {
    if (device.IsNil()) return absl::InvalidArgumentError("a device's UUID is nil");
    if (!seen.insert(device).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("device ", device.ToString(), " stands in it twice"));
    }
  }
  if (r.state < VolumeState::kPreparing || r.state > VolumeState::kDeleting) {
    return absl::InvalidArgumentError(absl::StrCat("state ", static_cast<int>(r.state)));
  }
  if (r.created_unix_seconds < 0) return absl::InvalidArgumentError("creation time is negative");
  if (absl::Status s = CheckThin(r); !s.ok()) return s;
  return CheckAttachment(r.attachment);
}

absl::Status CheckRunBounds(const MapRun& run) {
  if (run.column >= kMaxColumns) {
    return absl::InvalidArgumentError(absl::StrCat("column ", run.column));
  }
  if (run.leg >= kMaxLegs) return absl::InvalidArgumentError(absl::StrCat("leg ", run.leg));
  if (run.count == 0 || !RangeFits(run.unit.value(), run.count, kMaxDeviceUnits) ||
      !CheckedAdd(run.first.value(), run.count)) {
    return absl::InvalidArgumentError(absl::StrCat(run.count, " units from ", run.first.value(),
                                                   " at device unit ", run.unit.value()));
  }
  return absl::OkStatus();
}

absl::Status CheckGrantBounds(const Grant& grant) {
  if (grant.legs.empty() || grant.legs.size() > kMaxLegs) {
    return absl::InvalidArgumentError(absl::StrCat(grant.legs.size(), " legs"));
  }
  if (grant.count == 0) return absl::InvalidArgumentError("no units");
  for (size_t leg = 0; leg < grant.legs.size(); ++leg) {
    const UnitPlace& place = grant.legs[leg];
    if (!RangeFits(place.unit.value(), grant.count, kMaxDeviceUnits)) {
      return absl::InvalidArgumentError(
          absl::StrCat(grant.count, " units at device unit ", place.unit.value()));
    }
    if (place.stale) return absl::InvalidArgumentError(absl::StrCat("leg ", leg, " is stale"));
    for (size_t other = 0; other < leg; ++other) {
      if (grant.legs[other].device == place.device) {
        return absl::InvalidArgumentError(
            absl::StrCat("legs ", other, " and ", leg, " both on device ", place.device.value()));
      }
    }
  }
  return absl::OkStatus();
}

std::string EncodeSite(const SiteRecord& r) {
  assert(CheckSite(r).ok());
  ByteWriter writer = BeginFrame(kSiteKind, kRecordVersion);
  writer.Id(r.cluster);
  writer.Id(r.site);
  writer.Text(r.name);
  writer.U64(r.revision.value());
  return FinishFrame(std::move(writer));
}

absl::StatusOr<SiteRecord> DecodeSite(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "site record";
  auto body = OpenFrame(kWhat, kSiteKind, kRecordVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  SiteRecord r;
  r.cluster = reader.Id();
  r.site = reader.Id();
  r.name = reader.Text();
  r.revision = Revision(reader.U64());
  return Checked(kWhat, reader, r, CheckSite(r));
}

std::string EncodeDevice(const DeviceRecord& r) {
  assert(CheckDevice(r).ok());
  ByteWriter writer = BeginFrame(kDeviceKind, kRecordVersion);
  writer.Id(r.id);
  writer.Text(r.name);
  writer.Text(r.node);
  writer.Text(r.path);
  writer.Text(r.device_class);
  writer.U64(r.device_bytes);
  writer.U64(r.data_offset);
  writer.U64(r.data_bytes);
  writer.I64(r.created_unix_seconds);
  writer.U64(r.revision.value());
  return FinishFrame(std::move(writer));
}

absl::StatusOr<DeviceRecord> DecodeDevice(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "device record";
  auto body = OpenFrame(kWhat, kDeviceKind, kRecordVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  DeviceRecord r;
  r.id = reader.Id();
  r.name = reader.Text();
  r.node = reader.Text();
  r.path = reader.Text();
  r.device_class = reader.Text();
  r.device_bytes = reader.U64();
  r.data_offset = reader.U64();
  r.data_bytes = reader.U64();
  r.created_unix_seconds = reader.I64();
  r.revision = Revision(reader.U64());
  return Checked(kWhat, reader, r, CheckDevice(r));
}

std::string EncodeVolume(const VolumeRecord& r) {
  assert(CheckVolume(r).ok());
  ByteWriter writer = BeginFrame(kVolumeKind, kVolumeVersion);
  writer.Id(r.id);
  writer.Text(r.name);
  writer.U64(r.size_bytes);
  writer.U8(static_cast<uint8_t>(r.layout));
  writer.U32(r.columns);
  writer.U64(r.stripe_bytes);
  writer.U32(r.legs);
  writer.Text(r.device_class);
  writer.U8(static_cast<uint8_t>(r.state));
  writer.Text(CutFault(r.fault));
  writer.Bool(r.thin);
  writer.U64(r.reserve_bytes);
  writer.U8(static_cast<uint8_t>(r.on_full));
  writer.U64(r.full_timeout_seconds);
  writer.U64(r.map_sequence);
  WriteAttachment(writer, r.attachment);
  writer.I64(r.created_unix_seconds);
  writer.U64(r.revision.value());
  writer.U32(static_cast<uint32_t>(r.devices.size()));
  for (const Uuid& device : r.devices) writer.Id(device);
  return FinishFrame(std::move(writer));
}

absl::StatusOr<VolumeRecord> DecodeVolume(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "volume record";
  auto body = OpenFrame(kWhat, kVolumeKind, kVolumeVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  VolumeRecord r;
  r.id = reader.Id();
  r.name = reader.Text();
  r.size_bytes = reader.U64();
  r.layout = static_cast<Layout>(reader.U8());
  r.columns = reader.U32();
  r.stripe_bytes = reader.U64();
  r.legs = reader.U32();
  r.device_class = reader.Text();
  r.state = static_cast<VolumeState>(reader.U8());
  r.fault = reader.Text();
  r.thin = reader.Bool();
  r.reserve_bytes = reader.U64();
  r.on_full = static_cast<OnFull>(reader.U8());
  r.full_timeout_seconds = reader.U64();
  r.map_sequence = reader.U64();
  r.attachment = ReadAttachment(reader);
  r.created_unix_seconds = reader.I64();
  r.revision = Revision(reader.U64());
  const uint32_t devices = reader.Count(Uuid::kBytes);
  r.devices.reserve(devices);
  for (uint32_t i = 0; i < devices; ++i) r.devices.push_back(reader.Id());
  if (r.fault.size() > kMaxFaultBytes) return Damaged(kWhat, "its fault is too long");
  return Checked(kWhat, reader, r, CheckVolume(r));
}

std::string EncodeRun(const MapRun& run) {
  assert(CheckRunBounds(run).ok());
  ByteWriter writer = BeginFrame(kRunKind, kRunVersion);
  writer.U64(run.count);
  writer.U16(run.device.value());
  writer.U64(run.unit.value());
  writer.Bool(run.stale);
  return FinishFrame(std::move(writer));
}

absl::StatusOr<MapRun> DecodeRun(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "map run";
  auto body = OpenFrame(kWhat, kRunKind, kRunVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  MapRun run;
  run.count = reader.U64();
  run.device = DeviceIndex(reader.U16());
  run.unit = DeviceUnit(reader.U64());
  run.stale = reader.Bool();
  return Checked(kWhat, reader, run, CheckRunBounds(run));
}

std::string EncodeGrant(const GrantRecord& r) {
  assert(CheckGrantBounds(r.grant).ok());
  ByteWriter writer = BeginFrame(kGrantKind, kRecordVersion);
  writer.Bool(r.handed_out);
  writer.U64(r.grant.count);
  writer.U32(static_cast<uint32_t>(r.grant.legs.size()));
  for (const UnitPlace& leg : r.grant.legs) {
    writer.U16(leg.device.value());
    writer.U64(leg.unit.value());
  }
  return FinishFrame(std::move(writer));
}

absl::StatusOr<GrantRecord> DecodeGrant(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "grant";
  auto body = OpenFrame(kWhat, kGrantKind, kRecordVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  GrantRecord r;
  r.handed_out = reader.Bool();
  r.grant.count = reader.U64();
  const uint32_t legs = reader.Count(/*item_bytes=*/2 + 8);
  for (uint32_t i = 0; i < legs; ++i) {
    UnitPlace place;
    place.device = DeviceIndex(reader.U16());
    place.unit = DeviceUnit(reader.U64());
    r.grant.legs.push_back(place);
  }
  return Checked(kWhat, reader, r, CheckGrantBounds(r.grant));
}

std::string EncodeStoreVersion(uint32_t version) {
  ByteWriter writer = BeginFrame(kStoreKind, kRecordVersion);
  writer.U32(version);
  return FinishFrame(std::move(writer));
}

absl::StatusOr<uint32_t> DecodeStoreVersion(absl::string_view bytes) {
  constexpr absl::string_view kWhat = "store's format record";
  auto body = OpenFrame(kWhat, kStoreKind, kRecordVersion, bytes);
  if (!body.ok()) return body.status();
  ByteReader reader(*body);
  const uint32_t version = reader.U32();
  if (!reader.done() || version == 0) return Damaged(kWhat, "no version");
  if (version < kStoreVersion) {
    return absl::UnimplementedError(absl::StrCat(
        "the store has format ", version, ", from a Braid without thin volumes, this one reads ",
        kStoreVersion, "; use the Braid that wrote it"));
  }
  if (version > kStoreVersion) {
    return absl::UnimplementedError(absl::StrCat("the store has format ", version,
                                                 ", this Braid reads ", kStoreVersion,
                                                 "; use the newer Braid that wrote it"));
  }
  return version;
}

}  // namespace braid
