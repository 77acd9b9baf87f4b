#include "controlplane/core/volume_spec.h"

#include "absl/numeric/bits.h"
#include "absl/strings/str_cat.h"
#include "lib/base/size_text.h"
#include "lib/base/uuid.h"

namespace braid {
namespace {

// A striped volume uses as many devices as it can, but no more than bring something: four
// already carry four times one device's rate.
constexpr uint32_t kStripesByDefault = 4;
constexpr uint32_t kCopiesByDefault = 2;

bool IsStriped(Layout layout) {
  return layout == Layout::kStriped || layout == Layout::kStripedMirrors;
}
bool IsMirrored(Layout layout) {
  return layout == Layout::kMirrored || layout == Layout::kStripedMirrors;
}
Layout LayoutOf(bool striped, bool mirrored) {
  if (striped) return mirrored ? Layout::kStripedMirrors : Layout::kStriped;
  return mirrored ? Layout::kMirrored : Layout::kLinear;
}
const char* Name(Layout layout) {
  switch (layout) {
    case Layout::kLinear:
      return "linear";
    case Layout::kStriped:
      return "striped";
    case Layout::kMirrored:
      return "mirrored";
    case Layout::kStripedMirrors:
      return "striped-mirrors";
  }
  return "unknown";
}

absl::Status CheckCounts(const VolumeSpec& spec) {
  if (spec.stripes > kMaxColumns) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.stripes, " stripes are too many; up to ", kMaxColumns, " can be had"));
  }
  if (spec.copies > kMaxLegs) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.copies, " copies are too many; up to ", kMaxLegs, " can be had"));
  }
  if (spec.stripe_bytes != 0 &&
      (!absl::has_single_bit(spec.stripe_bytes) || spec.stripe_bytes < kMinStripeBytes ||
       spec.stripe_bytes > kMaxStripeBytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a stripe size of ", spec.stripe_bytes, " bytes is not possible; give a power of two from ",
        FormatSize(kMinStripeBytes), " to ", FormatSize(kMaxStripeBytes)));
  }
  return absl::OkStatus();
}

// The layout that is asked for, or follows from the counts; and whether these agree.
absl::StatusOr<Layout> ChooseLayout(const VolumeSpec& spec) {
  const Layout layout = spec.layout.value_or(LayoutOf(spec.stripes > 1, spec.copies > 1));
  if (!IsStriped(layout) && spec.stripes > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", Name(layout), " volume has 1 stripe, not ", spec.stripes, "; ask for ",
                     Name(LayoutOf(true, IsMirrored(layout))), " or leave the stripes out"));
  }
  if (!IsMirrored(layout) && spec.copies > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", Name(layout), " volume has 1 copy, not ", spec.copies, "; ask for ",
                     Name(LayoutOf(IsStriped(layout), true)), " or leave the copies out"));
  }
  if (IsStriped(layout) && spec.stripes == 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", Name(layout), " volume needs at least 2 stripes"));
  }
  if (IsMirrored(layout) && spec.copies == 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", Name(layout), " volume needs at least 2 copies"));
  }
  if (!IsStriped(layout) && spec.stripe_bytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ", Name(layout),
                     " volume has no stripe size; leave it out or ask for 2 or more stripes"));
  }
  return layout;
}

absl::Status CheckThin(const VolumeSpec& spec) {
  const auto thick_has = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        what,
        " is for thin volumes, and this one has all its space from the start; ask for a "
        "thin volume (--thin) or leave it out"));
  };
  if (!spec.thin) {
    if (spec.reserve_bytes != 0) return thick_has("a reserve");
    if (spec.on_full.has_value()) return thick_has("what to do when the pool is full");
    if (spec.full_timeout_seconds != 0) return thick_has("a timeout for a full pool");
    return absl::OkStatus();
  }
  if (spec.reserve_bytes % kSmallExtentBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a reserve of ", spec.reserve_bytes,
                                                   " bytes is not possible; give a multiple of ",
                                                   FormatSize(kSmallExtentBytes)));
  }
  if (spec.reserve_bytes > spec.size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a reserve of ", spec.reserve_bytes,
                                                   " bytes is more than the volume's ",
                                                   spec.size_bytes, "; give at most its size"));
  }
  const OnFull on_full = spec.on_full.value_or(OnFull::kFail);
  if (on_full != OnFull::kFail && on_full != OnFull::kWait) {
    return absl::InvalidArgumentError(
        "what to do when the pool is full is not known; ask for fail or wait");
  }
  if (spec.full_timeout_seconds != 0 && on_full != OnFull::kWait) {
    return absl::InvalidArgumentError(
        "a timeout for a full pool needs writes that wait; ask for that (--on-full wait) or leave "
        "the timeout out");
  }
  if (spec.full_timeout_seconds > kMaxFullTimeoutSeconds) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a timeout of ", spec.full_timeout_seconds, " seconds is too long; give up to ",
        kMaxFullTimeoutSeconds, ", or 0 to wait without limit"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckVolumeSize(uint64_t size_bytes) {
  if (size_bytes == 0) {
    return absl::InvalidArgumentError("a volume needs a size; the smallest is 512 bytes");
  }
  if (size_bytes > kMaxVolumeBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a size of ", size_bytes, " bytes is too large; the largest is ", kMaxVolumeBytes));
  }
  if (size_bytes % kSectorBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a size of ", size_bytes, " bytes is not whole sectors; give a multiple of ",
                     kSectorBytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<VolumePlan> PlanVolume(const VolumeSpec& spec) {
  absl::Status status = CheckName("volume name", spec.name);
  if (!status.ok()) return status;
  if (Uuid::Parse(spec.name).ok()) {
    return absl::InvalidArgumentError("a volume name must not look like a UUID; choose another");
  }
  if (!spec.device_class.empty()) status = CheckName("device class", spec.device_class);
  if (status.ok()) status = CheckVolumeSize(spec.size_bytes);
  if (status.ok()) status = CheckCounts(spec);
  if (status.ok()) status = CheckThin(spec);
  if (!status.ok()) return status;
  absl::StatusOr<Layout> layout = ChooseLayout(spec);
  if (!layout.ok()) return layout.status();

  uint32_t most = 1;
  uint32_t least = 1;
  if (IsStriped(*layout)) {
    most = spec.stripes != 0 ? spec.stripes : kStripesByDefault;
    least = spec.stripes != 0 ? spec.stripes : 2;
  }
  const uint32_t copies =
      IsMirrored(*layout) ? (spec.copies != 0 ? spec.copies : kCopiesByDefault) : 1;
  const uint64_t stripe_bytes = spec.stripe_bytes != 0 ? spec.stripe_bytes : kDefaultStripeBytes;
  VolumePlan plan{.layout = *layout, .shapes = {}};
  for (uint32_t stripes = most; stripes >= least; --stripes) {
    absl::StatusOr<Geometry> shape = Geometry::Make(spec.size_bytes, stripes, stripe_bytes, copies);
    if (!shape.ok()) return shape.status();
    plan.shapes.push_back(*shape);
  }
  return plan;
}

}  // namespace braid
