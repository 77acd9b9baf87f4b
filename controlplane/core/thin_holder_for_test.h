// A data plane for tests: holds a thin volume, takes space, writes and binds it, as a plugin
// does, without a page table. What it notes outlives its process, but not the machine.
#ifndef BRAID_CONTROLPLANE_CORE_THIN_HOLDER_FOR_TEST_H_
#define BRAID_CONTROLPLANE_CORE_THIN_HOLDER_FOR_TEST_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controlplane/core/site_for_test.h"

namespace braid {

class ThinHolder {
 public:
  // The volume exists, and the host outlives the holder.
  ThinHolder(FakeHost* host, SiteForTest& site, const std::string& volume)
      : host_(*host), record_(site.volumes->Get(volume)->volume->record) {
    lock_ = *site.attachments->Prepare(record_);
  }

  const Uuid& id() const { return record_.id; }
  bool open() const { return open_; }
  Epoch epoch() const { return epoch_; }
  const std::vector<Grant>& reservation() const { return reservation_; }
  // Units that have space, by (column, unit), as this holder sees it.
  const std::set<std::pair<uint32_t, uint64_t>>& mapped() const { return mapped_; }
  bool all_committed() const { return committed_ == noted(); }

  // A new process, which takes the journal over when there is one.
  absl::StatusOr<Opened> Open(SiteForTest& site, bool read_only = false) {
    host_.SetLocked(lock_, true);
    absl::StatusOr<Opened> opened =
        site.attachments->Open(record_.id, {.boot_id = host_.BootId(),
                                            .pid = 7,
                                            .read_only = read_only,
                                            .settles = read_only ? Epoch() : journal_epoch_});
    if (!opened.ok()) return opened;
    open_ = true;
    record_ = opened->volume->record;
    geometry_ = opened->volume->geometry;
    epoch_ = record_.attachment.epoch;
    if (!read_only) journal_epoch_ = epoch_;
    if (!opened->takes_over) changes_.clear();
    reservation_ = opened->grants;
    mapped_.clear();
    for (const MapRun& run : *opened->runs) {
      if (run.leg == 0) SetMapped(run.column, run.first.value(), run.count, true);
    }
    committed_ = record_.map_sequence;
    if (changes_.empty()) {
      first_change_ = committed_ + 1;
    } else {
      // What is not applied yet is applied here, and committed again.
      for (uint64_t n = std::max(first_change_, committed_ + 1); n <= noted(); ++n) {
        const MapChange& change = changes_[n - first_change_];
        const bool bind = change.kind != MapChange::Kind::kUnbind;
        if (bind && !TakeExactly(change)) {
          return absl::DataLossError("a change that was noted binds what is not granted");
        }
        SetMapped(change.column, change.first.value(), change.count, bind);
      }
    }
    return opened;
  }
  // The process ends, however.
  void Die() {
    host_.SetLocked(lock_, false);
    open_ = false;
  }
  // The machine restarted; the host was told.
  void LoseJournal() {
    open_ = false;
    journal_epoch_ = Epoch();
    changes_.clear();
  }
  absl::Status Close(SiteForTest& site) {
    absl::Status status = site.attachments->Close(record_.id, epoch_);
    if (status.ok()) Die();
    return status;
  }

  // What was granted, to be looked at.
  absl::StatusOr<Spaces::Taken> Take(SiteForTest& site, uint64_t units) {
    const auto known = static_cast<uint32_t>(record_.devices.size());
    absl::StatusOr<Spaces::Taken> taken = site.spaces->Take(record_.id, epoch_, units, known);
    if (!taken.ok()) return taken;
    for (const DevicePtr& device : taken->devices) record_.devices.push_back(device->id);
    reservation_.insert(reservation_.end(), taken->grants.begin(), taken->grants.end());
    return taken;
  }

