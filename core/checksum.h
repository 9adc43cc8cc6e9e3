// core/checksum.h
//
// XXH3 (64 bits) of a block, seeded with what the block is and which of its versions this is: a
// stale or misplaced block fails as surely as a flipped bit. Thread-safe, allocates nothing.

#ifndef SLUICE_CORE_CHECKSUM_H_
#define SLUICE_CORE_CHECKSUM_H_

#include <cstdint>

#include "core/types.h"

namespace sluice {

uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation);

}  // namespace sluice

#endif  // SLUICE_CORE_CHECKSUM_H_
