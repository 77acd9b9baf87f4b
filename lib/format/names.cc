#include "lib/format/names.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace braid {
namespace {

bool IsAlnum(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)); }

// Shortened and escaped: a message stays one line, whatever was typed.
std::string Shown(absl::string_view text) {
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kMaxNameBytes)),
                      text.size() > kMaxNameBytes ? "...'" : "'");
}

}  // namespace

absl::Status CheckName(absl::string_view what, absl::string_view name) {
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is empty; use 1 to ", kMaxNameBytes,
                                                   " letters, digits, '.', '_', '-'"));
  }
  if (name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Shown(name), " is ", name.size(),
                                                   " bytes long; use at most ", kMaxNameBytes));
  }
  if (!IsAlnum(name[0])) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " ", Shown(name), " does not begin with a letter or digit; begin it with one"));
  }
  const auto bad = std::find_if(name.begin(), name.end(), [](char c) {
    return !IsAlnum(c) && c != '.' && c != '_' && c != '-';
  });
  if (bad != name.end()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", Shown(name), " has '",
                                                   absl::CHexEscape(absl::string_view(bad, 1)),
                                                   "' in it; use letters, digits, '.', '_', '-'"));
  }
  return absl::OkStatus();
}

absl::Status CheckPath(absl::string_view what, absl::string_view path) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Shown(path), " is not absolute; begin it with '/'"));
  }
  if (path.size() > kMaxPathBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is ", path.size(), " bytes long; use at most ", kMaxPathBytes));
  }
  if (path.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Shown(path), " has a NUL byte in it; give the path without it"));
  }
  return absl::OkStatus();
}

}  // namespace braid
