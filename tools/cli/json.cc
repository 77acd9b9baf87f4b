#include "tools/cli/json.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/json_util.h"

namespace braid::cli {
namespace {

std::string ToJson(const google::protobuf::Message& message, bool several_lines) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = several_lines;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  // Fails only for google.protobuf.Any of unknown types, which the API does not have.
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) json = "{}";
  return json;
}

}  // namespace

std::string Json(const google::protobuf::Message& message) {
  const std::string json = ToJson(message, /*several_lines=*/true);
  return absl::StrCat(absl::StripAsciiWhitespace(json), "\n");
}

std::string JsonLine(const google::protobuf::Message& message) {
  return ToJson(message, /*several_lines=*/false);
}

std::string JsonArray(absl::string_view name, const std::vector<std::string>& items) {
  if (items.empty()) return absl::StrCat("{\"", name, "\": []}\n");
  return absl::StrCat("{\"", name, "\": [\n ", absl::StrJoin(items, ",\n "), "\n]}\n");
}

std::string MergeJson(const std::vector<std::string>& objects) {
  std::vector<std::string> members;
  for (const std::string& object : objects) {
    absl::string_view inside = absl::StripAsciiWhitespace(object);
    absl::ConsumePrefix(&inside, "{");
    absl::ConsumeSuffix(&inside, "}");
    inside = absl::StripAsciiWhitespace(inside);
    if (!inside.empty()) members.emplace_back(inside);
  }
  return absl::StrCat("{\n ", absl::StrJoin(members, ",\n "), "\n}\n");
}

}  // namespace braid::cli
