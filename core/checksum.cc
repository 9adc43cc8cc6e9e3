#include "core/checksum.h"

#include <xxhash.h>

namespace sluice {

uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation) {
  // Two odd constants keep (block, generation) pairs apart in one seed.
  const uint64_t seed =
      (uint64_t{block.value()} + 1) * 0x9E3779B97F4A7C15u ^ generation * 0xC2B2AE3D27D4EB4Fu;
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

}  // namespace sluice
