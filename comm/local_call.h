// comm/local_call.h
//
// An operation among ranks of one host as exchanges: in each, a rank has something for each other
// rank, which may be nothing, and gets something of each. One exchange is an operation; an
// all-reduce is two, of slices: one slice is added up by each rank, and then sent to all.
//
// Threads: one at a time. Allocates when more pieces of memory are sent than ever before, and for
// what is added up.

#ifndef SLUICE_COMM_LOCAL_CALL_H_
#define SLUICE_COMM_LOCAL_CALL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/comm_op.h"
#include "comm/comm_table.h"
#include "comm/pieces.h"

namespace sluice {

class LocalCall {
 public:
  LocalCall(uint32_t rank, uint32_t ranks) : rank_(rank), send_(ranks), receive_(ranks) {}

  void Take(const sluice_comm_call& call);
  // Ends the exchange, if one has begun, and begins the next; false: there is none.
  bool NextExchange();
  bool begun() const { return exchanges_ > 0; }

  CommKind kind() const { return kind_; }
  FloatType type() const { return type_; }
  uint32_t peer() const { return peer_; }  // its root, of a broadcast
  uint64_t tag() const { return tag_; }
  bool adds() const { return kind_ == CommKind::kReduceScatter || kind_ == CommKind::kAllReduce; }
  // Whether it concerns another rank: then each offers the other something, if only no bytes.
  bool Concerns(uint32_t rank) const;
  // Of this exchange.
  const Pieces& send(uint32_t rank) const { return send_[rank]; }
  const Pieces& receive(uint32_t rank) const { return receive_[rank]; }

 private:
  void BeginToAdd();
  void CutSlices();
  void AddUp();

  const uint32_t rank_;
  CommKind kind_ = CommKind::kBarrier;
  FloatType type_ = FloatType::kF32;
  uint32_t peer_ = 0;
  uint64_t tag_ = 0;
  int exchanges_ = 0;
  std::vector<Pieces> send_;     // by rank
  std::vector<Pieces> receive_;  // likewise; what is added up is received as this rank's own
  // Of what is added up: this rank's part, where the sum goes, and the others' parts, by rank.
  Pieces part_;
  Pieces whole_;  // of an all-reduce: what the parts are cut from
  Pieces sum_;
  std::vector<std::byte> parts_;
  std::vector<const void*> addends_;
  std::vector<Pieces> slices_;  // that the second exchange receives, by rank
};

}  // namespace sluice

#endif  // SLUICE_COMM_LOCAL_CALL_H_
