// The seed of a random test: BRAID_SEED from the environment, else one of the clock. It is
// printed, so that a failure can be run again.
#ifndef BRAID_LIB_BASE_TEST_SEED_H_
#define BRAID_LIB_BASE_TEST_SEED_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace braid {

inline uint64_t TestSeed() {
  const char* const given = std::getenv("BRAID_SEED");
  const uint64_t seed =
      given != nullptr
          ? std::strtoull(given, nullptr, 0)
          : static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::printf("BRAID_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace braid

#endif  // BRAID_LIB_BASE_TEST_SEED_H_
