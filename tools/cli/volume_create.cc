// braid volume create
//
// The site is always asked to answer at once; waiting until the extents are zeroed is
// done here, by asking again, so that there is something to show meanwhile and a broken
// connection breaks nothing.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json.h"
#include "tools/cli/table.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

// Often enough to look alive and to be quick with small volumes, seldom enough to cost
// the site nothing.
constexpr absl::Duration kFirstPoll = absl::Milliseconds(10);
constexpr absl::Duration kMaxPoll = absl::Milliseconds(250);
// A device that hangs, or a site that cannot commit, never gets further; one that only
// flushes what was zeroed may take minutes.
constexpr absl::Duration kMaxStill = absl::Minutes(10);

struct CreateArgs {
  v1::CreateVolumeRequest request;
  std::string layout;
  uint64_t size_bytes = 0;
  uint64_t stripe_size_bytes = 0;
  uint32_t stripes = 0;
  uint32_t copies = 0;
  bool no_wait = false;
  uint64_t reserve_bytes = 0;
  std::string on_full;
  uint32_t full_timeout_seconds = 0;
};

std::string ProgressLine(const v1::Volume& volume, uint64_t first_bytes, absl::Duration passed) {
  const uint64_t done = volume.prepared_bytes(), all = volume.allocated_bytes();
  std::string line = absl::StrCat("zeroing ", FullName(volume), ": ", Percent(done, all), "% (",
                                  FormatSize(done), " of ", FormatSize(all), ")");
  const double seconds = absl::ToDoubleSeconds(passed);
  if (done > first_bytes && done < all && seconds > 0.5) {
    const double rate = static_cast<double>(done - first_bytes) / seconds;
    absl::StrAppend(
        &line, ", about ",
        FormatDuration(static_cast<int64_t>(static_cast<double>(all - done) / rate) + 1), " left");
  }
  return line;
}

// Asks until the volume is ready. A site that restarts meanwhile goes on where it was,
// so it may be unreachable for up to the timeout.
absl::StatusOr<v1::Volume> WaitUntilReady(Context& context, v1::Volume volume) {
  const InterruptGuard guard;
  const absl::Time start = absl::Now();
  const uint64_t first_bytes = volume.prepared_bytes();
  const std::string id = volume.id();
  const std::string name = FullName(volume);
  absl::Time last_answer = start, last_progress = start;
  absl::Duration pause = kFirstPoll;
  bool line_shown = false;
  const auto end_line = [&] {
    // Back to the start, erase to the end of the line.
    if (line_shown) context.err << "\r\033[K" << std::flush;
    line_shown = false;
  };
  while (volume.state() == v1::VOLUME_STATE_PREPARING) {
    if (context.err_is_terminal && absl::Now() - start > absl::Milliseconds(200)) {
      context.err << "\r\033[K" << ProgressLine(volume, first_bytes, absl::Now() - start)
                  << std::flush;
      line_shown = true;
    }
    absl::SleepFor(pause);
    pause = std::min(pause * 2, kMaxPoll);
    if (guard.interrupted()) {
      end_line();
      return absl::CancelledError(absl::StrCat(
          "stopped waiting; the site goes on preparing ", name, ": see 'braid volume show ",
          Printable(volume.name()), "', or give it up with 'braid volume delete ",
          Printable(volume.name()), "'"));
    }
    absl::StatusOr<v1::Volume> now = context.site().GetVolume(id);
    if (now.ok()) {
      last_answer = absl::Now();
      if (now->prepared_bytes() != volume.prepared_bytes()) last_progress = last_answer;
      volume = *std::move(now);
    } else if (absl::IsNotFound(now.status())) {
      end_line();
      return absl::NotFoundError(
          absl::StrCat("volume ", name, " was deleted while it was being prepared"));
    } else if (!absl::IsUnavailable(now.status()) || absl::Now() - last_answer > context.timeout) {
      end_line();
      return absl::Status(now.status().code(), absl::StrCat("volume ", name,
                                                            " was made, but whether it is ready is "
                                                            "not known: ",
                                                            now.status().message()));
    }
    if (last_answer - last_progress > kMaxStill) {
      end_line();
      return absl::DeadlineExceededError(
          absl::StrCat("volume ", name, " was made, but its preparation has stood still for ",
                       absl::FormatDuration(kMaxStill), "; see 'braid status'"));
    }
    if (volume.state() == v1::VOLUME_STATE_PREPARING && !volume.fault().empty()) {
      end_line();
      return absl::UnavailableError(
          absl::StrCat("volume ", name, " was made, but is not ready: ", volume.fault(),
                       "; delete it with 'braid volume delete ", Printable(volume.name()),
                       "', or restart braidd to try again"));
    }
  }
  end_line();
  if (volume.state() != v1::VOLUME_STATE_READY) {
    return absl::FailedPreconditionError(
        absl::StrCat("volume ", name, " did not become ready: it is ", Word(volume.state())));
  }
  return volume;
}

void PrintChosen(Context& context, const v1::CreateVolumeResponse& created) {
  Table table({{"DEVICE"}, {"CLASS"}, {"NODE"}, {"TAKES", Align::kRight}});
  for (const v1::DeviceShare& share : created.chosen()) {
    table.AddRow({Printable(share.device()), Printable(share.device_class()),
                  Printable(share.node()), FormatSize(share.bytes())});
  }
  if (!table.empty()) context.out << table.ToString(context.color, "  ");
}

