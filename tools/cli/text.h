// Words, numbers and times as an operator reads them.
#ifndef BRAID_TOOLS_CLI_TEXT_H_
#define BRAID_TOOLS_CLI_TEXT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "braid/v1/inventory.pb.h"
#include "braid/v1/site.pb.h"
#include "braid/v1/volume.pb.h"

namespace braid::cli {

// `text` with everything that could move the cursor, colour the screen or reverse the
// line replaced by \n, \t or \xNN: names and messages come from other machines. UTF-8
// that prints stays; bytes that are not UTF-8 are escaped.
std::string Printable(absl::string_view text);

// Columns of a terminal that Printable(text) takes, one for each code point.
size_t DisplayWidth(absl::string_view printable);

// Printable(text), or "-" for none.
std::string OrDash(absl::string_view text);

// Without rounding, in the largest unit that says it: "1028M", "66K", "513". For offsets.
std::string ExactSize(uint64_t bytes);

// `text` broken between words at kLineWidth, behind `first` and indented by `indent`
// from there on; a `first` that does not fit gets a line of its own. Ends in '\n'.
inline constexpr size_t kLineWidth = 92;
std::string Wrapped(absl::string_view first, absl::string_view text, size_t indent);

// "1 volume", "2 volumes".
std::string Count(uint64_t n, absl::string_view thing);

// "12s", "5m", "3h 20m", "12d 4h".
std::string FormatDuration(int64_t seconds);
// "+1.5M/s", "-64K/s"; "0" for less than a byte.
std::string FormatRate(double bytes_per_second);
// "2026-11-20 09:45", local time; "-" for 0.
std::string FormatTime(int64_t unix_seconds);

// The API's enumerators as words: LAYOUT_STRIPED_MIRRORS is "striped-mirrors". A number
// that this program does not know yet is "unknown (7)".
std::string Word(v1::Layout layout);
std::string Word(v1::VolumeState state);
std::string Word(v1::VolumeHealth health);
std::string Word(v1::DeviceState state);
std::string Word(v1::PoolState state);
std::string Word(v1::SiteHealth health);

std::vector<std::string> LayoutWords();
std::optional<v1::Layout> LayoutFromWord(absl::string_view word);

// "site/name", Printable.
std::string FullName(const v1::Volume& volume);

// "a, b and c".
std::string JoinAnd(const std::vector<std::string>& parts);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_TEXT_H_
