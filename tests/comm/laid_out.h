// tests/comm/laid_out.h
//
// One operation as all ranks call it, with each rank's memory laid out as the test says: what a
// library of ranks' communication takes as it is, and what must be packed for it. Contents are
// arithmetic of rank, part and element.

#ifndef SLUICE_TESTS_COMM_LAID_OUT_H_
#define SLUICE_TESTS_COMM_LAID_OUT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <vector>

#include "comm/communicator.h"
#include "tests/comm/comm_fixture.h"
#include "tests/comm/exchange.h"

namespace sluice {

enum class Layout {
  kWhole,   // all parts of the same size, one behind the other
  kUneven,  // of different sizes, one of them empty, one behind the other
  kGaps,    // of the same size, each in one piece
  kCut,     // of the same size, each in pieces
};
inline constexpr Layout kLayouts[] = {Layout::kWhole, Layout::kUneven, Layout::kGaps, Layout::kCut};

class LaidOut {
 public:
  // Of a send, rank 0 sends to the last one. `layouts` are by rank; sizes are the first one's.
  LaidOut(CommKind kind, FloatType type, std::vector<Layout> layouts, size_t values, bool in_place)
      : kind_(kind),
        type_(type),
        layouts_(std::move(layouts)),
        values_(values),
        ranks_(layouts_.begin(), layouts_.end()) {
    for (uint32_t r = 0; r < ranks(); ++r) {
      Side& send = ranks_[r].send;
      Side& receive = ranks_[r].receive;
      if (Sends(r)) Lay(r, r, SendsOnePerRank(kind), &send);
      if (Receives(r)) Lay(r, r, ReceivesOnePerRank(kind), &receive);
      for (uint32_t part = 0; part < send.parts.size(); ++part) Fill(r, part, send.parts[part]);
      if (in_place && Sends(r) && Receives(r)) ShareOwn(r);
    }
  }

  uint32_t ranks() const { return static_cast<uint32_t>(layouts_.size()); }
  bool takes_part(uint32_t rank) const {
    return kind_ != CommKind::kSend || rank == 0 || rank + 1 == ranks();
  }

  // f(MemoryView) for all memory, as for a device that must know it.
  template <typename F>
  void ForAllMemory(F&& f) {
    for (RankMemory& rank : ranks_) {
      if (!rank.send.memory.empty()) f(MemoryView(rank.send.memory));
      if (!rank.receive.memory.empty()) f(MemoryView(rank.receive.memory));
    }
  }

  void Describe(uint32_t rank, TestOp* test) {
    CommOp& op = test->op;
    const bool receives = kind_ == CommKind::kSend && rank != 0;
    op.kind = receives ? CommKind::kReceive : kind_;
    op.type = type_;
    op.peer = Rank(kind_ == CommKind::kSend && rank == 0 ? ranks() - 1 : 0);
    const auto flatten = [](const Side& side, auto* views, std::vector<uint32_t>* ends, bool each) {
      for (const auto& part : side.parts) {
        views->insert(views->end(), part.begin(), part.end());
        if (each) ends->push_back(static_cast<uint32_t>(views->size()));
      }
    };
    flatten(ranks_[rank].send, &test->send, &test->send_ends, SendsOnePerRank(op.kind));
    flatten(ranks_[rank].receive, &test->receive, &test->receive_ends, ReceivesOnePerRank(op.kind));
  }

  void Check(uint32_t rank) const {
    const Side& side = ranks_[rank].receive;
    for (uint32_t part = 0; part < side.parts.size(); ++part) {
      size_t i = 0;
      for (const MemoryView& view : side.parts[part]) {
        for (size_t at = 0; at < view.size(); at += size(), ++i)
          ASSERT_EQ(Expected(rank, part, i), Get(type_, view.data() + at))
              << Name(kind_) << " as " << Name(type_) << " on rank " << rank << " of " << ranks()
              << ", part " << part << ", value " << i;
      }
    }
  }

 private:
  struct Side {
    Data memory;
    std::vector<std::vector<MemoryView>> parts;
  };
  struct RankMemory {
    RankMemory(Layout of) : layout(of) {}
    Layout layout;
    Side send;
    Side receive;
  };

