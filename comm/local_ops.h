// comm/local_ops.h
//
// What is true of operations whatever carries them out: what views a kind wants, which ranks it
// needs, whether two ranks' operations are the same one. And how to carry one out where the memory
// of all ranks is at hand: in one process, real or simulated.
//
// Threads: any. Allocates only what it returns.

#ifndef SLUICE_COMM_LOCAL_OPS_H_
#define SLUICE_COMM_LOCAL_OPS_H_

#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/rank.h"

namespace sluice {

// What is wrong with the views of `op` on rank `self`, which only a bug can cause; empty if
// nothing.
std::string WrongViews(const CommOp& op, Rank self, uint32_t ranks);

// "all-gather of 4096 bytes", "send of 12 bytes to rank 3".
std::string OpName(const CommOp& op);

// Whether the operation of rank `self` needs one of rank `other`.
bool Needs(const CommOp& op, Rank self, Rank other);

// Where two ranks' operations, which need each other, are not the same one: "rank 0 calls ..., rank
// 1 ...", else empty.
std::string Disagreement(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b);

// What goes to other ranks and comes from them, the cheapest way for the kind.
Bytes SentBytes(const CommOp& op, Rank self, uint32_t ranks);
Bytes ReceivedBytes(const CommOp& op, Rank self, uint32_t ranks);

// What one rank does of an operation whose ranks have all come: it reads the others' memory and
// writes its own. In phases: none begins before all ranks have done the one before, and the views
// are in use until all have done the last. Sums are in rank order, in fp32.
class LocalPart {
 public:
  LocalPart(Rank self, uint32_t ranks) : self_(self), addends_(ranks) {}

  static int phases(CommKind kind) { return kind == CommKind::kAllReduce ? 2 : 1; }
  // `own` is this rank's; `ops` are by rank, those of ranks that take part. A send reads none of
  // them: its peer may have ended it already.
  void Do(const CommOp& own, std::span<CommOp* const> ops, int phase);

 private:
  void AddSlice(const CommOp& own, std::span<CommOp* const> ops);
  void TakeSlices(const CommOp& own, std::span<CommOp* const> ops) const;

  const Rank self_;
  std::vector<const void*> addends_;
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_OPS_H_
