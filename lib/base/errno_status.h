// Between errno, which the kernel and NBD speak, and absl::Status, which Braid does.
#ifndef BRAID_LIB_BASE_ERRNO_STATUS_H_
#define BRAID_LIB_BASE_ERRNO_STATUS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace braid {

// "<what>: <strerror>", with the code that absl gives this errno, and the errno itself
// kept beside it so that ErrnoOf gives back the same number. `error` is not 0.
absl::Status ErrnoStatus(int error, absl::string_view what);

// The errno for a client: the one kept by ErrnoStatus, else the nearest to the code;
// EIO where nothing is nearer. 0 for an OK status.
int ErrnoOf(const absl::Status& status);

}  // namespace braid

#endif  // BRAID_LIB_BASE_ERRNO_STATUS_H_
