// What may stand in a name or path that Braid keeps.
#ifndef BRAID_LIB_FORMAT_NAMES_H_
#define BRAID_LIB_FORMAT_NAMES_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace braid {

// Of sites, nodes, volumes, devices, classes. A DNS label's limit; with its length byte a
// name fills 64 bytes of a label.
inline constexpr size_t kMaxNameBytes = 63;
// Linux's PATH_MAX without its NUL.
inline constexpr size_t kMaxPathBytes = 4095;

// Letters, digits, '.', '_', '-', beginning with a letter or digit: safe in paths,
// DNS, shells and URIs. InvalidArgument says what is wrong; `what` names the thing
// ("volume name").
absl::Status CheckName(absl::string_view what, absl::string_view name);

// Absolute, at most kMaxPathBytes, no NUL. InvalidArgument says what is wrong.
absl::Status CheckPath(absl::string_view what, absl::string_view path);

}  // namespace braid

#endif  // BRAID_LIB_FORMAT_NAMES_H_
