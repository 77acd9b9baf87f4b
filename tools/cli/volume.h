// How volumes are shown, for `volume`, `status` and `explain`.
#ifndef BRAID_TOOLS_CLI_VOLUME_H_
#define BRAID_TOOLS_CLI_VOLUME_H_

#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "braid/v1/volume.pb.h"
#include "tools/cli/table.h"

namespace braid::cli {

Table VolumeTable(const std::vector<const v1::Volume*>& volumes);

// "striped over 4 in units of 64K, 2 copies"
std::string Shape(const v1::Volume& volume);

// "ready", "preparing 45%"
std::string StateText(const v1::Volume& volume);

// "waits up to 30s for space", as what first writes do when the pool is full.
std::string OnFullText(const v1::Volume& volume);

// "attached on n1 (pid 12)", "ended uncleanly on n1", "-"
std::string AttachmentText(const v1::Attachment& attachment);

Tone HealthTone(v1::VolumeHealth health);

// The argument that names a volume.
void AddVolumeName(CLI::App& verb, std::string* name);

// 0 to 100, rounded down: 100 only when all of it is done.
int Percent(uint64_t done, uint64_t all);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_VOLUME_H_
