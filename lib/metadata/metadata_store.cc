#include "lib/metadata/metadata_store.h"

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "lib/base/mutex.h"
#include "lib/metadata/key_value.h"
#include "lib/metadata/keys.h"

namespace braid {
namespace {

absl::Status AtKey(absl::string_view key, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(status.message(), " (key ", ShowKey(key), ")"));
}

// The records over some KeyValueReader, which it does not own.
template <class Base>
class RecordReader : public Base {
 public:
  explicit RecordReader(KeyValueReader* keys) : keys_(*keys) {}

  absl::StatusOr<SiteRecord> ReadSite() override {
    auto value = keys_.Get(kSiteKey);
    if (!value.ok()) return value.status();
    if (!value->has_value()) return absl::NotFoundError("the store belongs to no site yet");
    auto record = DecodeSite(**value);
    if (!record.ok()) return AtKey(kSiteKey, record.status());
    return record;
  }

  absl::Status ForEachDevice(absl::FunctionRef<absl::Status(const DeviceRecord&)> fn) override {
    return ForEachWithId<DeviceRecord>(kDevicePrefix, DecodeDevice, fn);
  }

  absl::Status ForEachVolume(absl::FunctionRef<absl::Status(const VolumeRecord&)> fn) override {
    return ForEachWithId<VolumeRecord>(kVolumePrefix, DecodeVolume, fn);
  }

  absl::Status ForEachRun(const Uuid& volume,
                          absl::FunctionRef<absl::Status(const MapRun&)> fn) override {
    return keys_.Scan(
        RunPrefix(volume), [&](absl::string_view key, absl::string_view value) -> absl::Status {
          auto run = DecodeRun(value);
          if (!run.ok()) return AtKey(key, run.status());
          if (absl::Status s = ReadRunKey(key, *run); !s.ok()) return s;
          if (absl::Status s = CheckRunBounds(*run); !s.ok()) {
            return AtKey(key,
                         absl::DataLossError(absl::StrCat("map run is damaged: ", s.message())));
          }
          return fn(*run);
        });
  }

  absl::Status ForEachGrant(const Uuid& volume,
                            absl::FunctionRef<absl::Status(const GrantRecord&)> fn) override {
    return keys_.Scan(
        GrantPrefix(volume), [&](absl::string_view key, absl::string_view value) -> absl::Status {
          auto grant = DecodeGrant(value);
          if (!grant.ok()) return AtKey(key, grant.status());
          if (key != GrantKey(volume, grant->grant.legs[0])) {
            return AtKey(key, absl::DataLossError("grant is damaged: it lies elsewhere"));
          }
          return fn(*grant);
        });
  }

 private:
  // Records that carry the id which is also their key.
  template <class Record>
  absl::Status ForEachWithId(absl::string_view prefix,
                             absl::FunctionRef<absl::StatusOr<Record>(absl::string_view)> decode,
                             absl::FunctionRef<absl::Status(const Record&)> fn) {
    return keys_.Scan(prefix, [&](absl::string_view key, absl::string_view value) -> absl::Status {
      auto id = IdOfKey(key);
      if (!id.ok()) return id.status();
      auto record = decode(value);
      if (!record.ok()) return AtKey(key, record.status());
      if (record->id != *id) {
        return AtKey(key, absl::DataLossError(absl::StrCat("a record is damaged: it says it is ",
                                                           record->id.ToString())));
      }
      return fn(*record);
    });
  }

  KeyValueReader& keys_;
};

class RecordSnapshot final : public RecordReader<MetadataReader> {
 public:
  explicit RecordSnapshot(std::unique_ptr<KeyValueReader> keys)
      : RecordReader(keys.get()), keys_(std::move(keys)) {}

 private:
  const std::unique_ptr<KeyValueReader> keys_;
};

class RecordStore final : public RecordReader<MetadataStore> {
 public:
  explicit RecordStore(std::unique_ptr<KeyValue> key_value)
      : RecordReader(key_value.get()), key_value_(std::move(key_value)) {}

