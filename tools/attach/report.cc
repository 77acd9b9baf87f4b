#include "tools/attach/report.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace braid::attach {

namespace {

// Length of the well-formed UTF-8 sequence at the start of `text`, 0 if there is none.
size_t Utf8Length(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xc2 && first < 0xe0   ? 2
                        : first >= 0xe0 && first < 0xf0 ? 3
                        : first >= 0xf0 && first < 0xf5 ? 4
                                                        : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, beyond U+10FFFF.
  if ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
      (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f)) {
    return 0;
  }
  return length;
}

}  // namespace

std::string JsonString(absl::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const char c = text[0];
    if (length == 0) {
      out += "\\ufffd";
    } else if (length > 1) {
      out.append(text.data(), length);
    } else if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  out.push_back('"');
  return out;
}

std::string ToJson(const Report& r) {
  const auto text = [](absl::string_view value) { return JsonString(value); };
  const auto number = [](auto value) { return absl::StrCat("\"", value, "\""); };
  return absl::StrCat("{\"volume\":", text(r.volume), ",\"volume_id\":", text(r.volume_id),
                      ",\"via\":", text(r.via), ",\"uri\":", text(r.uri),
                      ",\"path\":", text(r.path), ",\"pid\":", number(r.pid),
                      ",\"server_pid\":", number(r.server_pid),
                      ",\"restarts\":", number(r.restarts),
                      ",\"since_unix_seconds\":", number(r.since_unix_seconds),
                      ",\"read_only\":", r.read_only ? "true" : "false",
                      ",\"last_error\":", text(r.last_error), "}");
}

std::string ErrorJson(absl::string_view message) {
  std::string line(message);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return absl::StrCat("{\"error\":", JsonString(line), "}");
}

std::string SocketUri(absl::string_view socket_path) {
  std::string uri = "nbd+unix:///?socket=";
  for (const char c : socket_path) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
        absl::StrContains("/-._~", absl::string_view(&c, 1))) {
      uri.push_back(c);
    } else {
      absl::StrAppendFormat(&uri, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return uri;
}

}  // namespace braid::attach
