// offload/plan/unit_types.h
//
// What the elements of a unit are: each unit has types of its own, and nothing else in the runtime
// says of what type a parameter or gradient is. Pure data, any thread.

#ifndef SLUICE_OFFLOAD_PLAN_UNIT_TYPES_H_
#define SLUICE_OFFLOAD_PLAN_UNIT_TYPES_H_

#include "core/element_type.h"
#include "core/grid.h"

namespace sluice {

struct UnitTypes {
  ElementType param = FloatType::kF32;  // of the copies that compute uses
  FloatType grad = FloatType::kF32;     // that gradients come and are kept in; not of bytes

  friend constexpr bool operator==(UnitTypes, UnitTypes) = default;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_UNIT_TYPES_H_
