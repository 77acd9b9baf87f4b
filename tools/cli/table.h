// Tables for people: a header line, aligned columns, numbers to the right.
#ifndef BRAID_TOOLS_CLI_TABLE_H_
#define BRAID_TOOLS_CLI_TABLE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace braid::cli {

enum class Align { kLeft, kRight };

// What a cell wants of its reader. Shown as colour, where there is colour; the words
// must say it too.
enum class Tone { kPlain, kWarning, kAlarm };

struct Cell {
  // What comes from a site goes through Printable first.
  Cell(std::string cell_text, Tone cell_tone = Tone::kPlain)  // NOLINT(google-explicit-constructor)
      : text(std::move(cell_text)), tone(cell_tone) {}
  Cell(const char* cell_text) : text(cell_text) {}  // NOLINT(google-explicit-constructor)
  std::string text;
  Tone tone = Tone::kPlain;
};

class Table {
 public:
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as there are columns. An empty cell is shown as "-".
  void AddRow(std::vector<Cell> cells);

  bool empty() const { return rows_.empty(); }

  // Lines ending in '\n', the header first; no blanks at a line's end. With `color`,
  // cells that are not plain are coloured.
  std::string ToString(bool color, absl::string_view indent = "") const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<Cell>> rows_;
};

// `text` in the colour of `tone`; as it is when plain or without colour.
std::string Toned(absl::string_view text, Tone tone, bool color);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_TABLE_H_
