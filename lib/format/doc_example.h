// For tests: the worked examples of docs/formats/, so that the pages and the code agree.
#ifndef BRAID_LIB_FORMAT_DOC_EXAMPLE_H_
#define BRAID_LIB_FORMAT_DOC_EXAMPLE_H_

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace braid {

// The bytes of the block "```hex NAME" of docs/formats/PAGE. Each of its lines is an
// offset, bytes in hex ("00 * N" for N zeros), and perhaps a comment behind '#'.
inline std::string DocExample(const std::string& page, const std::string& name) {
  const std::string path = absl::StrCat(BRAID_SOURCE_ROOT, "/docs/formats/", page);
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  std::string bytes, line;
  while (std::getline(file, line) && line != absl::StrCat("```hex ", name)) {
  }
  EXPECT_FALSE(file.eof()) << path << " has no example " << name;
  while (std::getline(file, line) && line != "```") {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string offset, word;
    words >> offset;
    EXPECT_EQ(offset, absl::StrCat(absl::Hex(bytes.size(), absl::kZeroPad4))) << path;
    while (words >> word) {
      size_t zeros = 0;
      if (word == "*" && words >> zeros) {
        bytes.append(zeros - 1, '\0');
      } else {
        bytes += absl::HexStringToBytes(word);
      }
    }
  }
  return bytes;
}

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_DOC_EXAMPLE_H_