absl::Status Create(Context& context, CreateArgs args) {
  v1::CreateVolumeRequest& request = args.request;
  request.set_size_bytes(args.size_bytes);
  request.set_stripes(args.stripes);
  request.set_stripe_size_bytes(args.stripe_size_bytes);
  request.set_copies(args.copies);
  if (!args.layout.empty()) {
    request.set_layout(LayoutFromWord(args.layout).value_or(v1::LAYOUT_UNSPECIFIED));
  }
  request.set_reserve_bytes(args.reserve_bytes);
  if (!args.on_full.empty()) {
    request.set_on_full(args.on_full == "wait" ? v1::ON_FULL_WAIT : v1::ON_FULL_FAIL);
  }
  request.set_full_timeout_seconds(args.full_timeout_seconds);
  request.set_return_immediately(true);
  auto created = context.site().CreateVolume(request);
  if (!created.ok()) return created.status();
  if (!request.dry_run() && !args.no_wait) {
    auto ready = WaitUntilReady(context, created->volume());
    if (!ready.ok()) return ready.status();
    *created->mutable_volume() = *std::move(ready);
  }
  if (context.json) {
    context.out << Json(*created);
    return absl::OkStatus();
  }
  const v1::Volume& volume = created->volume();
  context.out << (request.dry_run() ? "would create volume " : "created volume ")
              << FullName(volume) << ": " << FormatSize(volume.size_bytes()) << ", "
              << Shape(volume);
  if (volume.thin()) {
    context.out << "; takes space as it is written";
    if (volume.reserve_bytes() > 0) {
      context.out << ", " << FormatSize(volume.reserve_bytes()) << " of it set aside";
    }
  } else if (volume.allocated_bytes() > 0) {
    context.out << "; takes " << FormatSize(volume.allocated_bytes()) << " of device space";
  }
  context.out << "\n";
  PrintChosen(context, *created);
  if (request.dry_run()) {
    context.out << "nothing was changed\n";
  } else if (volume.state() == v1::VOLUME_STATE_PREPARING) {
    context.out << "it is being prepared; 'braid volume show " << Printable(volume.name())
                << "' tells when it is ready\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddVolumeCreateCommand(CLI::App& volume, Context& context) {
  auto args = std::make_shared<CreateArgs>();
  CLI::App* verb = AddVerb(
      volume, "create",
      "Build a volume from the site's devices, and wait until it can be attached.",
      "braid volume create db --size 10G                     # on one device after the other\n"
      "braid volume create db --size 10G --copies 2          # mirrored: survives a lost device\n"
      "braid volume create scratch --size 1T --stripes 4     # striped: four devices at once\n"
      "braid volume create big --size 1T --stripes 2 --copies 2 --class ssd\n"
      "braid volume create lake --size 64T --thin            # takes space as it is written\n"
      "braid volume create db --size 10G --copies 2 --dry-run  # what would be chosen");
  verb->add_option_function<std::string>(
          "NAME", [args](const std::string& text) { args->request.set_name(text); },
          "What to call it.")
      ->type_name("NAME")
      ->required();
  AddSize(*verb, "--size", &args->size_bytes,
          "What its clients see: 64M, 10G, 1.5T; whole sectors of 512 bytes.")
      ->required();
  AddChoice(*verb, "--layout", &args->layout, LayoutWords(),
            "How the bytes are spread. --stripes and --copies alone say it too.");
  AddCount(*verb, "--stripes", &args->stripes,
           "Columns that consecutive stripe units alternate over. Default for striped: as many "
           "as there is room for, up to 4.");
  const CLI::Option* stripe_size =
      AddSize(*verb, "--stripe-size", &args->stripe_size_bytes,
              "Bytes of one stripe unit, a power of two. Default: 64K.");
  AddCount(*verb, "--copies", &args->copies,
           "Copies of every byte, each on another device, 1 to 4. Default for mirrored: 2.");
  verb->add_option_function<std::string>(
          "--class", [args](const std::string& text) { args->request.set_device_class(text); },
          "Only devices of this class. Default: any.")
      ->type_name("CLASS");
  CLI::Option* thin = verb->add_flag_callback(
      "--thin", [args] { args->request.set_thin(true); },
      "Take space at the first write, and give it back when it is discarded or reclaimed; the "
      "size may be larger than the pool.");
  AddSize(*verb, "--reserve", &args->reserve_bytes,
          "Bytes of a thin volume whose space is set aside now, so that they can always be "
          "written. Default: 0.")
      ->needs(thin);
  CLI::Option* on_full =
      AddChoice(*verb, "--on-full", &args->on_full, {"fail", "wait"},
                "What first writes do when the pool is full: fail with \"no space\", or wait until "
                "there is some. Default: fail.")
          ->needs(thin);
  const CLI::Option* full_timeout =
      AddCount(*verb, "--full-timeout", &args->full_timeout_seconds,
               "With --on-full wait: fail after this many seconds. Default: wait for ever.")
          ->type_name("SECONDS")
          ->needs(on_full);
  verb->add_flag_callback(
      "--dry-run", [args] { args->request.set_dry_run(true); },
      "Say what would be chosen; change nothing.");
  verb->add_flag("--no-wait", args->no_wait,
                 "Do not wait until its space is zeroed; it cannot be attached before.");
  verb->callback([&context, args, stripe_size, full_timeout] {
    if (full_timeout->count() > 0 && args->on_full != "wait") {
      throw CLI::ValidationError("--full-timeout", "goes with --on-full wait only");
    }
    // To the site 0 means the default, which is not what was typed.
    if (stripe_size->count() > 0 && args->stripe_size_bytes == 0) {
      throw CLI::ValidationError("--stripe-size", "0 is no size of a stripe unit");
    }
    context.action = [&context, args] { return Create(context, *args); };
  });
}

}  // namespace braid::cli
