// optim/convert.h
//
// Conversions between float types, and accumulation of gradients. Values are converted and rounded
// as core/float_bits.h says, on every vector target; a value is left as it is in its own type.
// Pure, thread-safe, no alignment beyond that of the types.

#ifndef SLUICE_OPTIM_CONVERT_H_
#define SLUICE_OPTIM_CONVERT_H_

#include <cstddef>
#include <cstdint>

#include "core/float_bits.h"
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

}  // namespace sluice

#endif  // SLUICE_OPTIM_CONVERT_H_
