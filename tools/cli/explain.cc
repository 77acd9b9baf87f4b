// braid explain VOL: what a volume is, where it lies, how it is and what to do, in plain
// words.
#include "tools/cli/explain.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

// Of one column and copy: how much lies where, how much of that is stale.
struct Share {
  uint64_t bytes = 0;
  uint64_t stale_bytes = 0;
};
using DeviceShares = std::map<std::string, Share>;
using PlaceMap = std::map<std::pair<uint32_t, uint32_t>, DeviceShares>;  // by (column, leg)

PlaceMap Places(const std::vector<v1::MapRow>& rows) {
  PlaceMap places;
  for (const v1::MapRow& row : rows) {
    Share& share = places[{row.column(), row.leg()}][row.device()];
    share.bytes += row.length_bytes();
    if (row.stale()) share.stale_bytes += row.length_bytes();
  }
  return places;
}

std::string ShapeSentence(const v1::Volume& volume) {
  std::string text =
      absl::StrCat("Volume ", FullName(volume), " holds ", FormatSize(volume.size_bytes()), ". ");
  const bool striped = volume.stripes() > 1, mirrored = volume.copies() > 1;
  if (striped) {
    absl::StrAppend(&text, "It is striped: every ", FormatSize(volume.stripe_size_bytes()),
                    " the next of ", volume.stripes(),
                    " columns takes over, so that several devices work at once. ");
  }
  if (mirrored) {
    absl::StrAppend(&text, striped ? "Each column" : "It", " is mirrored: every byte has ",
                    volume.copies(), " copies on different devices, so that ",
                    volume.copies() == 2 ? "one device" : "all devices but one",
                    " can be lost without losing data.");
  } else {
    absl::StrAppend(&text, striped ? "There" : "It is linear: one device after the other. There",
                    " is one copy of every byte: if a device is lost, what lay on it is lost.");
  }
  return text;
}

std::string PlaceLines(const v1::Volume& volume, const PlaceMap& places,
                       const std::map<std::string, const v1::Device*>& devices) {
  if (places.empty()) return "It takes no device space yet.\n";
  std::string text =
      absl::StrCat("It takes ", FormatSize(volume.allocated_bytes()), " of device space:\n");
  for (const auto& [place, shares] : places) {
    const auto& [column, leg] = place;
    std::vector<std::string> names;
    if (volume.stripes() > 1) names.push_back(absl::StrCat("column ", column));
    if (volume.copies() > 1) names.push_back(absl::StrCat("copy ", uint64_t{leg} + 1));
    std::vector<std::string> parts;
    for (const auto& [device, share] : shares) {
      std::string part = absl::StrCat(FormatSize(share.bytes), " on ", Printable(device));
      if (const auto found = devices.find(device); found != devices.end()) {
        absl::StrAppend(&part, " (", Printable(found->second->path()), " on node ",
                        Printable(found->second->node()), ")");
        if (found->second->state() == v1::DEVICE_STATE_MISSING) part += ", which is missing";
      }
      if (share.stale_bytes > 0) {
        absl::StrAppend(
            &part, ", ",
            share.stale_bytes == share.bytes ? std::string("all") : FormatSize(share.stale_bytes),
            " of it stale");
      }
      parts.push_back(part);
    }
    absl::StrAppend(&text, "  ", absl::StrJoin(names, ", "), names.empty() ? "" : ": ",
                    absl::StrJoin(parts, "; "), "\n");
  }
  return text;
}

// What a thin volume has, what it is promised, and what comes when there is no more.
std::string ThinLines(const v1::Volume& volume) {
  std::string text =
      absl::StrCat("It is thin: space is taken when something is first written. ",
                   FormatSize(volume.mapped_bytes()), " of its ", FormatSize(volume.size_bytes()),
                   " has space so far, and ", FormatSize(volume.reserved_bytes()),
                   " of device space is kept ready for first writes. ");
  absl::StrAppend(&text,
                  volume.reserve_bytes() == 0
                      ? std::string("None of its space is guaranteed: ")
                      : absl::StrCat("Space for ", FormatSize(volume.reserve_bytes()),
                                     " is guaranteed, whatever others take; beyond that, "),
                  "when its pool is full, first writes ", OnFullText(volume),
                  ". What has space can always be written over.\n");
  return text;
}

