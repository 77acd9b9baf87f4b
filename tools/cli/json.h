// The API's messages as JSON: protobuf's mapping, field names as in the .proto files,
// fields that hold nothing included.
#ifndef BRAID_TOOLS_CLI_JSON_H_
#define BRAID_TOOLS_CLI_JSON_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace braid::cli {

// One object on several lines, ending in '\n'.
std::string Json(const google::protobuf::Message& message);

// One object on one line, without an end of line.
std::string JsonLine(const google::protobuf::Message& message);
// {"<name>": [<items>]}, one item a line, ending in '\n'.
std::string JsonArray(absl::string_view name, const std::vector<std::string>& items);

// {"<name>": [...]}, one message a line, ending in '\n'. `messages` is any range of
// messages; `name` needs no escaping.
template <class Range>
std::string JsonList(absl::string_view name, const Range& messages) {
  std::vector<std::string> items;
  items.reserve(messages.size());
  for (const auto& message : messages) items.push_back(JsonLine(message));
  return JsonArray(name, items);
}

// One object with the members of all `objects`, each an object as the above return.
std::string MergeJson(const std::vector<std::string>& objects);

}  // namespace braid::cli

#endif  // BRAID_TOOLS_CLI_JSON_H_
