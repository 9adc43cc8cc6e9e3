// core/element_type.h
//
// What the elements of values are. Pure data, any thread.

#ifndef SLUICE_CORE_ELEMENT_TYPE_H_
#define SLUICE_CORE_ELEMENT_TYPE_H_

#include <cstdint>

#include "core/grid.h"
#include "core/status.h"

namespace sluice {

// A float type; or bytes, which are moved and never converted.
class ElementType {
 public:
  constexpr ElementType(FloatType type) : type_(type) {}  // NOLINT: a float type is one
  static constexpr ElementType Bytes() {
    ElementType bytes(FloatType::kF32);
    bytes.bytes_ = true;
    return bytes;
  }

  constexpr bool is_bytes() const { return bytes_; }
  // Precondition: !is_bytes(). So nothing can convert bytes.
  FloatType floats() const {
    SLUICE_CHECK_MSG(!bytes_, "bytes are not numbers");
    return type_;
  }
  constexpr int64_t size() const { return bytes_ ? 1 : SizeOf(type_); }  // of one, in bytes
  constexpr const char* name() const { return bytes_ ? "bytes" : Name(type_); }

  friend constexpr bool operator==(ElementType, ElementType) = default;

 private:
  FloatType type_;
  bool bytes_ = false;
};

}  // namespace sluice

#endif  // SLUICE_CORE_ELEMENT_TYPE_H_
