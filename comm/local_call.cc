#include "comm/local_call.h"

#include <algorithm>
#include <utility>

#include "comm/op_rules.h"
#include "comm/ordered_reduce.h"

namespace sluice {

namespace {
// What goes to a rank, or comes from it.
template <typename F>
void ForBuffers(const sluice_comm_segments& segments, uint32_t rank, F&& f) {
  const size_t begin = segments.ends == nullptr || rank == 0 ? 0 : segments.ends[rank - 1];
  const size_t end = segments.ends == nullptr ? segments.count : segments.ends[rank];
  for (size_t i = begin; i < end; ++i) f(segments.buffers[i].data, segments.buffers[i].bytes);
}
}  // namespace

void LocalCall::Take(const sluice_comm_call& call) {
  kind_ = static_cast<CommKind>(call.kind);
  type_ = static_cast<FloatType>(call.dtype);
  peer_ = call.peer;
  tag_ = call.tag;
  exchanges_ = 0;
  for (uint32_t r = 0; r < send_.size(); ++r) {
    send_[r].Clear();
    receive_[r].Clear();
    const bool own = r == rank_ && (adds() || ReceivesOnePerRank(kind_));
    const bool from_root = kind_ != CommKind::kBroadcast || r == peer_;
    if (own || Concerns(r))
      ForBuffers(call.send, r, [&](void* at, size_t n) { send_[r].Add(at, n); });
    if (own || (Concerns(r) && from_root && !adds()))
      ForBuffers(call.receive, r, [&](void* at, size_t n) { receive_[r].Add(at, n); });
  }
}

bool LocalCall::Concerns(uint32_t rank) const {
  return rank != rank_ && (!IsPointToPoint(kind_) || rank == peer_);
}

bool LocalCall::NextExchange() {
  if (exchanges_++ == 0) {
    if (adds()) {
      BeginToAdd();
    } else if (ReceivesOnePerRank(kind_)) {
      send_[rank_].CopyTo(receive_[rank_]);
    }
    return true;
  }
  if (exchanges_ == 2 && adds()) AddUp();
  if (exchanges_ > 2 || kind_ != CommKind::kAllReduce) return false;
  std::ranges::fill(send_, sum_);
  std::swap(receive_, slices_);
  return true;
}

void LocalCall::BeginToAdd() {
  if (kind_ == CommKind::kAllReduce) {
    CutSlices();
  } else {
    sum_ = receive_[rank_];
  }
  part_ = send_[rank_];
  parts_.resize(send_.size() * part_.bytes);
  for (uint32_t r = 0; r < send_.size(); ++r) {
    receive_[r].Clear();
    if (r != rank_) receive_[r].Add(parts_.data() + r * part_.bytes, part_.bytes);
  }
}

void LocalCall::CutSlices() {
  whole_ = send_[rank_];
  sum_ = receive_[rank_];
  const size_t size = static_cast<size_t>(SizeOf(type_)), ranks = send_.size();
  const size_t values = whole_.bytes / size;
  const auto at = [&](size_t r) {
    return size * (values / ranks * r + std::min(r, values % ranks));
  };
  slices_.resize(ranks);
  for (size_t r = 0; r < ranks; ++r) {
    whole_.CutTo(at(r), at(r + 1), &send_[r]);
    sum_.CutTo(at(r), at(r + 1), &slices_[r]);
  }
  sum_ = slices_[rank_];
}

void LocalCall::AddUp() {
  addends_.resize(send_.size());
  for (size_t at = 0; at < part_.bytes;) {
    const std::span<std::byte> own = part_.Piece(at, part_.bytes - at);
    const std::span<std::byte> to = sum_.Piece(at, own.size());
    for (size_t r = 0; r < addends_.size(); ++r)
      addends_[r] = r == rank_ ? own.data() : parts_.data() + r * part_.bytes + at;
    OrderedSum(addends_, type_, 1, to.data(), type_,
               to.size() / static_cast<size_t>(SizeOf(type_)));
    at += to.size();
  }
}

}  // namespace sluice
