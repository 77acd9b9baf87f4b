// braid pool list
#include "tools/cli/pool.h"

#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "tools/cli/commands.h"
#include "tools/cli/json.h"
#include "tools/cli/text.h"

namespace braid::cli {

Table PoolTable(const v1::ListPoolsResponse& list) {
  Table table({{"CLASS"},
               {"DEVICES", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"USED", Align::kRight},
               {"FREE", Align::kRight},
               {"LARGEST FREE", Align::kRight}});
  for (const v1::Pool& pool : list.pools()) {
    table.AddRow({Printable(pool.device_class()), absl::StrCat(pool.device_count()),
                  FormatSize(pool.capacity_bytes()), FormatSize(pool.allocated_bytes()),
                  FormatSize(pool.free_bytes()), FormatSize(pool.largest_free_bytes())});
  }
  return table;
}

void AddPoolCommands(CLI::App& root, Context& context) {
  CLI::App* pool = AddNoun(root, "pool", "The free and used space of the site.");
  CLI::App* verb = AddVerb(*pool, "list", "Show free and used space by class of device.",
                           "braid pool list\n"
                           "braid pool list --json");
  verb->callback([&context] {
    context.action = [&context] {
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
    };
  });
}

}  // namespace braid::cli
