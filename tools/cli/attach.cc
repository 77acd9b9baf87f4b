// braid attach, braid detach
#include "tools/cli/attach.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/local_attach.h"
#include "tools/cli/table.h"
#include "tools/cli/text.h"

namespace braid::cli {
namespace {

namespace fs = std::filesystem;

// What a person types to use it: the device or file, or else the NBD URI.
std::string Where(const v1::LocalAttachment& attachment) {
  return Printable(attachment.path().empty() ? attachment.uri() : attachment.path());
}

// The site's run directory; while the site cannot be reached, the one its socket lies in,
// so that what is attached can be seen and ended without it.
absl::StatusOr<std::string> RunDirectory(Context& context) {
  const auto site = context.site().GetSite();
  if (site.ok()) return site->site().run_dir();
  if (absl::IsUnavailable(site.status()) && !context.control.unix_path.empty()) {
    return fs::path(context.control.unix_path).parent_path().string();
  }
  return site.status();
}

absl::Status List(Context& context) {
  const auto run_dir = RunDirectory(context);
  if (!run_dir.ok()) return run_dir.status();
  const v1::LocalAttachments list = ListAttachments(*run_dir, kAskTimeout);
  if (context.json) {
    context.out << JsonList("attachments", list.attachments());
    return absl::OkStatus();
  }
  if (list.attachments().empty()) {
    context.out << "nothing is attached on this machine\n";
    return absl::OkStatus();
  }
  Table table({{"VOLUME"},
               {"VIA"},
               {"WHERE"},
               {"MODE"},
               {"PID", Align::kRight},
               {"RESTARTS", Align::kRight},
               {"SINCE"}});
  for (const v1::LocalAttachment& a : list.attachments()) {
    table.AddRow({a.volume().empty() ? Printable(a.volume_id()) : Printable(a.volume()),
                  Printable(a.via()), Where(a), a.read_only() ? "read-only" : "read-write",
                  a.pid() == 0 ? "-" : absl::StrCat(a.pid()), absl::StrCat(a.restarts()),
                  FormatTime(a.since_unix_seconds())});
  }
  context.out << table.ToString(context.color);
  for (const v1::LocalAttachment& a : list.attachments()) {
    if (!a.last_error().empty()) {
      context.out << Printable(a.volume().empty() ? a.volume_id() : a.volume()) << ": "
                  << Printable(a.last_error()) << "\n";
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Attached> AttachVolume(Context& context, const v1::Volume& volume,
                                      const AttachArgs& args) {
  const auto site = context.site().GetSite();
  if (!site.ok()) return site.status();
  const std::string directory = AttachDirectory(site->site().run_dir(), volume.id());
  if (const auto present = AskAttachment(directory, kAskTimeout); present.ok()) {
    return absl::AlreadyExistsError(absl::StrCat(
        FullName(volume), " is already attached at ", Where(*present), " (", present->via(),
        ", pid ", present->pid(), "); end that with 'braid detach ", volume.name(), "'"));
  } else if (!absl::IsNotFound(present.status())) {
    return present.status();
  }
  // --socket says where the server listens, which matters to a socket only.
  const std::string wanted = args.via == "auto" && !args.socket.empty() ? "socket" : args.via;
  const auto via = ChooseVia(wanted, wanted == "socket" ? Machine() : Machine::Look());
  if (!via.ok()) return via.status();
  const auto program = FindAttachProgram();
  if (!program.ok()) return program.status();
  absl::Status made = MakeAttachParent(site->site().run_dir());
  if (!made.ok()) return made;

  std::vector<std::string> arguments = {"serve",
                                        "--volume",
                                        absl::StrCat(volume.site(), "/", volume.name()),
                                        "--volume-id",
                                        volume.id(),
                                        "--control",
                                        context.control.text,
                                        "--dir",
                                        directory,
                                        "--via",
                                        via->via};
  if (!args.socket.empty()) {
    // braid-attach leaves this directory.
    arguments.insert(arguments.end(), {"--socket", fs::absolute(args.socket).string()});
  }
  if (args.read_only) arguments.push_back("--read-only");
  if (volume.thin()) arguments.push_back("--thin");
  if (args.connections != 0) {
    arguments.insert(arguments.end(), {"--connections", absl::StrCat(args.connections)});
  }
  if (args.threads != 0) {
    arguments.insert(arguments.end(), {"--threads", absl::StrCat(args.threads)});
  }
  auto attachment = StartAttachment(*program, arguments, context.timeout);
  if (!attachment.ok()) return attachment.status();
  return Attached{*std::move(attachment), directory, via->via, via->reason};
}

namespace {

absl::Status Attach(Context& context, const AttachArgs& args) {
  const auto volume = context.site().GetVolume(args.name);
  if (!volume.ok()) return volume.status();
  const auto attached = AttachVolume(context, *volume, args);
  if (!attached.ok()) return attached.status();
  if (!attached->reason.empty()) {
    context.err << "chose " << attached->via << ": " << attached->reason << "\n";
  }
  const v1::LocalAttachment& attachment = attached->attachment;
  if (context.json) {
    context.out << Json(attachment);
  } else if (attachment.path().empty()) {
    // Alone on its line, for $(braid attach ... --via socket).
    context.out << Where(attachment) << "\n";
  } else {
    context.out << "attached " << FullName(*volume) << " at " << Where(attachment) << " ("
                << Printable(attachment.via()) << ", pid " << attachment.pid() << ")\n";
  }
  return absl::OkStatus();
}

struct DetachArgs {
  std::string name;
  bool force = false;
};

// The directory of the volume's attachment. The site knows the volume's UUID; when it
// cannot be asked, the attachments themselves are.
absl::StatusOr<std::string> FindAttachment(Context& context, const std::string& name, bool force) {
  const auto run_dir = RunDirectory(context);
  if (!run_dir.ok()) return run_dir.status();
  const auto volume = context.site().GetVolume(name);
  if (volume.ok()) return AttachDirectory(*run_dir, volume->id());
  if (!absl::IsUnavailable(volume.status())) return volume.status();
  std::vector<std::string> found;
  const v1::LocalAttachments list = ListAttachments(*run_dir, kAskTimeout);
  for (const v1::LocalAttachment& a : list.attachments()) {
    const std::vector<std::string> parts = absl::StrSplit(a.volume(), '/');
    if (a.volume() == name || a.volume_id() == name || parts.back() == name) {
      found.push_back(a.volume_id());
    }
  }
  if (found.size() == 1 && !force) {
    // The data would be safe, but the site would see an end it was not told of, and take
    // the copies of a mirror for different.
    return absl::FailedPreconditionError(absl::StrCat(
        "the site cannot be told that ", name,
        " ends cleanly, and of a mirrored volume would then trust one copy only; start braidd "
        "first, or detach all the same with --force"));
  }
  if (found.size() == 1) return AttachDirectory(*run_dir, found[0]);
  if (found.size() > 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "several volumes named ", name, " are attached here; say which as SITE/", name));
  }
  return absl::UnavailableError(absl::StrCat(
      "no volume ", name,
      " is attached on this machine, as far as can be told: ", volume.status().message()));
}

absl::Status Detach(Context& context, const DetachArgs& args) {
  const auto directory = FindAttachment(context, args.name, args.force);
  if (!directory.ok()) return directory.status();
  const auto before = AskAttachment(*directory, kAskTimeout);
  bool shown = false;
  // It takes as long as the last writes take, so it is waited for unless told otherwise.
  absl::Status detached = DetachAttachment(
      *directory, args.force, context.timeout_given ? context.timeout : absl::Hours(24 * 365),
      [&](absl::string_view text) {
        if (!context.err_is_terminal) return;
        context.err << "\r\033[K" << Printable(text) << std::flush;
        shown = true;
      });
  if (shown) context.err << "\r\033[K" << std::flush;
  if (absl::IsNotFound(detached)) {
    return absl::NotFoundError(absl::StrCat("volume ", args.name,
                                            " is not attached on this machine; see "
                                            "'braid attach --list'"));
  }
  if (!detached.ok()) return detached;
  const v1::LocalAttachment attachment = before.ok() ? *before : v1::LocalAttachment();
  if (context.json) {
    context.out << Json(attachment);
  } else {
    context.out << "detached "
                << Printable(attachment.volume().empty() ? args.name : attachment.volume()) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddAttachCommands(CLI::App& root, Context& context) {
  auto args = std::make_shared<AttachArgs>();
  CLI::App* verb =
      AddVerb(root, "attach",
              "Make a volume usable on this machine, as /dev/nbdX, as a file, or as an NBD socket.",
              "braid attach db                             # the best way this machine has\n"
              "nbdinfo $(braid attach db --via socket)     # prints the NBD URI\n"
              "braid attach db --via fuse --read-only\n"
              "braid attach --list                         # what is attached on this machine");
  CLI::Option* name =
      verb->add_option("NAME", args->name, "The volume: its name, SITE/NAME, or its UUID.")
          ->type_name("VOLUME");
  const CLI::Option* list =
      verb->add_flag("--list", args->list, "Show what is attached on this machine instead.")
          ->excludes(name);
  AddChoice(*verb, "--via", &args->via, {"auto", "nbd", "fuse", "socket"},
            "nbd makes /dev/nbdX; fuse shows the volume as one file, through nbdfuse; socket "
            "only prints the server's NBD URI. Default: auto, the first of these that works.");
  verb->add_option("--socket", args->socket,
                   "Where the server listens, with --via socket. Default: in the run directory.")
      ->type_name("PATH");
  verb->add_flag("--read-only", args->read_only, "Refuse writes.");
  AddCount(*verb, "--connections", &args->connections,
           "Connections from the kernel or nbdfuse to the server. Default: chosen by the device.");
  AddCount(*verb, "--threads", &args->threads,
           "Threads of the server per connection. Default: chosen by the device.");
  verb->callback([&context, args, name, list] {
    if (name->count() == 0 && list->count() == 0) throw CLI::RequiredError("NAME");
    if (!args->socket.empty() && args->via != "auto" && args->via != "socket") {
      throw CLI::ValidationError("--socket", "goes with --via socket only");
    }
    context.action = [&context, args] {
      return args->list ? List(context) : Attach(context, *args);
    };
  });

  auto detach = std::make_shared<DetachArgs>();
  verb = AddVerb(root, "detach", "End an attachment on this machine, after the last write is safe.",
                 "umount /mnt && braid detach db\n"
                 "braid detach db --force     # although something still has it open");
  verb->add_option("NAME", detach->name, "The volume: its name, SITE/NAME, or its UUID.")
      ->type_name("VOLUME")
      ->required();
  verb->add_flag("--force", detach->force,
                 "Detach although it is in use, whose users get I/O errors, or although the site "
                 "cannot be reached, which then takes it for an unclean end.");
  verb->callback([&context, detach] {
    context.action = [&context, detach] { return Detach(context, *detach); };
  });
}

}  // namespace braid::cli
