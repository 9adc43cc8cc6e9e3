#include "core/checksum.h"

#include <xxhash.h>

#include <array>

// Its functions take the widest vectors of the CPU at hand, where the plain ones have those that
// the library was compiled for: on a usual distribution SSE2, at a third of AVX-512's speed.
#ifdef SLUICE_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

namespace sluice {

namespace {

// The library chooses at the first long block, without a thought of other threads.
bool Choose() {
  const std::array<std::byte, 512> block{};
  return XXH3_64bits_withSeed(block.data(), block.size(), 1) != 0;
}

}  // namespace

uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation) {
  [[maybe_unused]] static const bool chosen = Choose();
  // Two odd constants keep (block, generation) pairs apart in one seed.
  const uint64_t seed =
      (uint64_t{block.value()} + 1) * 0x9E3779B97F4A7C15u ^ generation * 0xC2B2AE3D27D4EB4Fu;
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

}  // namespace sluice
