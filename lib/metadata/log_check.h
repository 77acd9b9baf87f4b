// Whether a RocksDB log (write-ahead log, MANIFEST) is whole, ends in a record that a
// crash tore, or is damaged. RocksDB itself cannot tell the last two apart; rocks_store.cc
// says why it matters.
#ifndef BRAID_LIB_METADATA_LOG_CHECK_H_
#define BRAID_LIB_METADATA_LOG_CHECK_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace braid {

enum class LogEnd { kWhole, kTorn };

// `bytes` are the whole file. At most the last record of it was never synced: whoever
// appends waits for the sync of one record before writing the next. So
//
//   kWhole  every record's checksum is right, up to the end of the file;
//   kTorn   the last record is not, and lacks something as a crash leaves it: the file
//           ends within it, or whole sectors of it are zeros that were never written;
//   DataLoss otherwise: a record was synced and is not what it was. A record begins
//           behind the bad one, or the last one lacks nothing. Says at which byte.
//
// A flipped bit is always found. What no look at one file can tell: a file that was cut
// exactly at the end of a record looks whole, and a last record of which both length and
// contents rotted may look torn.
absl::StatusOr<LogEnd> CheckLog(absl::string_view bytes);

}  // namespace braid

#endif  // BRAID_LIB_METADATA_LOG_CHECK_H_
