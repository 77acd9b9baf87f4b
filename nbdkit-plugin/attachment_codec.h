// Attachments and map changes as messages, and back. What comes from the wire is checked:
// whatever a message says, what is decoded from it fits the volume and its devices.
#ifndef BRAID_NBDKIT_PLUGIN_ATTACHMENT_CODEC_H_
#define BRAID_NBDKIT_PLUGIN_ATTACHMENT_CODEC_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "braid/v1/attachment.pb.h"
#include "lib/mapping/geometry.h"
#include "lib/mapping/map_change.h"
#include "lib/mapping/map_run.h"
#include "nbdkit-plugin/attachment.h"

namespace braid {

// DataLoss: the control plane granted (or answered) what cannot be. The error of all
// decoders.
absl::Status Impossible(absl::string_view what);

absl::StatusOr<Attachment> DecodeHeader(const v1::AttachmentHeader& header);
absl::StatusOr<MapRun> DecodeAttachedRun(const Geometry& geometry, uint64_t device_count,
                                         const v1::AttachedRun& row);
// Each within its device.
absl::StatusOr<std::vector<Grant>> DecodeGrants(
    const Geometry& geometry, absl::Span<const DeviceIdentity> devices,
    const google::protobuf::RepeatedPtrField<v1::Grant>& rows);
// Adds to `devices`; after an error it is as it was.
absl::Status DecodeDevices(const google::protobuf::RepeatedPtrField<v1::AttachedDevice>& rows,
                           std::vector<DeviceIdentity>& devices);

void EncodeGrant(const Grant& grant, v1::Grant* row);
void EncodeMapChange(const MapChange& change, uint32_t legs, v1::MapChange* row);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_ATTACHMENT_CODEC_H_
