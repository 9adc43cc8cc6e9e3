// tests/comm/exchange.h
//
// One operation as all ranks call it: memory of random sizes, much of it empty, each rank's cut
// into views of its own, random contents, and what each rank must receive, found element by
// element. Values that are added are small integers, whose sums every type holds exactly, in
// whatever order.

#ifndef SLUICE_TESTS_COMM_EXCHANGE_H_
#define SLUICE_TESTS_COMM_EXCHANGE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "comm/communicator.h"
#include "core/float_bits.h"
#include "tests/comm/comm_fixture.h"

namespace sluice {

// A value of `type` in memory.
inline float Get(FloatType type, const std::byte* at) {
  if (type == FloatType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return ToFloat(bits, type);
}
inline void Put(FloatType type, float value, std::byte* at) {
  const uint16_t bits = type == FloatType::kF32 ? uint16_t{0} : FromFloat(value, type);
  std::memcpy(at, type == FloatType::kF32 ? static_cast<const void*>(&value) : &bits,
              static_cast<size_t>(SizeOf(type)));
}

class Exchange {
 public:
  // Of two ranks if it is a send, which the other receives.
  Exchange(CommKind kind, FloatType type, uint32_t ranks, bool in_place, std::mt19937* random)
      : kind_(kind), type_(type), ranks_(ranks), in_place_(in_place), random_(random) {
    root_ = Draw(ranks);
    tag_ = Draw(1000);
    if (kind == CommKind::kSend) peer_ = (root_ + 1 + Draw(ranks - 1)) % ranks;
    const auto size = static_cast<size_t>(SizeOf(type));
    for (uint32_t r = 0; r < ranks; ++r) sizes_.push_back(size * DrawCount());
    memory_.resize(ranks);
    for (uint32_t r = 0; r < ranks; ++r) Fill(r);
    for (uint32_t r = 0; r < ranks; ++r) CutAll(r);
    for (uint32_t r = 0; r < ranks; ++r) expected_.push_back(Expected(r));
  }

  bool takes_part(uint32_t rank) const {
    return kind_ != CommKind::kSend || rank == root_ || rank == peer_;
  }

  // Fills in what `rank` calls. The exchange outlives the operation.
  void Describe(uint32_t rank, TestOp* test) {
    CommOp& op = test->op;
    Memory& memory = memory_[rank];
    op.kind = kind_ == CommKind::kSend && rank == peer_ ? CommKind::kReceive : kind_;
    op.type = type_;
    op.peer = Rank(kind_ == CommKind::kSend && rank == root_ ? peer_ : root_);
    op.tag = tag_;
    test->send.assign(memory.send_views.begin(), memory.send_views.end());
    test->receive = memory.receive_views;
    if (SendsOnePerRank(op.kind)) test->send_ends = memory.send_ends;
    if (ReceivesOnePerRank(op.kind)) test->receive_ends = memory.receive_ends;
  }

  // Whether `rank` has what it should.
  void Check(uint32_t rank) {
    Memory& memory = memory_[rank];
    ASSERT_EQ(expected_[rank].size(), memory.receive.size());
    for (size_t i = 0; i < memory.receive.size(); ++i) {
      const Data& got = InPlaceOf(rank, i) != nullptr ? *InPlaceOf(rank, i) : memory.receive[i];
      EXPECT_TRUE(expected_[rank][i] == got)
          << Name(kind_) << " as " << Name(type_) << " among " << ranks_ << ", rank " << rank
          << ", part " << i << " of " << got.size() << " bytes" << (in_place_ ? ", in place" : "");
    }
  }

 private:
  struct Memory {
    std::vector<Data> send;
    std::vector<Data> receive;
    std::vector<MemoryView> send_views;
    std::vector<MemoryView> receive_views;
    std::vector<uint32_t> send_ends;
    std::vector<uint32_t> receive_ends;
  };

  uint32_t Draw(uint32_t below) { return static_cast<uint32_t>((*random_)() % below); }
  size_t DrawCount() { return Draw(3) == 0 ? 0 : Draw(3) == 0 ? 5000 + Draw(4000) : Draw(40); }

  Data RandomData(size_t bytes) {
    Data data(bytes);
    for (size_t at = 0; at < bytes; at += static_cast<size_t>(SizeOf(type_)))
      Put(type_, static_cast<float>(Draw(31)) - 15, data.data() + at);
    return data;
  }

  // Up to five views, between values, of which some are empty.
  void Cut(Data* data, std::vector<MemoryView>* views, std::vector<uint32_t>* ends) {
    const auto size = static_cast<size_t>(SizeOf(type_));
    MemoryView rest(*data);
    for (uint32_t cuts = Draw(5); cuts > 0; --cuts) {
      const size_t n = size * Draw(static_cast<uint32_t>(rest.size() / size + 1));
      views->push_back(rest.first(n));
      rest = rest.subspan(n);
    }
    if (!rest.empty()) views->push_back(rest);
    ends->push_back(static_cast<uint32_t>(views->size()));
  }
  void CutAll(uint32_t rank) {
    Memory& memory = memory_[rank];
    for (Data& data : memory.send) Cut(&data, &memory.send_views, &memory.send_ends);
    for (size_t i = 0; i < memory.receive.size(); ++i) {
      Data* const here = InPlaceOf(rank, i);
      Cut(here != nullptr ? here : &memory.receive[i], &memory.receive_views, &memory.receive_ends);
    }
  }

  // The memory that is sent and received into, for what a rank has of both.
  Data* InPlaceOf(uint32_t rank, size_t view) {
    if (!in_place_) return nullptr;
    std::vector<Data>& send = memory_[rank].send;
    if (kind_ == CommKind::kAllReduce) return &send[0];
    if (kind_ == CommKind::kReduceScatter) return &send[rank];
    if (kind_ == CommKind::kAllGather) return view == rank ? &send[0] : nullptr;
    if (kind_ == CommKind::kAllToAll) return view == rank ? &send[rank] : nullptr;
    return nullptr;
  }

  void Fill(uint32_t rank) {
    Memory& memory = memory_[rank];
    const auto send = [&](size_t bytes) { memory.send.push_back(RandomData(bytes)); };
    const auto receive = [&](size_t bytes) { memory.receive.emplace_back(bytes, std::byte{0xEE}); };
    switch (kind_) {
      case CommKind::kAllGather:
        send(sizes_[rank]);
        std::ranges::for_each(sizes_, receive);
        return;
      case CommKind::kReduceScatter:
        std::ranges::for_each(sizes_, send);
        return receive(sizes_[rank]);
      case CommKind::kAllReduce:
        send(sizes_[0]);
        return receive(sizes_[0]);
      case CommKind::kBroadcast:
        return rank == root_ ? send(sizes_[0]) : receive(sizes_[0]);
      case CommKind::kAllToAll:  // from i to j: as long as the sizes of both say
        for (uint32_t r = 0; r < ranks_; ++r) send(Between(rank, r));
        for (uint32_t r = 0; r < ranks_; ++r) receive(Between(r, rank));
        return;
      case CommKind::kSend:
        if (rank == root_) send(sizes_[0]);
        if (rank == peer_) receive(sizes_[0]);
        return;
      case CommKind::kReceive:
      case CommKind::kBarrier:
        return;
    }
  }
  size_t Between(uint32_t from, uint32_t to) const {
    return from % 2 == 0 ? sizes_[to] : sizes_[(from + to) % ranks_];
  }

  // The sum, element by element, of view `view` of all ranks.
  Data SumOf(size_t view) const {
    Data sum = memory_[0].send[view];
    for (size_t at = 0; at < sum.size(); at += static_cast<size_t>(SizeOf(type_))) {
      float value = 0;
      for (uint32_t r = 0; r < ranks_; ++r) value += Get(type_, memory_[r].send[view].data() + at);
      Put(type_, value, sum.data() + at);
    }
    return sum;
  }

  std::vector<Data> Expected(uint32_t rank) const {
    std::vector<Data> expected;
    switch (kind_) {
      case CommKind::kAllGather:
        for (const Memory& other : memory_) expected.push_back(other.send[0]);
        break;
      case CommKind::kReduceScatter:
        return {SumOf(rank)};
      case CommKind::kAllReduce:
        return {SumOf(0)};
      case CommKind::kBroadcast:
        if (rank != root_) expected.push_back(memory_[root_].send[0]);
        break;
      case CommKind::kAllToAll:
        for (const Memory& other : memory_) expected.push_back(other.send[rank]);
        break;
      case CommKind::kSend:
        if (rank == peer_) expected.push_back(memory_[root_].send[0]);
        break;
      case CommKind::kReceive:
      case CommKind::kBarrier:
        break;
    }
    return expected;
  }

  const CommKind kind_;
  const FloatType type_;
  const uint32_t ranks_;
  const bool in_place_;
  std::mt19937* const random_;
  uint32_t root_ = 0;
  uint32_t peer_ = 0;
  uint64_t tag_ = 0;
  std::vector<size_t> sizes_;  // by rank, bytes
  std::vector<Memory> memory_;
  std::vector<std::vector<Data>> expected_;  // by rank and view
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_EXCHANGE_H_
