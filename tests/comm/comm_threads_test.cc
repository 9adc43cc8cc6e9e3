// Communicators as threads of their own have them, one for each rank, in real time.

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/comm/comm_fixture.h"
#include "tests/comm/exchange.h"

namespace sluice {
namespace {

class CommThreadsTest : public CommFixture {
 protected:
  void SetUp() override {
    Start(2);
    if (world() != nullptr) GTEST_SKIP() << "virtual time has one thread";
  }

  // f(rank) on a thread of its own for each rank.
  template <typename F>
  void OnEachRank(const F& f) {
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < ranks(); ++r) threads.emplace_back([&f, r] { f(r); });
    for (std::thread& thread : threads) thread.join();
  }
};

INSTANTIATE_TEST_SUITE_P(All, CommThreadsTest, testing::ValuesIn(kCommImplementations), NameOf);

// Each rank goes its own pace, a few operations ahead.
TEST_P(CommThreadsTest, RanksAtTheirOwnPace) {
  constexpr CommKind kKinds[] = {
      CommKind::kAllGather, CommKind::kReduceScatter, CommKind::kAllReduce, CommKind::kBroadcast,
      CommKind::kAllToAll,  CommKind::kSend,          CommKind::kBarrier};
  for (const uint32_t ranks : {2u, 4u, 8u}) {
    Start(ranks);
    std::mt19937 random(ranks);
    std::vector<std::unique_ptr<Exchange>> exchanges;
    for (int i = 0; i < 100; ++i) {
      exchanges.push_back(std::make_unique<Exchange>(kKinds[random() % std::size(kKinds)],
                                                     FloatType::kF32, ranks, i % 2 == 0, &random));
    }
    OnEachRank([&](uint32_t rank) {
      WaitingInbox waiting;
      int counter = 0;
      std::deque<TestOp> ops;
      const size_t ahead = 1 + 3 * rank;
      for (const auto& exchange : exchanges) {
        if (!exchange->takes_part(rank)) continue;
        TestOp* const op = &ops.emplace_back();
        exchange->Describe(rank, op);
        op->op.inbox = waiting.inbox();
        op->op.event = op;
        op->counter = &counter;
        Enqueue(op, group()[rank].get());
        if (ops.size() > ahead)
          waiting.HandleUntil([&] { return ops[ops.size() - ahead - 1].ended; });
      }
      waiting.HandleUntil([&] { return ops.empty() || ops.back().ended; });
      for (const TestOp& op : ops) EXPECT_TRUE(op.op.status.ok()) << op.op.status;
      EXPECT_TRUE(group()[rank]->Close().ok());
    });
    for (uint32_t r = 0; r < ranks; ++r) {
      for (const auto& exchange : exchanges) exchange->Check(r);
    }
  }
}

// Somebody aborts one of them while all are busy: everybody gets through, with errors from some
// operation on and none well after it.
TEST_P(CommThreadsTest, AnAbortFromElsewhereEndsEverybody) {
  for (int trial = 0; trial < 40; ++trial) {
    const uint32_t ranks = 2 + static_cast<uint32_t>(trial % 3);
    Start(ranks);
    std::atomic<int> under_way{0};
    std::thread other([&] {
      while (under_way < trial) std::this_thread::yield();
      group()[static_cast<size_t>(trial) % ranks]->Abort(absl::AbortedError("enough"));
    });
    OnEachRank([&](uint32_t rank) {
      WaitingInbox waiting;
      int counter = 0;
      bool failed = false;
      for (int i = 0; i < 30 || !failed; ++i) {
        Data data(static_cast<size_t>(4 * i), std::byte{1}), sum(data.size());
        TestOp op;
        op.op.kind = CommKind::kAllReduce;
        op.op.inbox = waiting.inbox();
        op.op.event = &op;
        op.counter = &counter;
        op.send = {data};
        op.receive = {sum};
        Enqueue(&op, group()[rank].get());
        ++under_way;
        waiting.HandleUntil([&] { return op.ended; });
        EXPECT_FALSE(failed && op.op.status.ok());
        failed = !op.op.status.ok();
      }
      EXPECT_FALSE(group()[rank]->Close().ok());
    });
    other.join();
  }
}

// Takes its time to tell the others.
class Slow final : public Communicator {
 public:
  explicit Slow(const Clock* clock) : Communicator(Rank(0), 2, {}, clock) {}
  ~Slow() override { (void)Close(); }
  std::string description() const override { return "slow"; }
  int interrupts() const { return interrupts_; }
  bool left_early() const { return left_early_; }

 private:
  void Start(CommOp* op) override { End(op, status()); }
  void Interrupt(const absl::Status&) override {
    ++interrupts_;
    // Long enough that who does not wait for this has left meanwhile. Who does is only later.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    told_ = true;
  }
  void Leave() override {
    left_early_ = interrupts_ > 0 && !told_;
    std::thread([this] { Abort(absl::AbortedError("too late")); }).join();
  }

  std::atomic<int> interrupts_{0};
  std::atomic<bool> told_{false};
  bool left_early_ = false;
};

TEST(CommCloseTest, WhoWasAbortedTellsTheOthersBeforeItLeaves) {
  const SteadyClock clock;
  Slow slow(&clock);
  std::thread other([&] { slow.Abort(absl::AbortedError("enough")); });
  while (slow.interrupts() == 0) std::this_thread::yield();
  EXPECT_TRUE(absl::IsAborted(slow.Close()));
  EXPECT_FALSE(slow.left_early());
  EXPECT_EQ(1, slow.interrupts());
  other.join();
}

TEST(CommCloseTest, WhoLeavesIsNotAborted) {
  const SteadyClock clock;
  Slow slow(&clock);
  EXPECT_TRUE(slow.Close().ok());
  EXPECT_EQ(0, slow.interrupts());
}

}  // namespace
}  // namespace sluice
