// braid pool list | check
#include "tools/cli/pool.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/text.h"

namespace braid::cli {

namespace {

// The records of millions of extents take a while to walk.
constexpr absl::Duration kCheckTimeout = absl::Minutes(10);

Tone PoolTone(v1::PoolState state) {
  if (state == v1::POOL_STATE_LOW) return Tone::kWarning;
  return state == v1::POOL_STATE_CRITICAL || state == v1::POOL_STATE_FULL ? Tone::kAlarm
                                                                          : Tone::kPlain;
}

absl::Status List(Context& context) {
  const auto list = context.site().ListPools();
  if (!list.ok()) return list.status();
  if (context.json) {
    context.out << JsonList("pools", list->pools());
  } else if (list->pools().empty()) {
    context.out << "no devices yet; add one with 'braid device add PATH --class ssd'\n";
  } else {
    context.out << PoolTable(*list).ToString(context.color);
  }
  return absl::OkStatus();
}

absl::Status Check(Context& context) {
  const auto check =
      context.site().CheckPools(context.timeout_given ? context.timeout : kCheckTimeout);
  if (!check.ok()) return check.status();
  if (context.json) {
    context.out << Json(*check);
  } else {
    for (const std::string& finding : check->findings()) context.out << Printable(finding) << "\n";
    context.out << "walked " << Count(check->device_count(), "device") << ", "
                << Count(check->volume_count(), "volume") << ", "
                << Count(check->run_count(), "run") << " of maps and "
                << Count(check->grant_count(), "grant") << "\n";
    if (check->findings().empty()) {
      context.out << "every unit of every device has one owner at most, and the counters agree\n";
    }
  }
  if (check->findings().empty()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("the records of the site contradict each other (",
                   Count(static_cast<uint64_t>(check->findings_size()), "finding"),
                   "); stop writing to the volumes named, and keep a copy of the data directory"));
}

}  // namespace

Table PoolTable(const v1::ListPoolsResponse& list) {
  Table table({{"CLASS"},
               {"DEVICES", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"ALLOCATED", Align::kRight},
               {"RESERVED", Align::kRight},
               {"FREE", Align::kRight},
               {"RECLAIMABLE", Align::kRight},
               {"PROMISED", Align::kRight},
               {"RATIO", Align::kRight},
               {"RATE", Align::kRight},
               {"TIME-TO-FULL", Align::kRight},
               {"STATE"}});
  for (const v1::Pool& pool : list.pools()) {
    const auto seconds = static_cast<int64_t>(
        std::min<uint64_t>(pool.seconds_to_full(), std::numeric_limits<int64_t>::max()));
    table.AddRow({Printable(pool.device_class()),
                  absl::StrCat(pool.device_count()),
                  FormatSize(pool.capacity_bytes()),
                  FormatSize(pool.allocated_bytes()),
                  FormatSize(pool.reserved_bytes()),
                  FormatSize(pool.free_bytes()),
                  pool.reclaimable_bytes() == 0 ? "-" : FormatSize(pool.reclaimable_bytes()),
                  FormatSize(pool.promised_bytes()),
                  absl::StrFormat("%.2f", pool.commitment_ratio()),
                  FormatRate(pool.allocation_bytes_per_second()),
                  seconds == 0 ? "-" : FormatDuration(seconds),
                  {Word(pool.state()), PoolTone(pool.state())}});
  }
  return table;
}

void AddPoolCommands(CLI::App& root, Context& context) {
  CLI::App* pool = AddNoun(root, "pool", "The free and used space of the site.");
  CLI::App* verb = AddVerb(
      *pool, "list",
      "Show by class of device what is used, promised to thin volumes and free, how fast it goes, "
      "and when it will be full.",
      "braid pool list\n"
      "braid pool list --json | jq '.pools[] | select(.commitment_ratio > 1)'");
  verb->callback([&context] { context.action = [&context] { return List(context); }; });

  verb = AddVerb(*pool, "check",
                 "Walk the records of the site, not its counters: whether every piece of every "
                 "device has one owner at most, and the free-space table is right.",
                 "braid pool check\n"
                 "braid pool check --json | jq -r '.findings[]'");
  verb->callback([&context] { context.action = [&context] { return Check(context); }; });
}

}  // namespace braid::cli
