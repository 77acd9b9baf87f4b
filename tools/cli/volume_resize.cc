// braid volume resize
#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

// Growing a thick volume zeroes what it gets, which takes as long as the devices take.
constexpr absl::Duration kResizeTimeout = absl::Hours(24);

struct ResizeArgs {
  std::string name;
  uint64_t size_bytes = 0;
  bool force = false;
  bool dry_run = false;
};

absl::Status Resize(Context& context, const ResizeArgs& args) {
  const auto before = context.site().GetVolume(args.name);
  if (!before.ok()) return before.status();
  v1::ResizeVolumeRequest request;
  request.set_name(before->id());
  request.set_size_bytes(args.size_bytes);
  request.set_allow_data_loss(args.force);
  request.set_dry_run(args.dry_run);
  const auto resized = context.site().ResizeVolume(
      request, context.timeout_given ? context.timeout : kResizeTimeout);
  if (!resized.ok()) return resized.status();
  if (context.json) {
    context.out << Json(*resized);
    return absl::OkStatus();
  }
  const v1::Volume& volume = resized->volume();
  // Rounded they might look the same.
  const std::string sizes = absl::StrCat("from ", ExactSize(before->size_bytes()), " to ",
                                         ExactSize(volume.size_bytes()));
  if (args.dry_run) {
    context.out << "volume " << FullName(volume) << " would be resized " << sizes
                << "; nothing was changed\n";
  } else {
    context.out << "resized volume " << FullName(volume) << " " << sizes << "; it takes "
                << FormatSize(volume.allocated_bytes()) << " of device space\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddVolumeResizeCommand(CLI::App& volume, Context& context) {
  auto args = std::make_shared<ResizeArgs>();
  CLI::App* verb = AddVerb(
      volume, "resize",
      "Give a volume another size while it is not attached. Grow the file system on it afterwards; "
      "shrink it before.",
      "braid volume resize db --size 20G\n"
      "braid volume resize db --size 5G --dry-run     # would data be cut off?\n"
      "braid volume resize db --size 5G --force       # cut it off");
  AddVolumeName(*verb, &args->name);
  AddSize(*verb, "--size", &args->size_bytes,
          "What its clients shall see: 64M, 10G, 1.5T; whole sectors of 512 bytes.")
      ->required();
  verb->add_flag("--force", args->force,
                 "Cut off space that is in use too; what was written there is lost.");
  verb->add_flag("--dry-run", args->dry_run, "Say whether it could be done; change nothing.");
  verb->callback(
      [&context, args] { context.action = [&context, args] { return Resize(context, *args); }; });
}

}  // namespace braid::cli
