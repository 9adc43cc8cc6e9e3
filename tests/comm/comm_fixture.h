// tests/comm/comm_fixture.h
//
// Groups of ranks of the implementation that the test's parameter says, driven by one thread, and
// operations that know that they have ended.

#ifndef SLUICE_TESTS_COMM_COMM_FIXTURE_H_
#define SLUICE_TESTS_COMM_COMM_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "comm/comm_op.h"
#include "comm/communicator.h"
#include "core/clock.h"
#include "core/sim_world.h"
#include "tests/comm/group_makers.h"
#include "tests/core/waiting_inbox.h"

namespace sluice {

using Data = std::vector<std::byte>;

// An operation with its views, and whether and as which it has ended.
struct TestOp final : Event {
  void Handle() override {
    ended = true;
    order = (*counter)++;
    memory.clear();
  }
  // To be called when views and kind are there. Where there is one per rank and no ends are given,
  // each view is one.
  void SetSegments() {
    const auto ends = [](auto* ends, bool one_per_rank, size_t views) {
      for (uint32_t i = 1; one_per_rank && ends->size() < views; ++i) ends->push_back(i);
    };
    if (send_ends.empty()) ends(&send_ends, SendsOnePerRank(op.kind), send.size());
    if (receive_ends.empty()) ends(&receive_ends, ReceivesOnePerRank(op.kind), receive.size());
    op.send = {send, send_ends};
    op.receive = {receive, receive_ends};
  }

  CommOp op;
  std::deque<Data> memory;  // its own, if any, as long as it is under way
  std::vector<ConstMemoryView> send;
  std::vector<MemoryView> receive;
  std::vector<uint32_t> send_ends;
  std::vector<uint32_t> receive_ends;
  bool ended = false;
  int order = -1;
  int* counter = nullptr;
};

class CommFixture : public testing::TestWithParam<CommImplementation> {
 protected:
  static constexpr uint32_t kRankCounts[] = {1, 2, 3, 4, 8};

  // A new world with one group, `group()`.
  void Start(uint32_t ranks, const CommOptions& options = {}) {
    groups_.clear();
    waiting_.reset();
    ops_.clear();
    maker_ = GetParam().make(ranks);
    waiting_ = std::make_unique<WaitingInbox>(maker_->world());
    groups_.push_back(maker_->Make(options));
  }
  Group& AddGroup(const CommOptions& options = {}) {
    return groups_.emplace_back(maker_->Make(options));
  }
  Group& group() { return groups_.front(); }
  uint32_t ranks() const { return static_cast<uint32_t>(groups_.front().size()); }
  SimWorld* world() { return maker_->world(); }
  void Pass(Nanos time) { maker_->Pass(time); }

  TestOp* New(CommKind kind) {
    TestOp* const op = &ops_.emplace_back();
    op->op.kind = kind;
    op->op.inbox = waiting_->inbox();
    op->op.event = op;
    op->counter = &counter_;
    return op;
  }
  static void Enqueue(TestOp* op, Communicator* communicator) {
    op->SetSegments();
    communicator->Enqueue(&op->op);
  }
  // One without data, on `rank` of the first group.
  TestOp* Barrier(uint32_t rank) {
    TestOp* const op = New(CommKind::kBarrier);
    Enqueue(op, group()[rank].get());
    return op;
  }
  TestOp* Send(uint32_t rank, uint32_t peer, ConstMemoryView memory) {
    TestOp* const op = New(CommKind::kSend);
    op->op.peer = Rank(peer);
    op->send = {memory};
    Enqueue(op, group()[rank].get());
    return op;
  }
  TestOp* Receive(uint32_t rank, uint32_t peer, MemoryView memory) {
    TestOp* const op = New(CommKind::kReceive);
    op->op.peer = Rank(peer);
    op->receive = {memory};
    Enqueue(op, group()[rank].get());
    return op;
  }

  void WaitFor(std::initializer_list<const TestOp*> ops) {
    waiting_->HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp* op) { return op->ended; }); });
  }
  void WaitForAll() {
    waiting_->HandleUntil(
        [this] { return std::ranges::all_of(ops_, [](const TestOp& op) { return op.ended; }); });
  }
  // Lets what can happen happen: in another group, everybody meets.
  void LetThingsHappen() {
    Group others = maker_->Make({});
    std::vector<TestOp*> meeting;
    for (int i = 0; i < 20; ++i) {
      for (const auto& communicator : others) {
        meeting.push_back(New(CommKind::kBarrier));
        Enqueue(meeting.back(), communicator.get());
      }
    }
    waiting_->HandleUntil(
        [&] { return std::ranges::all_of(meeting, [](const TestOp* op) { return op->ended; }); });
  }

  int counter_ = 0;
  std::unique_ptr<GroupMaker> maker_;
  std::unique_ptr<WaitingInbox> waiting_;
  std::deque<TestOp> ops_;
  std::deque<Group> groups_;
};

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_COMM_FIXTURE_H_
