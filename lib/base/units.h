// Quantities of Braid as types: an extent index is not an epoch is not a byte.
//
// Byte offsets and lengths stay plain uint64_t, since every system call speaks
// them, but their names end in _bytes or say "offset"; what is counted in
// anything else than bytes has a type from this file.
#ifndef BRAID_LIB_BASE_UNITS_H_
#define BRAID_LIB_BASE_UNITS_H_

#include <compare>
#include <cstdint>

namespace braid {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;
inline constexpr uint64_t kTiB = 1024 * kGiB;

// What NBD and every kernel block device address in.
inline constexpr uint64_t kSectorBytes = 512;

// The large unit of mapping, and the small one, a sixty-fourth of it.
inline constexpr uint64_t kExtentBytes = 4 * kMiB;
inline constexpr uint64_t kSmallExtentBytes = 64 * kKiB;
inline constexpr uint32_t kSmallPerExtent = kExtentBytes / kSmallExtentBytes;

// A whole number of one kind of thing. Values of one kind compare and subtract;
// values of different kinds do not mix. Arithmetic is unchecked: callers bound
// their operands first (see checked.h for values from outside).
template <class Tag, class Rep = uint64_t>
class Unit {
 public:
  using rep = Rep;
  constexpr Unit() = default;
  explicit constexpr Unit(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 misreads the defaulted <=>.
  friend constexpr auto operator<=>(Unit, Unit) = default;
  constexpr Unit& operator++() {
    ++value_;
    return *this;
  }
  friend constexpr Unit operator+(Unit a, Rep b) { return Unit(static_cast<Rep>(a.value_ + b)); }
  friend constexpr Rep operator-(Unit a, Unit b) { return static_cast<Rep>(a.value_ - b.value_); }
  template <typename H>
  friend H AbslHashValue(H h, Unit u) {
    return H::combine(std::move(h), u.value_);
  }

 private:
  Rep value_ = 0;
};

// A large extent's place within one column of a volume, counted from 0.
using ExtentIndex = Unit<struct ExtentIndexTag>;
// A place in one column of a volume, in units of kSmallExtentBytes from the column's first
// byte.
using ColumnUnit = Unit<struct ColumnUnitTag>;
// A device's place in one volume's own table of devices. The store, the API and the
// page table use the same number; it never changes while the volume lives.
using DeviceIndex = Unit<struct DeviceIndexTag, uint16_t>;
// A place on a device, in units of kSmallExtentBytes from the device's first byte.
using DeviceUnit = Unit<struct DeviceUnitTag>;
// Each hand-over of a volume's attachment raises it; 0 is "never attached".
using Epoch = Unit<struct EpochTag>;
// Each committed change of a site's state raises it; 0 is the empty state.
using Revision = Unit<struct RevisionTag>;

// From a large extent to its first unit, and from a unit to the large extent around it and
// its place in there.
constexpr ColumnUnit FirstUnit(ExtentIndex extent) {
  return ColumnUnit(extent.value() * kSmallPerExtent);
}
constexpr ExtentIndex ExtentOf(ColumnUnit unit) {
  return ExtentIndex(unit.value() / kSmallPerExtent);
}
constexpr uint32_t SmallOf(ColumnUnit unit) {
  return static_cast<uint32_t>(unit.value() % kSmallPerExtent);
}

}  // namespace braid

#endif  // BRAID_LIB_BASE_UNITS_H_