  size_t size() const { return static_cast<size_t>(SizeOf(type_)); }
  bool Adds() const { return kind_ == CommKind::kReduceScatter || kind_ == CommKind::kAllReduce; }
  bool Sends(uint32_t rank) const {
    if (kind_ == CommKind::kBroadcast || kind_ == CommKind::kSend) return rank == 0;
    return kind_ != CommKind::kBarrier;
  }
  bool Receives(uint32_t rank) const {
    if (kind_ == CommKind::kBroadcast) return rank != 0;
    if (kind_ == CommKind::kSend) return rank > 0 && rank + 1 == ranks();
    return kind_ != CommKind::kBarrier;
  }
  // Of what goes from one rank to another. Of a sum, whose it is.
  size_t ValuesOf(uint32_t from, uint32_t to) const {
    if (layouts_[0] != Layout::kUneven) return values_;
    if (kind_ == CommKind::kAllToAll) return values_ * ((from + 2 * to) % 3);
    if (kind_ == CommKind::kAllGather) return values_ * (from % 3);
    return kind_ == CommKind::kReduceScatter ? values_ * (to % 3) : values_;
  }

  // Rank's send, or receive, of one part or one for each rank.
  void Lay(uint32_t rank, uint32_t self, bool one_per_rank, Side* side) {
    const bool sends = side == &ranks_[rank].send;
    const uint32_t parts = one_per_rank ? ranks() : 1;
    side->memory.assign(parts * (2 * values_ * size() + 32), std::byte{0x55});
    size_t at = 0;
    for (uint32_t part = 0; part < parts; ++part) {
      const uint32_t other = one_per_rank ? part : self;
      const size_t bytes = size() * (sends ? ValuesOf(self, other) : ValuesOf(other, self));
      const MemoryView all(side->memory);
      auto& views = side->parts.emplace_back();
      if (ranks_[rank].layout == Layout::kCut) {
        const size_t first = bytes / size() / 3 * size();
        views.push_back(all.subspan(at, first));
        views.push_back(all.subspan(at + first + 16, bytes - first));
        at += bytes + 32;
      } else {
        views.push_back(all.subspan(at, bytes));
        at += bytes + (ranks_[rank].layout == Layout::kGaps ? 16 : 0);
      }
    }
  }

  static float ValueOf(uint32_t rank, uint32_t part, size_t i) {
    return static_cast<float>((rank * 7 + part * 3 + i) % 31) - 15;
  }
  void Fill(uint32_t rank, uint32_t part, const std::vector<MemoryView>& views) {
    size_t i = 0;
    for (const MemoryView& view : views) {
      for (size_t at = 0; at < view.size(); at += size())
        Put(type_, ValueOf(rank, part, i++), view.data() + at);
    }
  }
  float Expected(uint32_t rank, uint32_t part, size_t i) const {
    if (!Adds()) {
      const uint32_t from = ReceivesOnePerRank(kind_) ? part : 0;
      return ValueOf(from, SendsOnePerRank(kind_) ? rank : 0, i);
    }
    float sum = 0;
    for (uint32_t r = 0; r < ranks(); ++r)
      sum += ValueOf(r, kind_ == CommKind::kReduceScatter ? rank : 0, i);
    return sum;
  }

  // What it receives from itself is where it is sent from, or the other way round.
  void ShareOwn(uint32_t rank) {
    Side& send = ranks_[rank].send;
    Side& receive = ranks_[rank].receive;
    auto& sent = send.parts[SendsOnePerRank(kind_) ? rank : 0];
    auto& received = receive.parts[ReceivesOnePerRank(kind_) ? rank : 0];
    if (ReceivesOnePerRank(kind_)) {
      sent = received;
      Fill(rank, SendsOnePerRank(kind_) ? rank : 0, sent);
    } else {
      received = sent;
    }
  }

  const CommKind kind_;
  const FloatType type_;
  const std::vector<Layout> layouts_;
  const size_t values_;
  std::vector<RankMemory> ranks_;
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_LAID_OUT_H_
