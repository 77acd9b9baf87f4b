// braid site list, braid status
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/pool.h"
#include "tools/cli/table.h"
#include "tools/cli/text.h"
#include "tools/cli/volume.h"

namespace braid::cli {
namespace {

// With the site's, pools' and warnings' lines this fills a screen.
constexpr size_t kMaxVolumesShown = 20;

absl::Status ListSites(Context& context) {
  const auto answer = context.site().GetSite();
  if (!answer.ok()) return answer.status();
  const v1::Site& site = answer->site();
  if (context.json) {
    context.out << JsonList("sites", std::vector<v1::Site>{site});
    return absl::OkStatus();
  }
  Table table({{"NAME"},
               {"NODE"},
               {"DEVICES", Align::kRight},
               {"VOLUMES", Align::kRight},
               {"REVISION", Align::kRight},
               {"UP", Align::kRight},
               {"VERSION"},
               {"ADDRESS"}});
  table.AddRow({Printable(site.name()), Printable(site.node()), absl::StrCat(site.device_count()),
                absl::StrCat(site.volume_count()), absl::StrCat(site.revision()),
                FormatDuration(site.uptime_seconds()), Printable(site.version()),
                Printable(context.control.text)});
  context.out << table.ToString(context.color);
  return absl::OkStatus();
}

// Those that need attention first; otherwise as the site lists them, by name.
std::vector<const v1::Volume*> ForStatus(const std::vector<v1::Volume>& volumes) {
  std::vector<const v1::Volume*> shown;
  shown.reserve(volumes.size());
  for (const v1::Volume& volume : volumes) shown.push_back(&volume);
  std::stable_sort(shown.begin(), shown.end(), [](const v1::Volume* a, const v1::Volume* b) {
    return a->health() > b->health();
  });
  if (shown.size() > kMaxVolumesShown) shown.resize(kMaxVolumesShown);
  return shown;
}

// The newest; the rest is for --json.
constexpr int kMaxEventsShown = 5;

// A site older than this command says nothing of its health.
v1::SiteHealth HealthOf(const v1::GetSiteResponse& site) {
  if (site.health() != v1::SITE_HEALTH_UNSPECIFIED) return site.health();
  return site.warnings().empty() ? v1::SITE_HEALTH_GOOD : v1::SITE_HEALTH_WARNING;
}

Tone ToneOf(v1::SiteHealth health) {
  if (health == v1::SITE_HEALTH_GOOD) return Tone::kPlain;
  return health == v1::SITE_HEALTH_WARNING ? Tone::kWarning : Tone::kAlarm;
}

absl::Status HealthStatus(v1::SiteHealth health) {
  if (health == v1::SITE_HEALTH_GOOD) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the site's health is ", Word(health), "; see its warnings"));
}

void PrintEvents(Context& context, const v1::GetSiteResponse& site) {
  if (site.events().empty()) return;
  context.out << "\nwhat happened last:\n";
  for (int i = std::max(0, site.events_size() - kMaxEventsShown); i < site.events_size(); ++i) {
    const v1::Event& event = site.events(i);
    context.out << "  " << FormatTime(event.unix_seconds()) << "  "
                << Toned(Printable(event.what()), ToneOf(event.severity()), context.color) << "\n";
  }
}

absl::Status Status(Context& context) {
  const auto site = context.site().GetSite();
  if (!site.ok()) return site.status();
  const auto pools = context.site().ListPools();
  if (!pools.ok()) return pools.status();
  const auto volumes = context.site().ListVolumes();
  if (!volumes.ok()) return volumes.status();
  const v1::SiteHealth health = HealthOf(*site);
  if (context.json) {
    context.out << MergeJson(
        {Json(*site), JsonList("pools", pools->pools()), JsonList("volumes", *volumes)});
    return HealthStatus(health);
  }
  const v1::Site& about = site->site();
  context.out << "site " << Printable(about.name()) << " on node " << Printable(about.node())
              << ", braidd " << Printable(about.version()) << ", up "
              << FormatDuration(about.uptime_seconds()) << ", revision " << about.revision()
              << "\n";
  if (site->warnings().empty()) {
    context.out << "all is well\n";
  } else {
    const Tone tone = ToneOf(health);
    context.out << "health: " << Toned(Word(health), tone, context.color) << "; "
                << Toned(Count(static_cast<uint64_t>(site->warnings_size()), "warning") + ":", tone,
                         context.color)
                << "\n";
    for (const std::string& warning : site->warnings()) {
      context.out << "  " << Toned(Printable(warning), tone, context.color) << "\n";
    }
  }

  context.out << "\n" << Count(about.device_count(), "device");
  if (pools->pools().empty()) {
    context.out << "; add one with 'braid device add PATH --class ssd'\n";
  } else {
    context.out << ", by class:\n" << PoolTable(*pools).ToString(context.color, "  ");
  }

  context.out << "\n" << Count(volumes->size(), "volume");
  if (volumes->empty()) {
    context.out << "; build one with 'braid volume create NAME --size 10G'\n";
  } else {
    const auto shown = ForStatus(*volumes);
    context.out << ":\n" << VolumeTable(shown).ToString(context.color, "  ");
    if (shown.size() < volumes->size()) {
      context.out << "  and " << volumes->size() - shown.size()
                  << " more; 'braid volume list' shows all\n";
    }
  }
  PrintEvents(context, *site);
  return HealthStatus(health);
}

}  // namespace

void AddSiteCommands(CLI::App& root, Context& context) {
  CLI::App* site = AddNoun(root, "site", "Places with a control plane and devices of their own.");
  CLI::App* verb = AddVerb(*site, "list", "Show the site that answers, and how it is.",
                           "braid site list\n"
                           "braid --control dns:///storage.example:7400 site list");
  verb->callback([&context] { context.action = [&context] { return ListSites(context); }; });

  verb = AddVerb(root, "status",
                 "Show the site, its health and warnings, pools, volumes and what happened last on "
                 "one screen; exit status 1 when its health is not good.",
                 "braid status\n"
                 "braid status > /dev/null || notify-operator     # for a monitor\n"
                 "braid status --json | jq -r '.health, .warnings[]'");
  verb->callback([&context] { context.action = [&context] { return Status(context); }; });
}

}  // namespace braid::cli
