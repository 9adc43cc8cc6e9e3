// comm/op_rules.h
//
// What is true of operations whatever carries them out: what views a kind wants, which ranks it
// needs, whether two ranks' operations are the same one, and how much it moves.
//
// Threads: any. Allocates only what it returns.

#ifndef SLUICE_COMM_OP_RULES_H_
#define SLUICE_COMM_OP_RULES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "comm/comm_op.h"
#include "comm/rank.h"

namespace sluice {

constexpr bool IsPointToPoint(CommKind kind) {
  return kind == CommKind::kSend || kind == CommKind::kReceive;
}

template <typename View>
size_t SizeOfAll(std::span<const View> views) {
  size_t total = 0;
  for (const View& view : views) total += view.size();
  return total;
}

// What is wrong with the views of `op` on rank `self`, which only a bug can cause; empty if
// nothing.
std::string WrongViews(const CommOp& op, Rank self, uint32_t ranks);

// Finds the sizes of operations whose views are right.
class OpSizer {
 public:
  OpSizer(Rank self, uint32_t ranks);
  CommSizes SizesOf(const CommOp& op) const;

 private:
  const Rank self_;
  // Of the place of what rank i sends to rank j in the sums: kFrom^i * kTo^j.
  const uint64_t from_self_;
  const uint64_t to_self_;
  const uint64_t from_all_;
  const uint64_t to_all_;
};

// "all-gather of 4096 bytes", "send of 12 bytes to rank 3".
std::string OpName(const CommOp& op);

// Whether the operation of rank `self` needs one of rank `other`.
bool Needs(const CommOp& op, Rank self, Rank other);

// Where two ranks' operations, which need each other, are not the same one: "rank 0 calls ..., rank
// 1 ...", else empty. First whatever their sizes; then, of the same one, whether one expects
// another size than it is sent by the other.
std::string DifferentCalls(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b);
std::string DifferentSizes(const CommOp& a, Rank rank_a, const CommOp& b, Rank rank_b);

// What goes to other ranks and comes from them, the cheapest way for the kind. Since Enqueue.
Bytes SentBytes(const CommOp& op, uint32_t ranks);
Bytes ReceivedBytes(const CommOp& op, uint32_t ranks);

}  // namespace sluice

#endif  // SLUICE_COMM_OP_RULES_H_
