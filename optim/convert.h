// optim/convert.h
//
// Conversions between float types, and accumulation of gradients. Rounding is to nearest even and
// never left to a conversion instruction, so that every vector target and PyTorch agree bit for
// bit, subnormals of every type included and whatever the thread's FTZ and DAZ. Overflow is Inf. A
// NaN stays a NaN: 0x7FC0 in bf16, 0x7E00 with its sign in fp16, quiet with its payload from fp16
// to fp32, and as it was from bf16 to fp32 and to its own type. Pure, thread-safe, no alignment
// beyond that of the types.

#ifndef SLUICE_OPTIM_CONVERT_H_
#define SLUICE_OPTIM_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "core/grid.h"

namespace sluice {

// to[i] = from[i] for i < n. No overlap, unless the types are equal and the pointers too.
void Convert(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n);

// into[i] = into[i] + from[i], computed in fp32 and rounded to `type`, as PyTorch adds gradients of
// that type. The addition is the thread's: with DAZ, fp32 subnormals (bf16's are such) count as 0.
// No overlap.
void Accumulate(void* into, const void* from, FloatType type, size_t n);

// Wherever param[i] is not what master[i] rounds to in `type`, bit for bit, somebody has changed
// it: master[i] becomes its value. No overlap.
void AdoptChanged(const void* param, FloatType type, float* master, size_t n);

// One value, in plain integer code; the vector code is tested against it.
float ToFloat(uint16_t bits, FloatType type);  // kBf16 or kF16
uint16_t FromFloat(float value, FloatType type);

}  // namespace sluice

#endif  // SLUICE_OPTIM_CONVERT_H_
