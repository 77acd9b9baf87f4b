#include "lib/volume/attachment_journal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "absl/memory/memory.h"
#include "lib/base/errno_status.h"

namespace braid {
namespace {

constexpr uint64_t kMagic = 0x6c6e4a6469617242;  // "BraidJnl" in the file

}  // namespace

absl::StatusOr<std::unique_ptr<AttachmentJournal>> AttachmentJournal::Open(int fd,
                                                                           const Uuid& boot_id) {
  struct stat st {};
  if (fstat(fd, &st) != 0) return ErrnoStatus(errno, "cannot look at the attachment's lock file");
  // A shorter file has no journal; its pages are made now, so that no later store can fail.
  if (static_cast<uint64_t>(st.st_size) < sizeof(Layout)) {
    if (ftruncate(fd, 0) != 0) return ErrnoStatus(errno, "cannot clear the attachment's journal");
  }
  if (const int error = posix_fallocate(fd, 0, sizeof(Layout)); error != 0) {
    return ErrnoStatus(error, "cannot make room for the attachment's journal");
  }
  void* const at = mmap(nullptr, sizeof(Layout), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return ErrnoStatus(errno, "cannot map the attachment's journal");
  return absl::WrapUnique(new AttachmentJournal(static_cast<Layout*>(at), boot_id));
}

AttachmentJournal::AttachmentJournal(Layout* layout, const Uuid& boot_id)
    : layout_(layout), boot_id_(boot_id), past_(ReadPast()) {
  if (!past_.has_value()) return;
  for (size_t i = 0; i < kWrites; ++i) taken_[i] = layout_->writes[i].length.load() != 0;
}

AttachmentJournal::~AttachmentJournal() { munmap(layout_, sizeof(Layout)); }

std::optional<AttachmentJournal::Past> AttachmentJournal::ReadPast() const {
  if (layout_->magic.load() != kMagic || layout_->boot_id != boot_id_.bytes()) return std::nullopt;
  Past past{.epoch = Epoch(layout_->epoch.load())};
  for (const Slot& slot : layout_->writes) {
    const uint64_t length = slot.length.load();
    if (length != 0) past.writes.push_back({slot.offset.load(), length});
  }
  for (const std::atomic<uint32_t>& doubt : layout_->doubts) {
    const uint32_t index = doubt.load();
    if (index == 0) continue;
    if (index > uint32_t{1} << 16) return std::nullopt;
    past.doubted.emplace_back(static_cast<DeviceIndex::rep>(index - 1));
  }
  return past;
}

void AttachmentJournal::Begin(Epoch epoch) {
  if (past_.has_value() && past_->epoch + 1 != epoch) past_.reset();
  if (!past_.has_value()) {
    for (std::atomic<bool>& taken : taken_) taken.store(false);
    layout_->magic.store(0);
    layout_->boot_id = boot_id_.bytes();
    for (std::atomic<uint32_t>& doubt : layout_->doubts) doubt.store(0);
    for (Slot& slot : layout_->writes) slot.length.store(0);
  }
  layout_->epoch.store(epoch.value());
  layout_->magic.store(kMagic);
}

void AttachmentJournal::ForgetPast() {
  if (!past_.has_value()) return;
  for (const Range& range : past_->writes) {
    for (size_t i = 0; i < kWrites; ++i) {
      Slot& slot = layout_->writes[i];
      if (slot.length.load() != range.length || slot.offset.load() != range.offset) continue;
      slot.length.store(0);
      taken_[i] = false;
    }
  }
  for (DeviceIndex device : past_->doubted) Settled(device);
  past_.reset();
}

size_t AttachmentJournal::TakeSlot() {
  // Each thread begins where it last found one free, so that threads keep to lines of
  // their own.
  thread_local size_t hint = std::hash<std::thread::id>()(std::this_thread::get_id());
  while (true) {
    for (size_t i = 0; i < kWrites; ++i) {
      const size_t slot = (hint + i) % kWrites;
      if (taken_[slot].load(std::memory_order_relaxed) || taken_[slot].exchange(true)) continue;
      hint = slot;
      return slot;
    }
    std::this_thread::yield();
  }
}

AttachmentJournal::Write::Write(AttachmentJournal* journal, uint64_t offset, uint64_t length)
    : journal_(journal) {
  if (journal_ == nullptr) return;
  slot_ = journal_->TakeSlot();
  Slot& slot = journal_->layout_->writes[slot_];
  slot.offset.store(offset, std::memory_order_relaxed);
  slot.length.store(length, std::memory_order_release);
}

AttachmentJournal::Write::~Write() {
  if (journal_ == nullptr) return;
  journal_->layout_->writes[slot_].length.store(0, std::memory_order_release);
  journal_->taken_[slot_].store(false, std::memory_order_release);
}

void AttachmentJournal::Doubt(DeviceIndex device) {
  for (std::atomic<uint32_t>& doubt : layout_->doubts) {
    uint32_t none = 0;
    if (doubt.compare_exchange_strong(none, uint32_t{device.value()} + 1)) return;
  }
}

void AttachmentJournal::Settled(DeviceIndex device) {
  for (std::atomic<uint32_t>& doubt : layout_->doubts) {
    uint32_t noted = uint32_t{device.value()} + 1;
    doubt.compare_exchange_strong(noted, 0);
  }
}

}  // namespace braid
