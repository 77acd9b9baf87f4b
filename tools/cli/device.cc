// braid device add | list | remove
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/table.h"
#include "tools/cli/text.h"

namespace braid::cli {
namespace {

absl::Status Add(Context& context, v1::AddDeviceRequest request) {
  // The site is asked for an absolute path; what people type is relative to where they
  // are. On a site elsewhere only absolute paths make sense, and they stay as they are.
  if (!request.path().empty()) {
    std::error_code error;
    const auto path = std::filesystem::absolute(request.path(), error).lexically_normal();
    if (!error) request.set_path(path.string());
  }
  const auto added = context.site().AddDevice(request);
  if (!added.ok()) return added.status();
  if (context.json) {
    context.out << Json(*added);
    return absl::OkStatus();
  }
  const v1::Device& device = added->device();
  context.out << "added device " << Printable(device.name()) << ": " << Printable(device.path())
              << ", class " << Printable(device.device_class()) << ", "
              << FormatSize(device.capacity_bytes()) << " for volumes\n";
  return absl::OkStatus();
}

absl::Status List(Context& context) {
  const auto list = context.site().ListDevices();
  if (!list.ok()) return list.status();
  if (context.json) {
    context.out << JsonList("devices", list->devices());
    return absl::OkStatus();
  }
  if (list->devices().empty()) {
    context.out << "no devices yet; add one with 'braid device add PATH --class ssd'\n";
    return absl::OkStatus();
  }
  Table table({{"NAME"},
               {"CLASS"},
               {"STATE"},
               {"CAPACITY", Align::kRight},
               {"USED", Align::kRight},
               {"RESERVED", Align::kRight},
               {"FREE", Align::kRight},
               {"VOLUMES", Align::kRight},
               {"NODE"},
               {"PATH"}});
  for (const v1::Device& device : list->devices()) {
    const bool online = device.state() == v1::DEVICE_STATE_ONLINE;
    table.AddRow({Printable(device.name()),
                  Printable(device.device_class()),
                  {Word(device.state()), online ? Tone::kPlain : Tone::kAlarm},
                  FormatSize(device.capacity_bytes()),
                  FormatSize(device.allocated_bytes()),
                  FormatSize(device.reserved_bytes()),
                  FormatSize(device.free_bytes()),
                  absl::StrCat(device.volume_count()),
                  Printable(device.node()),
                  Printable(device.path())});
  }
  context.out << table.ToString(context.color);
  for (const v1::Device& device : list->devices()) {
    if (!device.problem().empty()) {
      context.out << Printable(device.name()) << ": " << Printable(device.problem()) << "\n";
    }
  }
  return absl::OkStatus();
}

absl::Status Remove(Context& context, const v1::RemoveDeviceRequest& request) {
  const auto removed = context.site().RemoveDevice(request);
  if (!removed.ok()) return removed.status();
  if (context.json) {
    context.out << Json(*removed);
    return absl::OkStatus();
  }
  const v1::Device& device = removed->device();
  if (request.dry_run()) {
    context.out << "device " << Printable(device.name()) << " (" << Printable(device.path())
                << ") would be removed and its label wiped; nothing was changed\n";
  } else {
    context.out << "removed device " << Printable(device.name()) << " (" << Printable(device.path())
                << ")\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddDeviceCommands(CLI::App& root, Context& context) {
  CLI::App* device = AddNoun(root, "device", "The real disks, partitions and files of the site.");

  auto add = std::make_shared<v1::AddDeviceRequest>();
  CLI::App* verb = AddVerb(
      *device, "add",
      "Label a disk, partition or file and take it into the pool; what was on it is lost.",
      "braid device add /dev/sdb --class ssd\n"
      "braid device add /srv/disk1.img --class hdd-slow --name d1   # a file made beforehand\n"
      "braid device add /dev/sdc --class ssd --node rack2           # copies go to other nodes");
  verb->add_option_function<std::string>(
          "PATH", [add](const std::string& text) { add->set_path(text); },
          "The disk, partition or file, on the control plane's machine.")
      ->type_name("PATH")
      ->required();
  verb->add_option_function<std::string>(
          "--class", [add](const std::string& text) { add->set_device_class(text); },
          "What kind it is: nvme, ssd, hdd-fast, hdd-slow, tape, or a word of your own.")
      ->type_name("CLASS")
      ->required();
  verb->add_option_function<std::string>(
          "--name", [add](const std::string& text) { add->set_name(text); },
          "What to call it. Default: the last part of the path.")
      ->type_name("NAME");
  verb->add_option_function<std::string>(
          "--node", [add](const std::string& text) { add->set_node(text); },
          "The server it belongs to; copies of a volume lie on different nodes where there are "
          "several. Default: the control plane's.")
      ->type_name("NODE");
  verb->add_flag_callback(
      "--force", [add] { add->set_force(true); },
      "Take it although it holds data, a damaged label, or another cluster's: all that is lost.");
  verb->callback(
      [&context, add] { context.action = [&context, add] { return Add(context, *add); }; });

  verb = AddVerb(*device, "list", "Show the devices, how full they are, and which are missing.",
                 "braid device list\n"
                 "braid device list --json | jq -r '.devices[].path'");
  verb->callback([&context] { context.action = [&context] { return List(context); }; });

  auto remove = std::make_shared<v1::RemoveDeviceRequest>();
  verb = AddVerb(*device, "remove", "Take an unused device out of the pool and wipe its label.",
                 "braid device remove d1 --dry-run\n"
                 "braid device remove d1");
  verb->add_option_function<std::string>(
          "NAME", [remove](const std::string& text) { remove->set_name(text); },
          "The device's name or UUID.")
      ->type_name("DEVICE")
      ->required();
  verb->add_flag_callback(
      "--dry-run", [remove] { remove->set_dry_run(true); },
      "Say whether it could be removed; change nothing.");
  verb->callback([&context, remove] {
    context.action = [&context, remove] { return Remove(context, *remove); };
  });
}

}  // namespace braid::cli
