// braid volume list | show | map | delete
#include "tools/cli/volume.h"

#include <algorithm>
#include <iostream>
#include <limits>

#include "absl/numeric/int128.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/text.h"

namespace braid::cli {

int Percent(uint64_t done, uint64_t all) {
  if (done >= all) return 100;
  return static_cast<int>(absl::uint128(done) * 100 / all);
}

Tone HealthTone(v1::VolumeHealth health) {
  if (health == v1::VOLUME_HEALTH_GOOD) return Tone::kPlain;
  return health == v1::VOLUME_HEALTH_DEGRADED ? Tone::kWarning : Tone::kAlarm;
}

std::string Shape(const v1::Volume& volume) {
  std::string text = Word(volume.layout());
  if (volume.stripes() > 1) {
    absl::StrAppend(&text, " over ", volume.stripes(), " columns in units of ",
                    FormatSize(volume.stripe_size_bytes()));
  }
  if (volume.copies() > 1) absl::StrAppend(&text, ", ", volume.copies(), " copies");
  if (volume.thin()) absl::StrAppend(&text, ", thin");
  return text;
}

std::string StateText(const v1::Volume& volume) {
  if (volume.state() != v1::VOLUME_STATE_PREPARING) return Word(volume.state());
  return absl::StrCat(Word(volume.state()), " ",
                      Percent(volume.prepared_bytes(), volume.allocated_bytes()), "%");
}

std::string OnFullText(const v1::Volume& volume) {
  if (volume.on_full() != v1::ON_FULL_WAIT) return "fail at once with \"no space\"";
  if (volume.full_timeout_seconds() == 0) return "wait until there is space";
  // Of any length; what is shown is bounded.
  const auto seconds = static_cast<int64_t>(
      std::min<uint64_t>(volume.full_timeout_seconds(), std::numeric_limits<int64_t>::max()));
  return absl::StrCat("wait up to ", FormatDuration(seconds), " for space, then fail");
}

std::string AttachmentText(const v1::Attachment& attachment) {
  if (!attachment.held()) return "-";
  if (!attachment.alive()) return absl::StrCat("ended uncleanly on ", OrDash(attachment.node()));
  return absl::StrCat(OrDash(attachment.node()), " (pid ", attachment.pid(),
                      attachment.read_only() ? ", read-only)" : ")");
}

Table VolumeTable(const std::vector<const v1::Volume*>& volumes) {
  Table table({{"NAME"},
               {"SIZE", Align::kRight},
               {"LAYOUT"},
               {"STRIPES", Align::kRight},
               {"COPIES", Align::kRight},
               {"CLASS"},
               {"SPACE"},
               {"TAKES", Align::kRight},
               {"STATE"},
               {"HEALTH"},
               {"ATTACHED"}});
  for (const v1::Volume* volume : volumes) {
    table.AddRow({FullName(*volume),
                  FormatSize(volume->size_bytes()),
                  Word(volume->layout()),
                  absl::StrCat(volume->stripes()),
                  absl::StrCat(volume->copies()),
                  OrDash(volume->device_class()),
                  volume->thin() ? "thin" : "thick",
                  FormatSize(volume->allocated_bytes()),
                  StateText(*volume),
                  {Word(volume->health()), HealthTone(volume->health())},
                  AttachmentText(volume->attachment())});
  }
  return table;
}

namespace {

absl::Status List(Context& context) {
  const auto volumes = context.site().ListVolumes();
  if (!volumes.ok()) return volumes.status();
  if (context.json) {
    context.out << JsonList("volumes", *volumes);
    return absl::OkStatus();
  }
  if (volumes->empty()) {
    context.out << "no volumes yet; build one with 'braid volume create NAME --size 10G'\n";
    return absl::OkStatus();
  }
  std::vector<const v1::Volume*> shown;
  for (const v1::Volume& volume : *volumes) shown.push_back(&volume);
  context.out << VolumeTable(shown).ToString(context.color);
  return absl::OkStatus();
}

absl::Status Show(Context& context, const std::string& name) {
  const auto volume = context.site().GetVolume(name);
  if (!volume.ok()) return volume.status();
  if (context.json) {
    v1::GetVolumeResponse response;
    *response.mutable_volume() = *volume;
    context.out << Json(response);
    return absl::OkStatus();
  }
  std::vector<std::string> devices;
  for (const std::string& device : volume->devices()) devices.push_back(Printable(device));
  const auto line = [&](absl::string_view label, const std::string& text,
                        Tone tone = Tone::kPlain) {
    const std::string padding(label.size() < 12 ? 12 - label.size() : 1, ' ');
    context.out << std::string(label) << padding << Toned(text, tone, context.color) << "\n";
  };
  line("volume", FullName(*volume));
  line("id", OrDash(volume->id()));
  line("size", FormatSize(volume->size_bytes()));
  line("layout", Shape(*volume));
  line("class", volume->device_class().empty() ? "any" : Printable(volume->device_class()));
  line("state", StateText(*volume));
  line("health", Word(volume->health()), HealthTone(volume->health()));
  if (!volume->fault().empty()) line("fault", Printable(volume->fault()), Tone::kAlarm);
  line("takes", absl::StrCat(FormatSize(volume->allocated_bytes()), " of device space"));
  if (volume->stale_bytes() > 0) {
    line("stale", absl::StrCat(FormatSize(volume->stale_bytes()), " of it, not read any more"),
         Tone::kWarning);
  }
  if (volume->thin()) {
    line("mapped",
         absl::StrCat(FormatSize(volume->mapped_bytes()), " of ", FormatSize(volume->size_bytes()),
                      " has space; it is taken at the first write"));
    line("reserved", absl::StrCat(FormatSize(volume->reserved_bytes()),
                                  " of device space more is its own, for first writes"));
    line("guaranteed", volume->reserve_bytes() == 0
                           ? "no space"
                           : absl::StrCat("space for ", FormatSize(volume->reserve_bytes()),
                                          ", whatever others take"));
    line("when full", absl::StrCat("first writes ", OnFullText(*volume)));
    if (volume->reclaimable_unix_seconds() != 0) {
      line("reclaimable",
           absl::StrCat(FormatSize(volume->reclaimable_bytes()), " of device space, as found ",
                        FormatTime(volume->reclaimable_unix_seconds())));
    }
  }
  line("devices", devices.empty() ? "-" : absl::StrJoin(devices, ", "));
  std::string attached = AttachmentText(volume->attachment());
  if (volume->attachment().held()) {
    absl::StrAppend(&attached, " since ", FormatTime(volume->attachment().since_unix_seconds()));
  }
  line("attached", attached);
  line("epoch", absl::StrCat(volume->attachment().epoch()));
  line("created", FormatTime(volume->created_unix_seconds()));
  line("revision", absl::StrCat(volume->revision()));
  return absl::OkStatus();
}

absl::Status Map(Context& context, const std::string& name) {
  const auto rows = context.site().GetVolumeMap(name);
  if (!rows.ok()) return rows.status();
  if (context.json) {
    context.out << JsonList("rows", *rows);
    return absl::OkStatus();
  }
  Table table({{"VOLUME OFFSET", Align::kRight},
               {"COLUMN", Align::kRight},
               {"UNITS"},
               {"COPY", Align::kRight},
               {"DEVICE"},
               {"DEVICE OFFSET", Align::kRight},
               {"LENGTH", Align::kRight},
               {"STATE"}});
  for (const v1::MapRow& row : *rows) {
    const std::string units =
        row.unit_count() <= 1
            ? absl::StrCat(row.first_unit())
            : absl::StrCat(row.first_unit(), "-", row.first_unit() + (row.unit_count() - 1));
    table.AddRow({ExactSize(row.volume_offset_bytes()), absl::StrCat(row.column()), units,
                  absl::StrCat(uint64_t{row.leg()} + 1), Printable(row.device()),
                  ExactSize(row.device_offset_bytes()), ExactSize(row.length_bytes()),
                  row.stale() ? Cell("stale", Tone::kWarning) : Cell("in sync")});
  }
  context.out << table.ToString(context.color);
  return absl::OkStatus();
}

struct DeleteArgs {
  std::string name;
  bool dry_run = false;
  bool yes = false;
};

absl::Status Delete(Context& context, const DeleteArgs& args) {
  v1::DeleteVolumeRequest request;
  request.set_name(args.name);
  request.set_dry_run(args.dry_run);
  if (context.in_is_terminal && context.err_is_terminal && !args.dry_run && !args.yes) {
    const auto volume = context.site().GetVolume(args.name);
    if (!volume.ok()) return volume.status();
    context.err << "Delete volume " << FullName(*volume) << " of "
                << FormatSize(volume->size_bytes()) << "? Its data cannot be brought back. [y/N] "
                << std::flush;
    std::string answer;
    std::getline(std::cin, answer);
    answer = absl::AsciiStrToLower(absl::StripAsciiWhitespace(answer));
    if (answer != "y" && answer != "yes") {
      return absl::CancelledError("not deleted; nothing was changed");
    }
    // The volume that was shown, not one that took its name since.
    request.set_name(volume->id());
  }
  const auto deleted = context.site().DeleteVolume(request);
  if (!deleted.ok()) return deleted.status();
  if (context.json) {
    context.out << Json(*deleted);
    return absl::OkStatus();
  }
  const v1::Volume& volume = deleted->volume();
  if (args.dry_run) {
    context.out << "volume " << FullName(volume) << " of " << FormatSize(volume.size_bytes())
                << " would be deleted, and " << FormatSize(volume.allocated_bytes())
                << " of device space freed; nothing was changed\n";
  } else {
    context.out << "deleted volume " << FullName(volume) << "; "
                << FormatSize(volume.allocated_bytes()) << " of device space is being freed\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddVolumeName(CLI::App& verb, std::string* name) {
  verb.add_option("NAME", *name, "The volume: its name, SITE/NAME, or its UUID.")
      ->type_name("VOLUME")
      ->required();
}

void AddVolumeCommands(CLI::App& root, Context& context) {
  CLI::App* volume =
      AddNoun(root, "volume", "What clients see: sizes of bytes woven from devices.");
  AddVolumeCreateCommand(*volume, context);
  AddVolumeResizeCommand(*volume, context);
  AddVolumeReclaimCommand(*volume, context);

  CLI::App* verb = AddVerb(*volume, "list", "Show the site's volumes, one a line.",
                           "braid volume list\n"
                           "braid volume list --json | jq -r '.volumes[].name'");
  verb->callback([&context] { context.action = [&context] { return List(context); }; });

  auto name = std::make_shared<std::string>();
  verb = AddVerb(*volume, "show", "Show everything about one volume.",
                 "braid volume show db\n"
                 "braid volume show db --json");
  AddVolumeName(*verb, name.get());
  verb->callback(
      [&context, name] { context.action = [&context, name] { return Show(context, *name); }; });

  name = std::make_shared<std::string>();
  verb = AddVerb(*volume, "map",
                 "Show which ranges of a volume lie on which ranges of which devices, one row "
                 "per copy.",
                 "braid volume map db\n"
                 "braid volume map db --json | jq '.rows[] | select(.stale)'");
  AddVolumeName(*verb, name.get());
  verb->callback(
      [&context, name] { context.action = [&context, name] { return Map(context, *name); }; });

  auto args = std::make_shared<DeleteArgs>();
  verb =
      AddVerb(*volume, "delete", "Delete a volume for good; asks first when typed at a terminal.",
              "braid volume delete db --dry-run\n"
              "braid volume delete db --yes");
  AddVolumeName(*verb, &args->name);
  verb->add_flag("--dry-run", args->dry_run, "Say what would be deleted; change nothing.");
  verb->add_flag("--yes", args->yes, "Do not ask.");
  verb->callback(
      [&context, args] { context.action = [&context, args] { return Delete(context, *args); }; });
}

}  // namespace braid::cli
