#include "tools/cli/table.h"

#include <algorithm>
#include <cassert>

#include "absl/strings/str_cat.h"
#include "tools/cli/text.h"

namespace braid::cli {

std::string Toned(absl::string_view text, Tone tone, bool color) {
  if (!color || tone == Tone::kPlain) return std::string(text);
  return absl::StrCat(tone == Tone::kAlarm ? "\033[31m" : "\033[33m", text, "\033[0m");
}

void Table::AddRow(std::vector<Cell> cells) {
  assert(cells.size() == columns_.size());
  for (Cell& cell : cells) {
    if (cell.text.empty()) cell.text.assign(1, '-');
  }
  rows_.push_back(std::move(cells));
}

std::string Table::ToString(bool color, absl::string_view indent) const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t width = DisplayWidth(columns_[i].title);
    for (const auto& row : rows_) width = std::max(width, DisplayWidth(row[i].text));
    widths.push_back(width);
  }
  std::string out;
  const auto add_line = [&](auto text_of, auto tone_of) {
    std::string line(indent);
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string& text = text_of(i);
      const std::string padding(widths[i] - DisplayWidth(text), ' ');
      const std::string shown = Toned(text, tone_of(i), color);
      absl::StrAppend(&line, i > 0 ? "  " : "");
      if (columns_[i].align == Align::kRight) {
        absl::StrAppend(&line, padding, shown);
      } else {
        absl::StrAppend(&line, shown, padding);
      }
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  };
  add_line([&](size_t i) -> const std::string& { return columns_[i].title; },
           [](size_t) { return Tone::kPlain; });
  for (const auto& row : rows_) {
    add_line([&](size_t i) -> const std::string& { return row[i].text; },
             [&](size_t i) { return row[i].tone; });
  }
  return out;
}

}  // namespace braid::cli
