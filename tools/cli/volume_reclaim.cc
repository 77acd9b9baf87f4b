// braid volume reclaim
//
// The holder of the volume does the work. When nobody holds it, this command attaches it
// for the time, without any client, and detaches it whatever comes of it.
#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "tools/cli/attach.h"
#include "tools/cli/commands.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json.h"
#include "tools/cli/local_attach.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

// Nothing is written through an attachment that is only for this, so it ends soon.
constexpr absl::Duration kDetachTimeout = absl::Minutes(5);

struct ReclaimArgs {
  std::string name;
  bool dry_run = false;
};

std::string ProgressLine(const v1::Volume& volume, const v1::ReclaimReport& report) {
  std::string line = absl::StrCat("reclaiming ", FullName(volume), ": ");
  if (report.groups_total() > 0) {
    absl::StrAppend(&line, Percent(report.groups_done(), report.groups_total()), "% of ",
                    report.groups_total(), " block groups, ");
  }
  absl::StrAppend(&line, FormatSize(report.free_bytes()), " unused");
  if (report.released_bytes() > 0) {
    absl::StrAppend(&line, ", ", FormatSize(report.released_bytes()), " given back");
  }
  return line;
}

void PrintResult(Context& context, const v1::Volume& volume, const v1::ReclaimReport& report,
                 bool dry_run) {
  const std::string found = FormatSize(report.free_bytes());
  if (dry_run) {
    context.out << "volume " << FullName(volume) << ": " << found
                << " has space and is not used by the file system; nothing was changed\n";
  } else {
    context.out << "reclaimed volume " << FullName(volume) << ": "
                << FormatSize(report.released_bytes()) << " given back, of " << found
                << " that the file system does not use\n";
  }
  context.out << "  looked at " << OrDash(report.file_system()) << ", "
              << Count(report.groups_total(), "block group");
  if (report.groups_unchanged() > 0) {
    context.out << " (" << report.groups_unchanged() << " not changed since the last time)";
  }
  context.out << "\n";
  if (report.deferred_bytes() > 0) {
    context.out << "  " << FormatSize(report.deferred_bytes())
                << " was written or freed too recently to be sure; try again in a minute\n";
  }
  if (volume.copies() > 1) {
    context.out << "  each byte takes " << volume.copies() << " of device space\n";
  }
}

// The directory of an attachment made for this; "" when the volume has a holder.
absl::StatusOr<std::string> AttachForNow(Context& context, const v1::Volume& volume) {
  if (!volume.thin() || (volume.attachment().held() && volume.attachment().alive())) return "";
  const auto attached = AttachVolume(context, volume, {.via = "socket"});
  if (attached.ok()) return attached->directory;
  return absl::Status(attached.status().code(),
                      absl::StrCat("volume ", FullName(volume),
                                   " is not attached, and cannot be attached for the time: ",
                                   attached.status().message()));
}

absl::Status Reclaim(Context& context, const ReclaimArgs& args) {
  const auto volume = context.site().GetVolume(args.name);
  if (!volume.ok()) return volume.status();
  const InterruptGuard guard;
  const auto directory = AttachForNow(context, *volume);
  if (!directory.ok()) return directory.status();

  bool shown = false;
  v1::ReclaimVolumeRequest request;
  request.set_name(volume->id());
  request.set_dry_run(args.dry_run);
  const auto answer = context.site().ReclaimVolume(
      request,
      [&](const v1::ReclaimReport& report) {
        if (!context.err_is_terminal) return;
        // Back to the start, erase to the end of the line.
        context.err << "\r\033[K" << ProgressLine(*volume, report) << std::flush;
        shown = true;
      },
      [&] { return guard.interrupted(); });
  if (shown) context.err << "\r\033[K" << std::flush;

  absl::Status detached;
  if (!directory->empty()) {
    detached =
        DetachAttachment(*directory, /*force=*/false, kDetachTimeout, [](absl::string_view) {});
  }
  if (!answer.ok() && guard.interrupted()) {
    return absl::CancelledError(
        absl::StrCat("stopped; what was given back before stays so, and no data of ",
                     FullName(*volume), " was touched"));
  }
  if (!answer.ok()) return answer.status();
  if (context.json) {
    context.out << Json(*answer);
  } else {
    PrintResult(context, *volume, answer->report(), args.dry_run);
  }
  if (detached.ok()) return detached;
  return absl::Status(detached.code(),
                      absl::StrCat("reclaimed, but volume ", FullName(*volume),
                                   " could not be detached again: ", detached.message()));
}

}  // namespace

void AddVolumeReclaimCommand(CLI::App& volume, Context& context) {
  auto args = std::make_shared<ReclaimArgs>();
  CLI::App* verb = AddVerb(
      volume, "reclaim",
      "Find the space in a thin volume that the ext4 file system in it no longer uses, and give it "
      "back; mounted or not. A volume that is not attached is attached for the time.",
      "braid volume reclaim db --dry-run     # how much would it be?\n"
      "braid volume reclaim db\n"
      "braid volume reclaim db --json | jq -r .report.released_bytes");
  AddVolumeName(*verb, &args->name);
  verb->add_flag("--dry-run", args->dry_run, "Only find it; change nothing.");
  verb->callback(
      [&context, args] { context.action = [&context, args] { return Reclaim(context, *args); }; });
}

}  // namespace braid::cli
