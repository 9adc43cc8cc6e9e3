// comm/ordered_reduce.h
//
// The sum over ranks whose bits depend on nothing but the values and the number of ranks: every
// rank sends each other its part of that one's shard (an all-to-all, which is the traffic of a
// reduce-scatter), and adds what came, in fp32, as a binary tree over the ranks in their order:
//     0+1  2+3  4+5  6      then  (0+1)+(2+3)  (4+5)+6      then the two.
// So ranks 2^k j to 2^k (j + 1) - 1 may be added up where they are, and their sum be sent on. A sum
// of one element knows nothing of its neighbours: buckets and partitions of any size give the same
// bits.
//
// Threads: any.

#ifndef SLUICE_COMM_ORDERED_REDUCE_H_
#define SLUICE_COMM_ORDERED_REDUCE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/grid.h"

namespace sluice {

// to[i] = scale * the sum of from[0][i], from[1][i], ..., each operation in fp32, the result
// rounded to `to_type` once, to nearest even. Additions and products flush subnormals to zero
// (docs/architecture.md, "Bits"), whatever the thread does otherwise; with a scale of 1 nothing is
// multiplied, and a lone value is only converted. Which NaN comes of NaNs is not promised. `from`
// has at least one. `to` may be one of `from` if the types are the same; it overlaps none
// otherwise. Pure, no alignment beyond that of the types, no allocation.
void OrderedSum(std::span<const void* const> from, FloatType from_type, float scale, void* to,
                FloatType to_type, size_t n);

// What an exchange leaves of one rank's shard: what the rank itself has, and what the others have,
// side by side in the order of ranks, `stride` bytes each.
struct Addends {
  const std::byte* own = nullptr;
  const std::byte* others = nullptr;
  size_t stride = 0;
  uint32_t rank = 0;
  uint32_t ranks = 1;

  const std::byte* of(uint32_t r) const {
    return r == rank ? own : others + (r < rank ? r : r - 1) * stride;
  }
};

// OrderedSum of those, all of `type`, where their memory is: on `stream`, a cudaStream_t whose GPU
// is the thread's current one, or, if it is null, here and now. The same bits in either place. `to`
// may be `own`. Allocates where there are more than 64 ranks and no stream.
void OrderedSumOn(void* stream, const Addends& from, FloatType type, float scale, void* to,
                  size_t n);

}  // namespace sluice

#endif  // SLUICE_COMM_ORDERED_REDUCE_H_