  // Binds units that have no space to the last `count` of a grant, or fewer where it has fewer;
  // how many. With `move` units that have space.
  uint64_t Bind(uint32_t column, uint64_t first, uint64_t count, bool move = false) {
    if (reservation_.empty()) return 0;
    Grant& grant = reservation_.back();
    count = std::min(count, grant.count);
    MapChange change{.kind = move ? MapChange::Kind::kMove : MapChange::Kind::kBind,
                     .column = column,
                     .first = ColumnUnit(first),
                     .count = static_cast<uint32_t>(count)};
    grant.count -= count;
    for (size_t leg = 0; leg < grant.legs.size(); ++leg) {
      change.legs[leg] = {grant.legs[leg].device, grant.legs[leg].unit + grant.count};
    }
    if (grant.count == 0) reservation_.pop_back();
    Note(change);
    SetMapped(column, first, count, true);
    return count;
  }
  void Unbind(uint32_t column, uint64_t first, uint64_t count) {
    Note({.kind = MapChange::Kind::kUnbind,
          .column = column,
          .first = ColumnUnit(first),
          .count = static_cast<uint32_t>(count)});
    SetMapped(column, first, count, false);
  }
  // Commits what is noted, perhaps with changes that were committed before.
  absl::Status Commit(SiteForTest& site, uint64_t again = 0) {
    const uint64_t first = std::max(first_change_, committed_ + 1 - std::min(again, committed_));
    const absl::StatusOr<uint64_t> applied = site.spaces->CommitMap(
        record_.id, epoch_, first,
        absl::MakeConstSpan(changes_).subspan(static_cast<size_t>(first - first_change_)));
    if (!applied.ok()) return applied.status();
    if (*applied != noted()) return absl::InternalError("not all was applied");
    committed_ = *applied;
    return absl::OkStatus();
  }
  absl::Status Return(SiteForTest& site, size_t which) {
    const Grant grant = reservation_[which];
    reservation_.erase(reservation_.begin() + static_cast<std::ptrdiff_t>(which));
    return site.spaces->Return(record_.id, epoch_, {grant});
  }

  // Calls fn(device, byte offset) for each unit of each leg of a grant.
  template <class Fn>
  void ForEachUnit(SiteForTest& site, const Grant& grant, Fn fn) {
    for (const UnitPlace& leg : grant.legs) {
      const DevicePtr record = site.state->FindDevice(record_.devices[leg.device.value()]);
      const auto device = host_.OpenDevice(record->path, {});
      for (uint64_t i = 0; i < grant.count; ++i) {
        fn(**device, (leg.unit.value() + i) * kSmallExtentBytes);
      }
    }
  }
  bool IsMapped(uint32_t column, uint64_t unit) const { return mapped_.contains({column, unit}); }
  const Geometry& geometry() const { return geometry_; }

 private:
  uint64_t noted() const { return first_change_ + changes_.size() - 1; }
  void Note(const MapChange& change) { changes_.push_back(change); }
  void SetMapped(uint32_t column, uint64_t first, uint64_t count, bool mapped) {
    for (uint64_t unit = first; unit < first + count; ++unit) {
      if (mapped) {
        mapped_.insert({column, unit});
      } else {
        mapped_.erase({column, unit});
      }
    }
  }
  bool TakeExactly(const MapChange& change) {
    for (size_t i = 0; i < reservation_.size(); ++i) {
      const Grant grant = reservation_[i];
      const uint64_t skip = change.legs[0].unit - grant.legs[0].unit;
      if (change.legs[0].device != grant.legs[0].device ||
          change.legs[0].unit < grant.legs[0].unit || skip + change.count > grant.count) {
        continue;
      }
      reservation_.erase(reservation_.begin() + static_cast<std::ptrdiff_t>(i));
      const auto put_back = [&](uint64_t from, uint64_t count) {
        if (count == 0) return;
        Grant part{.count = count, .legs = grant.legs};
        for (UnitPlace& leg : part.legs) leg.unit = leg.unit + from;
        reservation_.push_back(std::move(part));
      };
      put_back(0, skip);
      put_back(skip + change.count, grant.count - skip - change.count);
      return true;
    }
    return false;
  }

  FakeHost& host_;
  VolumeRecord record_;  // its devices are those that the holder knows
  Geometry geometry_;
  std::string lock_;
  bool open_ = false;
  Epoch epoch_;
  std::vector<Grant> reservation_;
  std::set<std::pair<uint32_t, uint64_t>> mapped_;
  uint64_t committed_ = 0;
  // The journal.
  Epoch journal_epoch_;
  uint64_t first_change_ = 1;
  std::vector<MapChange> changes_;
};

}  // namespace braid

#endif  // BRAID_CONTROLPLANE_CORE_THIN_HOLDER_FOR_TEST_H_
