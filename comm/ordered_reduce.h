// comm/ordered_reduce.h
//
// The reduction over ranks whose bits depend on nothing but the values and the number of ranks:
// every rank sends each other its part of that one's shard (an all-to-all, which is the traffic of
// a reduce-scatter), and adds what came in rank order, in fp32. A sum of one element knows nothing
// of its neighbours, so buckets and partitions of any size give the same bits.
//
// Threads: any; an OrderedReduce belongs to one thread at a time.

#ifndef SLUICE_COMM_ORDERED_REDUCE_H_
#define SLUICE_COMM_ORDERED_REDUCE_H_

#include <cstddef>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/partition.h"
#include "core/grid.h"
#include "core/types.h"

namespace sluice {

// to[i] = ((from[0][i] + from[1][i]) + from[2][i]) + ..., each addition in fp32, the result rounded
// to `to_type` once, to nearest even. Additions flush subnormals to zero (docs/architecture.md,
// "Bits"), whatever the thread does otherwise; a lone value is only converted. Which NaN comes of
// NaNs is not promised. `from` has at least one. `to` may be one of `from` if the types are the
// same; it overlaps none otherwise. Pure, no alignment beyond that of the types, no allocation.
void OrderedSum(std::span<const void* const> from, FloatType from_type, void* to, FloatType to_type,
                size_t n);

// One reduction at a time, of a bucket of a unit's gradients. Allocates when it is made only.
class OrderedReduce {
 public:
  struct Bucket {
    ElementRange range;      // of the unit's run, any
    ConstMemoryView values;  // this rank's, of that range
    FloatType type = FloatType::kF32;
    MemoryView staging;  // StagingSize of it at least
  };

  OrderedReduce(Rank rank, uint32_t ranks);

  // What the other ranks' parts take: all but one of `ranks` times this rank's elements in `range`.
  static Bytes StagingSize(const Partition& partition, Rank rank, ElementRange range,
                           FloatType type);

  // Makes `op` the exchange, for the caller to enqueue; what it says of fence and event is left as
  // it is. The bucket's memory stays as it is until Sum has returned. Every rank prepares the same
  // ranges in the same order. The partition is of the ranks that this was made for.
  void Prepare(const Partition& partition, const Bucket& bucket, CommOp* op);

  // This rank's elements in the range, as places in the run; empty if it has none there.
  ElementRange mine() const { return mine_; }

  // After the exchange has ended well: mine().size() sums, from `to` on.
  void Sum(void* to, FloatType to_type);

 private:
  const Rank rank_;
  FloatType type_ = FloatType::kF32;
  ElementRange mine_;
  std::vector<ConstMemoryView> send_;  // by rank, as the rest
  std::vector<MemoryView> receive_;
  std::vector<const void*> addends_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_ORDERED_REDUCE_H_
