// comm/nccl_calls.h
//
// Which of NCCL's calls carry out an operation, and the copies around them. Where all ranks' views
// lie so that NCCL can take them, one call or one group of calls does it, in place: what is of the
// same size for each and in one piece as NCCL's own collectives, what differs in size as grouped
// broadcasts, reductions or sends. Where they don't, pieces of a fixed size go through the stream's
// staging, so that ranks need not know how the others' memory is cut.
//
// Sums are NCCL's own: their bits depend on its algorithms. (comm/ordered_reduce.h is for those
// that must not.)
//
// Threads: the one that drives the stream. Allocates at construction.

#ifndef SLUICE_COMM_NCCL_CALLS_H_
#define SLUICE_COMM_NCCL_CALLS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "comm/comm_op.h"
#include "comm/local_part.h"
#include "comm/nccl_handle.h"
#include "comm/rank.h"
#include "core/side_stream.h"

namespace sluice {

// How a rank's views lie. The calls depend on what is so on all ranks of an operation.
inline constexpr uint32_t kEachInOnePiece = 1;  // what goes to, or comes from, each rank
inline constexpr uint32_t kAllInOnePiece = 2;   // and of all ranks, in their order, without gaps
uint32_t LayoutOf(const CommOp& op, uint32_t ranks);

class NcclCalls {
 public:
  // The least staging for so many ranks.
  static Bytes StagingMin(uint32_t ranks) { return Bytes(int64_t{2} * ranks * kAlignment); }

  // Neither is owned.
  NcclCalls(NcclHandle* handle, SideStream* stream, Rank self, uint32_t ranks);

  // Puts `op`, to which all ranks that it needs have come, on the stream. `layout` is what all have
  // of LayoutOf. Errors: NCCL's or the device's; then part of it may be on the stream.
  absl::Status Launch(const CommOp& op, uint32_t layout, const NcclPatience& patience);

 private:
  static constexpr int64_t kAlignment = 256;  // of pieces in staging

  // Of what goes to a rank and comes from it.
  struct Way {
    ViewCursor<ConstMemoryView> to;
    ViewCursor<MemoryView> from;
    size_t send = 0;
    size_t receive = 0;
  };

  absl::Status Gather(const CommOp& op, uint32_t layout, const NcclPatience& patience);
  absl::Status ReduceToEach(const CommOp& op, uint32_t layout, const NcclPatience& patience);
  absl::Status ReduceToAll(const CommOp& op, uint32_t layout, const NcclPatience& patience);
  absl::Status Broadcast(const CommOp& op, const NcclPatience& patience);
  // From rank to rank: `in_place` where each is in one piece.
  absl::Status Move(const CommOp& op, bool in_place, const NcclPatience& patience);
  absl::Status MovePieces(size_t longest, const NcclPatience& patience);
  void SetWays(const CommOp& op);

  // Carries out the calls that `calls(check)` makes as one group; `check` takes each one's result.
  template <typename F>
  absl::Status Group(const char* what, const NcclPatience& patience, F&& calls);

  // Copies on the stream, `bytes` at most; both cursors advance.
  template <typename View>
  absl::Status Copy(ViewCursor<View>* from, ViewCursor<MemoryView>* to, size_t bytes);
  absl::Status Pack(ViewCursor<ConstMemoryView>* from, MemoryView to);
  absl::Status Unpack(MemoryView from, ViewCursor<MemoryView>* to);

  size_t PieceOf(size_t parts) const;

  NcclHandle& handle_;
  SideStream& stream_;
  const Rank self_;
  const uint32_t ranks_;
  std::vector<Way> ways_;  // by rank
};

}  // namespace sluice

#endif  // SLUICE_COMM_NCCL_CALLS_H_
