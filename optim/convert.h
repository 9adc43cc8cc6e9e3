// optim/convert.h
//
// Conversions between float types, and accumulation of gradients. Rounding is to nearest even, done
// in integer arithmetic, so that every vector target and PyTorch agree bit for bit, subnormals of
// the 16-bit types included; a NaN stays a (quiet) NaN. Pure, thread-safe, no alignment beyond that
// of the types.

#ifndef SLUICE_OPTIM_CONVERT_H_
#define SLUICE_OPTIM_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "core/grid.h"

namespace sluice {

// to[i] = from[i] for i < n. No overlap, unless the types are equal and the pointers too.
void Convert(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n);

// into[i] = into[i] + from[i], computed in fp32 and rounded to `type`, as PyTorch adds gradients of
// that type.
void Accumulate(void* into, const void* from, FloatType type, size_t n);

// One value, the reference that the vector code is tested against.
float ToFloat(uint16_t bits, FloatType type);  // kBf16 or kF16
uint16_t FromFloat(float value, FloatType type);

}  // namespace sluice

#endif  // SLUICE_OPTIM_CONVERT_H_
