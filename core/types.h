// core/types.h
//
// Strong types for quantities that are easily mixed up: amounts of memory, offsets in files,
// indices of things. They cost nothing at run time. Bytes adds and scales; an index only compares.
// None of them converts implicitly.

#ifndef SLUICE_CORE_TYPES_H_
#define SLUICE_CORE_TYPES_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace sluice {

// A number that may not be confused with another number. `Tag` only tells the types apart.
template <typename Tag, typename Rep>
class Strong {
 public:
  using rep = Rep;
  constexpr Strong() = default;
  constexpr explicit Strong(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(Strong, Strong) = default;

 private:
  Rep value_ = 0;
};

using UnitIndex = Strong<struct UnitTag, uint32_t>;      // a unit of the model
using TensorIndex = Strong<struct TensorTag, uint32_t>;  // a parameter tensor of the model
using ChunkIndex = Strong<struct ChunkTag, uint32_t>;    // a piece of a unit's states
using BlockIndex = Strong<struct BlockTag, uint32_t>;    // a block of the block store
using FileIndex = Strong<struct FileTag, uint32_t>;      // a file known to an IoEngine
using FileOffset = Strong<struct OffsetTag, int64_t>;    // bytes from the start of a file

// An amount of memory or storage. Signed, so that a difference is a difference.
class Bytes {
 public:
  constexpr Bytes() = default;
  constexpr explicit Bytes(int64_t value) : value_(value) {}
  constexpr int64_t value() const { return value_; }
  constexpr size_t size() const { return static_cast<size_t>(value_); }

  constexpr Bytes& operator+=(Bytes other) { return value_ += other.value_, *this; }
  constexpr Bytes& operator-=(Bytes other) { return value_ -= other.value_, *this; }
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return Bytes(a.value_ + b.value_); }
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return Bytes(a.value_ - b.value_); }
  friend constexpr Bytes operator*(Bytes a, int64_t n) { return Bytes(a.value_ * n); }
  friend constexpr Bytes operator*(int64_t n, Bytes a) { return a * n; }
  friend constexpr int64_t operator/(Bytes a, Bytes b) { return a.value_ / b.value_; }
  friend constexpr Bytes operator/(Bytes a, int64_t n) { return Bytes(a.value_ / n); }
  friend constexpr auto operator<=>(Bytes, Bytes) = default;

 private:
  int64_t value_ = 0;
};

constexpr Bytes KiB(int64_t n) { return Bytes(n << 10); }
constexpr Bytes MiB(int64_t n) { return Bytes(n << 20); }
constexpr Bytes GiB(int64_t n) { return Bytes(n << 30); }

// `bytes` rounded up to a multiple of `alignment` (> 0, any value).
constexpr Bytes RoundUp(Bytes bytes, Bytes alignment) {
  const int64_t a = alignment.value();
  return Bytes((bytes.value() + a - 1) / a * a);
}

using MemoryView = std::span<std::byte>;  // memory owned by someone else
using ConstMemoryView = std::span<const std::byte>;

}  // namespace sluice

template <typename Tag, typename Rep>
struct std::hash<sluice::Strong<Tag, Rep>> {
  size_t operator()(sluice::Strong<Tag, Rep> v) const { return std::hash<Rep>()(v.value()); }
};

#endif  // SLUICE_CORE_TYPES_H_