// How full the pools are that it may take from.
std::string PoolLines(const v1::Volume& volume, const v1::ListPoolsResponse& pools) {
  std::string text;
  for (const v1::Pool& pool : pools.pools()) {
    if (!volume.device_class().empty() && volume.device_class() != pool.device_class()) continue;
    if (pool.state() == v1::POOL_STATE_GOOD || pool.state() == v1::POOL_STATE_UNSPECIFIED) continue;
    const std::string name = Printable(pool.device_class());
    const uint64_t used = pool.allocated_bytes() + pool.reserved_bytes();
    absl::StrAppend(
        &text, "  But pool ", name, " is ",
        pool.state() == v1::POOL_STATE_FULL
            ? std::string("full: a first write found no space")
            : absl::StrCat(Percent(used, pool.capacity_bytes()), "% taken, past the ",
                           pool.state() == v1::POOL_STATE_LOW
                               ? absl::StrCat("first threshold of ", pool.low_percent())
                               : absl::StrCat("second threshold of ", pool.critical_percent()),
                           "%"));
    if (pool.seconds_to_full() > 0) {
      const auto seconds = static_cast<int64_t>(
          std::min<uint64_t>(pool.seconds_to_full(), std::numeric_limits<int64_t>::max()));
      absl::StrAppend(&text, "; at the rate of the last hour the rest lasts ",
                      FormatDuration(seconds));
    }
    absl::StrAppend(&text, ".\n  What to do: add a device of class ", name,
                    " with 'braid device add'; or free space: delete files and discard "
                    "(fstrim) or 'braid volume reclaim' the thin volumes, or delete volumes.\n");
  }
  return text;
}

// Whether what the file system does not use can be given back, and if not, why.
std::string ReclaimLines(const v1::Volume& volume) {
  const std::string command = absl::StrCat("'braid volume reclaim ", Printable(volume.name()), "'");
  std::string text;
  if (volume.reclaimable_bytes() > 0) {
    absl::StrAppend(&text, FormatSize(volume.reclaimable_bytes()),
                    " of device space was unused by its file system when looked at (",
                    FormatTime(volume.reclaimable_unix_seconds()), "). ");
  }
  const v1::Attachment& attachment = volume.attachment();
  if (attachment.held() && attachment.alive() && attachment.read_only()) {
    return absl::StrCat(text, "It cannot be reclaimed while it is attached read-only.\n");
  }
  return absl::StrCat(text, command,
                      " gives back what an ext4 file system in it does not use, mounted or not; "
                      "other file systems give back by discard (fstrim, mount -o discard).\n");
}

std::string SpaceLines(const v1::Volume& volume, const v1::ListPoolsResponse& pools) {
  if (!volume.thin()) return "";
  return absl::StrCat("\n", ThinLines(volume), PoolLines(volume, pools), ReclaimLines(volume));
}

std::string HealthLines(const v1::Volume& volume, const PlaceMap& places,
                        const std::map<std::string, const v1::Device*>& devices) {
  // Of the devices it lies on.
  std::vector<std::string> missing;
  std::set<std::string> stale;
  std::set<std::string> seen;
  for (const auto& [place, shares] : places) {
    for (const auto& [device, share] : shares) {
      if (share.stale_bytes > 0) stale.insert(Printable(device));
      const auto found = devices.find(device);
      if (found != devices.end() && found->second->state() == v1::DEVICE_STATE_MISSING &&
          seen.insert(device).second) {
        missing.push_back(absl::StrCat("device ", Printable(device), " is missing",
                                       found->second->problem().empty() ? "" : ": ",
                                       Printable(found->second->problem())));
      }
    }
  }
  std::string text = absl::StrCat("Its health is ", Word(volume.health()), ".");
  switch (volume.health()) {
    case v1::VOLUME_HEALTH_GOOD:
      if (missing.empty()) {
        absl::StrAppend(&text, volume.copies() > 1 ? " All copies agree." : "",
                        " Nothing needs to be done.\n");
      } else {
        absl::StrAppend(&text, " No write was missed so far.\n");
      }
      break;
    case v1::VOLUME_HEALTH_DEGRADED:
      absl::StrAppend(&text,
                      " No data is lost: reads and writes go on with the copies that are "
                      "in sync");
      if (volume.stale_bytes() > 0) {
        absl::StrAppend(
            &text, ". ", FormatSize(volume.stale_bytes()), " in copies",
            stale.empty() ? "" : absl::StrCat(" on ", JoinAnd({stale.begin(), stale.end()})),
            " missed a write, or may differ after an unclean end; they are not read");
      }
      absl::StrAppend(&text,
                      ".\n  What to do: the next loss may take data, so copy what matters "
                      "into a new volume with all its copies, then delete this one.\n");
      break;
    case v1::VOLUME_HEALTH_FAULTY:
      // Before it is ready there is no data to lose.
      if (volume.state() == v1::VOLUME_STATE_PREPARING) {
        absl::StrAppend(&text, " It is not ready: ", Printable(volume.fault()),
                        ".\n  What to do: see to the device, then restart braidd, which tries "
                        "again; or delete the volume.\n");
        break;
      }
      absl::StrAppend(
          &text, " Data was lost: ",
          volume.fault().empty() ? "the site does not say what" : Printable(volume.fault()),
          ".\n  What to do: save what can still be read, delete the volume, and restore "
          "it from a backup.\n");
      break;
    default:
      absl::StrAppend(&text, "\n");
  }
  for (const std::string& line : missing) {
    absl::StrAppend(&text, "  But ", line,
                    ".\n  What to do: bring the device back at its path; until then what has no "
                    "other copy in sync can be neither read nor written.\n");
  }
  return text;
}

