// comm/comm_op.h
//
// One operation among ranks, as one of them calls it: what kind it is, and which memory it sends
// and receives.

#ifndef SLUICE_COMM_COMM_OP_H_
#define SLUICE_COMM_COMM_OP_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "comm/rank.h"
#include "core/clock.h"
#include "core/event.h"
#include "core/fence.h"
#include "core/grid.h"
#include "core/intrusive_list.h"
#include "core/types.h"

namespace sluice {

//                 send               receive            what is received
enum class CommKind : uint8_t {
  kAllGather,      // one             one per rank       by rank: what it sent
  kReduceScatter,  // one per rank    one                the sum of what was sent for this rank
  kAllReduce,      // one             one, as large      the sum of what was sent
  kBroadcast,      // the peer: one   the others: one    what the peer sent
  kAllToAll,       // one per rank    one per rank       by rank: what it sent to this one
  kSend,           // one, for peer   none
  kReceive,        // none            one                what the peer sent to this rank
  kBarrier,        // none            none               it ends when all ranks have come to it
};
inline constexpr int kCommKindCount = 8;
const char* Name(CommKind kind);

constexpr bool SendsOnePerRank(CommKind kind) {
  return kind == CommKind::kReduceScatter || kind == CommKind::kAllToAll;
}
constexpr bool ReceivesOnePerRank(CommKind kind) {
  return kind == CommKind::kAllGather || kind == CommKind::kAllToAll;
}

// What is sent or received: for each rank some views, in order, which are as one. For kinds that
// have one per rank, `ends` says by rank where in `views` its views end, those of the next begin
// there; for others it is empty, and all views are the one.
template <typename View>
struct Segments {
  std::span<const View> views;
  std::span<const uint32_t> ends;

  // What goes to a rank, or comes from it.
  std::span<const View> operator[](size_t rank) const {
    if (ends.empty()) return views;
    const size_t begin = rank == 0 ? 0 : ends[rank - 1];
    return views.subspan(begin, ends[rank] - begin);
  }
};

// The ends of one view for each rank.
inline std::vector<uint32_t> EndsOfOneEach(uint32_t ranks) {
  std::vector<uint32_t> ends(ranks);
  for (uint32_t r = 0; r < ranks; ++r) ends[r] = r + 1;
  return ends;
}

// What is known of an operation's sizes when it is enqueued.
struct CommSizes {
  Bytes send;     // in all
  Bytes receive;  // in all
  Bytes own;      // what the rank sends to itself
  // Added up over the ranks of one operation, these two are equal if every rank expects what it is
  // sent, and hardly ever if not.
  uint64_t sent_sum = 0;
  uint64_t received_sum = 0;
};

// Views may be empty, of any size each, and lie anywhere; what one rank sends to another is in all
// as large as what that one receives from it, however it is cut on both sides. (What is added is
// cut between values.) No receive view overlaps another view of the operation, but it may be the
// very memory of what this rank itself sends into it: then that is in place.
struct CommOp {
  CommKind kind = CommKind::kBarrier;
  FloatType type = FloatType::kF32;  // of what is added: reduce-scatter and all-reduce
  Rank peer;                         // of a broadcast its root; of send and receive the other rank
  uint64_t tag = 0;                  // the same on all ranks of the operation; means nothing here
  Segments<ConstMemoryView> send;
  Segments<MemoryView> receive;
  const Fence* after = nullptr;  // if set, the operation starts when this is complete
  // Written by the communicator, then `event` is posted to `inbox` (both not owned, both required).
  absl::Status status;
  // It ended because the embedding framework would not end it, and may still read and write the
  // memory at any time: nobody else may use that again, and it must never be unmapped.
  bool memory_lost = false;
  TimePoint started{0};  // when it could: its turn had come, and its fence was complete
  TimePoint finished{0};
  Inbox* inbox = nullptr;
  Event* event = nullptr;

  const CommSizes& sizes() const { return sizes_; }  // since Enqueue

 private:
  friend class Communicator;
  friend class IntrusiveList<CommOp>;
  CommSizes sizes_;
  CommOp* next_ = nullptr;
};

}  // namespace sluice

#endif  // SLUICE_COMM_COMM_OP_H_
