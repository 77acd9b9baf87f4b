// Talking to the control plane: the channel, and what an answer means for who asked.
#ifndef BRAID_NBDKIT_PLUGIN_CONTROL_CALL_H_
#define BRAID_NBDKIT_PLUGIN_CONTROL_CALL_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace braid {

std::shared_ptr<grpc::Channel> MakeControlChannel(const std::string& target);

// The message in one line.
absl::Status FromGrpc(const grpc::Status& status);

// No answer, or none of the control plane's own: nothing says that it will not come. gRPC
// itself answers ResourceExhausted when the server's threads are all taken; braidd never.
bool NoAnswer(const absl::Status& status);

// An answer that asking again will not change. Everything else may pass: a store that is
// full, a control plane that is going down in the middle of the call.
bool IsFinal(const absl::Status& status);

}  // namespace braid

#endif  // BRAID_NBDKIT_PLUGIN_CONTROL_CALL_H_
