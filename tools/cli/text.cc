#include "tools/cli/text.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/base/size_text.h"

namespace braid::cli {
namespace {

// Length of the UTF-8 sequence that `text` begins with, its code point in `*code`; 0
// when it begins with none (overlong forms and surrogates are none).
size_t DecodeUtf8(absl::string_view text, uint32_t* code) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) {
    *code = lead;
    return 1;
  }
  size_t length = 0;
  uint32_t least = 0;
  if ((lead & 0xe0) == 0xc0) {
    length = 2, least = 0x80, *code = lead & 0x1fU;
  } else if ((lead & 0xf0) == 0xe0) {
    length = 3, least = 0x800, *code = lead & 0x0fU;
  } else if ((lead & 0xf8) == 0xf0) {
    length = 4, least = 0x10000, *code = lead & 0x07U;
  }
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    *code = (*code << 6) | (byte(i) & 0x3fU);
  }
  if (*code < least || *code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000)) return 0;
  return length;
}

// C0 and C1 controls, line and paragraph separators, and what changes the direction of
// the text around it.
bool IsHarmful(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

// "LAYOUT_STRIPED_MIRRORS" less its prefix is "striped-mirrors".
std::string EnumWord(absl::string_view enumerator, absl::string_view prefix, int number) {
  if (!absl::ConsumePrefix(&enumerator, prefix)) return absl::StrCat("unknown (", number, ")");
  return absl::StrReplaceAll(absl::AsciiStrToLower(enumerator), {{"_", "-"}});
}

constexpr absl::string_view kLayoutPrefix = "LAYOUT_";

}  // namespace

std::string Printable(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    uint32_t code = 0;
    const size_t length = DecodeUtf8(text, &code);
    if (length != 0 && !IsHarmful(code)) {
      out.append(text.data(), length);
    } else if (text[0] == '\n') {
      out += "\\n";
    } else if (text[0] == '\t') {
      out += "\\t";
    } else {
      for (size_t i = 0; i < std::max<size_t>(length, 1); ++i) {
        absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(text[i]));
      }
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

size_t DisplayWidth(absl::string_view printable) {
  size_t width = 0;
  for (const char c : printable) {
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) ++width;
  }
  return width;
}

std::string OrDash(absl::string_view text) { return text.empty() ? "-" : Printable(text); }

std::string ExactSize(uint64_t bytes) {
  constexpr absl::string_view kUnits = "KMGTPE";
  size_t power = 0;
  while (bytes != 0 && bytes % 1024 == 0 && power < kUnits.size()) {
    bytes /= 1024;
    ++power;
  }
  return absl::StrCat(bytes, power == 0 ? "" : kUnits.substr(power - 1, 1));
}

std::string Wrapped(absl::string_view first, absl::string_view text, size_t indent) {
  std::string out(first);
  size_t used = first.size();
  if (used + 2 > indent && indent > 0) {
    out += "\n";
    used = 0;
  }
  bool at_start = true;
  const auto start_text = [&] {
    if (used < indent) out.append(indent - used, ' ');
    used = indent;
    at_start = true;
  };
  start_text();
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (!at_start && used + 1 + word.size() > kLineWidth) {
      out += "\n";
      used = 0;
      start_text();
    }
    if (!at_start) {
      out += " ";
      ++used;
    }
    out.append(word.data(), word.size());
    used += word.size();
    at_start = false;
  }
  return out + "\n";
}

std::string Count(uint64_t n, absl::string_view thing) {
  return absl::StrCat(n, " ", thing, n == 1 ? "" : "s");
}

std::string FormatDuration(int64_t seconds) {
  if (seconds < 0) seconds = 0;
  const int64_t minutes = seconds / 60, hours = minutes / 60, days = hours / 24;
  if (days > 0) return absl::StrCat(days, "d ", hours % 24, "h");
  if (hours > 0) return absl::StrCat(hours, "h ", minutes % 60, "m");
  if (minutes > 0) return absl::StrCat(minutes, "m");
  return absl::StrCat(seconds, "s");
}

std::string FormatRate(double bytes_per_second) {
  const double size = std::fabs(bytes_per_second);
  if (!(size >= 1)) return "0";  // also what is not a number
  // Beyond what can be counted it is only large.
  const uint64_t bytes = size < 1e18 ? static_cast<uint64_t>(size) : uint64_t{1} << 60;
  return absl::StrCat(bytes_per_second < 0 ? "-" : "+", FormatSize(bytes), "/s");
}

std::string FormatTime(int64_t unix_seconds) {
  if (unix_seconds == 0) return "-";
  const std::time_t time = unix_seconds;
  std::tm local{};
  if (localtime_r(&time, &local) == nullptr) return "-";
  char buffer[64];
  if (std::strftime(buffer, sizeof buffer, "%Y-%m-%d %H:%M", &local) == 0) return "-";
  return buffer;
}

std::string Word(v1::Layout layout) {
  return EnumWord(v1::Layout_Name(layout), kLayoutPrefix, layout);
}
std::string Word(v1::VolumeState state) {
  return EnumWord(v1::VolumeState_Name(state), "VOLUME_STATE_", state);
}
std::string Word(v1::VolumeHealth health) {
  return EnumWord(v1::VolumeHealth_Name(health), "VOLUME_HEALTH_", health);
}
std::string Word(v1::DeviceState state) {
  return EnumWord(v1::DeviceState_Name(state), "DEVICE_STATE_", state);
}

std::string Word(v1::PoolState state) {
  return EnumWord(v1::PoolState_Name(state), "POOL_STATE_", state);
}
std::string Word(v1::SiteHealth health) {
  return EnumWord(v1::SiteHealth_Name(health), "SITE_HEALTH_", health);
}

std::vector<std::string> LayoutWords() {
  std::vector<std::string> words;
  const auto* type = v1::Layout_descriptor();
  for (int i = 0; i < type->value_count(); ++i) {
    const int number = type->value(i)->number();
    if (number != v1::LAYOUT_UNSPECIFIED) words.push_back(Word(static_cast<v1::Layout>(number)));
  }
  return words;
}

std::optional<v1::Layout> LayoutFromWord(absl::string_view word) {
  const auto* type = v1::Layout_descriptor();
  for (int i = 0; i < type->value_count(); ++i) {
    const auto layout = static_cast<v1::Layout>(type->value(i)->number());
    if (layout != v1::LAYOUT_UNSPECIFIED && Word(layout) == word) return layout;
  }
  return std::nullopt;
}

std::string FullName(const v1::Volume& volume) {
  if (volume.site().empty()) return Printable(volume.name());
  return Printable(absl::StrCat(volume.site(), "/", volume.name()));
}

std::string JoinAnd(const std::vector<std::string>& parts) {
  if (parts.size() < 2) return absl::StrJoin(parts, "");
  return absl::StrCat(absl::StrJoin(parts.begin(), parts.end() - 1, ", "), " and ", parts.back());
}

}  // namespace braid::cli
