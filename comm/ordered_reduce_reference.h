// comm/ordered_reduce_reference.h
//
// OrderedSum one value at a time, in plain code; the vector code is tested against it. Not linked
// into the library.

#ifndef SLUICE_COMM_ORDERED_REDUCE_REFERENCE_H_
#define SLUICE_COMM_ORDERED_REDUCE_REFERENCE_H_

#include <cstddef>
#include <span>

#include "core/grid.h"

namespace sluice {

void OrderedSumReference(std::span<const void* const> from, FloatType from_type, float scale,
                         void* to, FloatType to_type, size_t n);

}  // namespace sluice

#endif  // SLUICE_COMM_ORDERED_REDUCE_REFERENCE_H_