std::string AttachmentLines(const v1::Volume& volume) {
  const v1::Attachment& attachment = volume.attachment();
  const std::string name = Printable(volume.name());
  if (volume.state() == v1::VOLUME_STATE_PREPARING) {
    return absl::StrCat(
        "It is being prepared: its space is zeroed first, so that nobody's old "
        "data shows through, and ",
        Percent(volume.prepared_bytes(), volume.allocated_bytes()),
        "% of that is done. It can be attached when it is ready.\n");
  }
  if (volume.state() == v1::VOLUME_STATE_DELETING) {
    return "It is being deleted and cannot be attached any more.\n";
  }
  if (!attachment.held()) {
    return absl::StrCat(
        attachment.epoch() == 0 ? "It was never attached" : "Nobody has it attached",
        "; 'braid attach ", name, "' makes it usable here.\n");
  }
  if (!attachment.alive()) {
    return absl::StrCat(
        "It was attached on node ", OrDash(attachment.node()),
        ", and that ended without a clean detach (process ", attachment.pid(), " is gone).",
        volume.copies() > 1 ? " At the next attachment one copy of each extent stays, and the "
                              "others become stale, as they may differ."
                            : "",
        "\n  What to do: 'braid attach ", name,
        "' takes it again; check the file system on it before you use it.\n");
  }
  return absl::StrCat("It is attached on node ", OrDash(attachment.node()), " (process ",
                      attachment.pid(), attachment.read_only() ? ", read-only" : "", ") since ",
                      FormatTime(attachment.since_unix_seconds()), "; 'braid detach ", name,
                      "' ends that.\n");
}

absl::Status Explain(Context& context, const std::string& name) {
  const auto volume = context.site().GetVolume(name);
  if (!volume.ok()) return volume.status();
  const auto rows = context.site().GetVolumeMap(volume->id());
  if (!rows.ok()) return rows.status();
  const auto devices = context.site().ListDevices();
  if (!devices.ok()) return devices.status();
  const auto pools = context.site().ListPools();
  if (!pools.ok()) return pools.status();
  if (context.json) {
    v1::GetVolumeResponse response;
    *response.mutable_volume() = *volume;
    context.out << MergeJson({Json(response), JsonList("rows", *rows)});
    return absl::OkStatus();
  }
  context.out << ExplainVolume(*volume, *rows, *devices, *pools);
  return absl::OkStatus();
}

}  // namespace

std::string ExplainVolume(const v1::Volume& volume, const std::vector<v1::MapRow>& rows,
                          const v1::ListDevicesResponse& list, const v1::ListPoolsResponse& pools) {
  std::map<std::string, const v1::Device*> devices;
  for (const v1::Device& device : list.devices()) devices[device.name()] = &device;
  const PlaceMap places = Places(rows);
  const std::string text = absl::StrCat(
      ShapeSentence(volume), "\n\n", PlaceLines(volume, places, devices), SpaceLines(volume, pools),
      "\n", HealthLines(volume, places, devices), "\n", AttachmentLines(volume));
  std::string out;
  for (absl::string_view line : absl::StrSplit(absl::StripSuffix(text, "\n"), '\n')) {
    // Lines of what belongs under the line before are indented, and stay so.
    const size_t indent = absl::StartsWith(line, "  ") ? 2 : 0;
    out += line.empty() ? "\n" : Wrapped("", line, indent);
  }
  return out;
}

void AddExplainCommand(CLI::App& root, Context& context) {
  auto name = std::make_shared<std::string>();
  CLI::App* verb = AddVerb(root, "explain",
                           "Say in plain words what a volume is, where its copies lie, how it is, "
                           "and what to do.",
                           "braid explain db");
  verb->add_option("NAME", *name, "The volume: its name, SITE/NAME, or its UUID.")
      ->type_name("VOLUME")
      ->required();
  verb->callback(
      [&context, name] { context.action = [&context, name] { return Explain(context, *name); }; });
}

}  // namespace braid::cli
