// core/float_bits.h
//
// bf16 and fp16 as numbers, one value at a time, in plain integer code. Rounding is to nearest even
// and never left to a conversion instruction, so that every vector target and PyTorch agree bit for
// bit, subnormals of every type included and whatever the thread's FTZ and DAZ. Overflow is Inf. A
// NaN stays a NaN: 0x7FC0 in bf16, 0x7E00 with its sign in fp16, quiet with its payload from fp16
// to fp32, and as it was from bf16 to fp32. The vector code (convert-inl.h) does the same, and is
// tested against this. Pure, thread-safe.

#ifndef SLUICE_CORE_FLOAT_BITS_H_
#define SLUICE_CORE_FLOAT_BITS_H_

#include <cstdint>

#include "core/grid.h"

namespace sluice {

float ToFloat(uint16_t bits, FloatType type);  // kBf16 or kF16
uint16_t FromFloat(float value, FloatType type);

}  // namespace sluice

#endif  // SLUICE_CORE_FLOAT_BITS_H_
