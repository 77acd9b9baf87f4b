#include "lib/metadata/memory_store.h"

#include <utility>

#include "absl/strings/match.h"
#include "lib/metadata/key_value.h"

namespace braid {
namespace {

using Contents = std::map<std::string, std::string>;

void Apply(const std::vector<MetadataBatch::Entry>& entries, Contents& contents) {
  for (const MetadataBatch::Entry& entry : entries) {
    switch (entry.kind) {
      case MetadataBatch::Entry::kPut:
        contents[entry.key] = entry.value;
        break;
      case MetadataBatch::Entry::kDelete:
        contents.erase(entry.key);
        break;
      case MetadataBatch::Entry::kDeletePrefix:
        for (auto it = contents.lower_bound(entry.key);
             it != contents.end() && absl::StartsWith(it->first, entry.key);) {
          it = contents.erase(it);
        }
        break;
    }
  }
}

absl::StatusOr<std::optional<std::string>> GetFrom(const Contents& contents,
                                                   absl::string_view key) {
  const auto it = contents.find(std::string(key));
  if (it == contents.end()) return std::optional<std::string>();
  return std::optional<std::string>(it->second);
}

Contents WithPrefix(const Contents& contents, absl::string_view prefix) {
  Contents found;
  for (auto it = contents.lower_bound(std::string(prefix));
       it != contents.end() && absl::StartsWith(it->first, prefix); ++it) {
    found.insert(*it);
  }
  return found;
}

absl::Status CallForEach(const Contents& contents,
                         absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) {
  for (const auto& [key, value] : contents) {
    if (absl::Status s = fn(key, value); !s.ok()) return s;
  }
  return absl::OkStatus();
}

class MemorySnapshot final : public KeyValueReader {
 public:
  explicit MemorySnapshot(Contents contents) : contents_(std::move(contents)) {}
  absl::StatusOr<std::optional<std::string>> Get(absl::string_view key) override {
    return GetFrom(contents_, key);
  }
  absl::Status Scan(
      absl::string_view prefix,
      absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) override {
    return CallForEach(WithPrefix(contents_, prefix), fn);
  }

 private:
  const Contents contents_;
};

}  // namespace

// Has its own view, as a process has, so that a failed batch that survives on the medium
// is not seen before the next open.
class MemoryKeyValue final : public KeyValue {
 public:
  explicit MemoryKeyValue(std::shared_ptr<MemoryMedium> medium)
      : medium_(std::move(medium)), view_(medium_->Contents()) {}

  absl::Status Write(const std::vector<MetadataBatch::Entry>& entries) override {
    MutexLock lock(&mu_);
    MutexLock medium_lock(&medium_->mu_);
    const bool fails = medium_->will_fail_ && medium_->commits_ >= medium_->fail_at_;
    if (!fails || medium_->survives_) Apply(entries, medium_->contents_);
    if (fails) {
      medium_->will_fail_ = false;
      return absl::UnavailableError("injected failure of the store");
    }
    ++medium_->commits_;
    Apply(entries, view_);
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<std::string>> Get(absl::string_view key) override {
    MutexLock lock(&mu_);
    return GetFrom(view_, key);
  }

  absl::Status Scan(
      absl::string_view prefix,
      absl::FunctionRef<absl::Status(absl::string_view, absl::string_view)> fn) override {
    Contents found;
    {
      MutexLock lock(&mu_);
      found = WithPrefix(view_, prefix);
    }
    return CallForEach(found, fn);
  }

  std::unique_ptr<KeyValueReader> Snapshot() override {
    MutexLock lock(&mu_);
    return std::make_unique<MemorySnapshot>(view_);
  }

 private:
  // Before the medium's.
  Mutex mu_;
  const std::shared_ptr<MemoryMedium> medium_;
  Contents view_ ABSL_GUARDED_BY(mu_);
};

void MemoryMedium::FailCommit(uint64_t after, bool survives) {
  MutexLock lock(&mu_);
  will_fail_ = true;
  fail_at_ = commits_ + after;
  survives_ = survives;
}

uint64_t MemoryMedium::commits() const {
  MutexLock lock(&mu_);
  return commits_;
}

std::map<std::string, std::string> MemoryMedium::Contents() const {
  MutexLock lock(&mu_);
  return contents_;
}

void MemoryMedium::SetContents(std::map<std::string, std::string> contents) {
  MutexLock lock(&mu_);
  contents_ = std::move(contents);
}

absl::StatusOr<std::unique_ptr<MetadataStore>> OpenMemoryStore(
    std::shared_ptr<MemoryMedium> medium) {
  return OpenStoreOver(std::make_unique<MemoryKeyValue>(std::move(medium)), "store in memory");
}

}  // namespace braid