  absl::Status Commit(const MetadataBatch& batch) override {
    // One at a time: an error must be known before the next batch is let in, since that
    // one may have been decided on a state which now may or may not come back.
    MutexLock lock(&commit_mu_);
    if (!broken_.ok()) return broken_;
    absl::Status status = key_value_->Write(batch.entries());
    if (!status.ok()) {
      broken_ = absl::FailedPreconditionError(
          absl::StrCat("the store takes no changes since one failed (", status.message(),
                       "); mend the cause and restart braidd"));
    }
    return status;
  }

  std::unique_ptr<MetadataReader> Snapshot() override {
    return std::make_unique<RecordSnapshot>(key_value_->Snapshot());
  }

 private:
  const std::unique_ptr<KeyValue> key_value_;
  Mutex commit_mu_;
  absl::Status broken_ ABSL_GUARDED_BY(commit_mu_);  // not OK after a failed commit
};

}  // namespace

void MetadataBatch::Put(std::string key, std::string value) {
  entries_.push_back({Entry::kPut, std::move(key), std::move(value)});
}

void MetadataBatch::PutSite(const SiteRecord& record) {
  Put(std::string(kSiteKey), EncodeSite(record));
}
void MetadataBatch::PutDevice(const DeviceRecord& record) {
  Put(DeviceKey(record.id), EncodeDevice(record));
}
void MetadataBatch::DeleteDevice(const Uuid& device) {
  entries_.push_back({Entry::kDelete, DeviceKey(device), ""});
}
void MetadataBatch::PutVolume(const VolumeRecord& record) {
  Put(VolumeKey(record.id), EncodeVolume(record));
}
void MetadataBatch::DeleteVolume(const Uuid& volume) {
  entries_.push_back({Entry::kDelete, VolumeKey(volume), ""});
  entries_.push_back({Entry::kDeletePrefix, RunPrefix(volume), ""});
  entries_.push_back({Entry::kDeletePrefix, GrantPrefix(volume), ""});
}
void MetadataBatch::ReplaceRuns(const Uuid& volume, const std::vector<MapRun>& runs) {
  entries_.push_back({Entry::kDeletePrefix, RunPrefix(volume), ""});
  for (const MapRun& run : runs) Put(RunKey(volume, run), EncodeRun(run));
}
void MetadataBatch::PutRun(const Uuid& volume, const MapRun& run) {
  Put(RunKey(volume, run), EncodeRun(run));
}
void MetadataBatch::DeleteRun(const Uuid& volume, uint32_t column, uint32_t leg, ColumnUnit first) {
  MapRun run;
  run.column = column;
  run.leg = leg;
  run.first = first;
  entries_.push_back({Entry::kDelete, RunKey(volume, run), ""});
}
void MetadataBatch::PutGrant(const Uuid& volume, const GrantRecord& grant) {
  Put(GrantKey(volume, grant.grant.legs[0]), EncodeGrant(grant));
}
void MetadataBatch::DeleteGrant(const Uuid& volume, const UnitPlace& first_leg) {
  entries_.push_back({Entry::kDelete, GrantKey(volume, first_leg), ""});
}

absl::StatusOr<std::unique_ptr<MetadataStore>> OpenStoreOver(std::unique_ptr<KeyValue> key_value,
                                                             absl::string_view where) {
  constexpr absl::string_view kRestore =
      "; put a backup of the store in its place, or move it away to begin an empty site";
  auto version = key_value->Get(kStoreVersionKey);
  if (!version.ok()) return version.status();
  if (version->has_value()) {
    auto decoded = DecodeStoreVersion(**version);
    if (!decoded.ok()) {
      return absl::Status(decoded.status().code(),
                          absl::StrCat(where, ": ", decoded.status().message(),
                                       absl::IsDataLoss(decoded.status()) ? kRestore : ""));
    }
  } else {
    // New, or the machine died before the version was durable: then it is still empty.
    absl::Status any = key_value->Scan("", [](absl::string_view key, absl::string_view) {
      return absl::DataLossError(
          absl::StrCat("it has key ", ShowKey(key), " but no format record"));
    });
    if (!any.ok()) {
      return absl::Status(any.code(), absl::StrCat(where, ": ", any.message(), kRestore));
    }
    absl::Status written = key_value->Write(
        {{MetadataBatch::Entry::kPut, std::string(kStoreVersionKey), EncodeStoreVersion()}});
    if (!written.ok()) return written;
  }
  return std::unique_ptr<MetadataStore>(new RecordStore(std::move(key_value)));
}

}  // namespace braid
