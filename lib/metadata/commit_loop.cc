// For crash_test: commits SampleBatch(N), N from the store's revision on, until killed, and
// writes each N to standard output (8 bytes) once its commit has returned.
#include <unistd.h>

#include <cstdio>

#include "lib/metadata/metadata_store.h"
#include "lib/metadata/sample_records.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto store = braid::OpenRocksStore(argv[1]);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  const auto site = (*store)->ReadSite();
  uint64_t revision = site.ok() ? site->revision.value() : 0;
  for (;;) {
    ++revision;
    if (!(*store)->Commit(braid::SampleBatch(revision)).ok()) return 1;
    if (write(STDOUT_FILENO, &revision, sizeof(revision)) != sizeof(revision)) return 1;
  }
}
