// A communicator over a real NCCL, between as many ranks as there are GPUs, four at most: one GPU
// is a group of one rank. Skipped where no NCCL is found.

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "comm/in_process.h"
#include "comm/nccl.h"
#include "core/status.h"
#include "tests/comm/laid_out.h"

namespace sluice {
namespace {

class NcclGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    auto opened = NcclLibrary::Open({.path = "", .packages = LoadedPackageFolders()});
    if (!opened.ok()) GTEST_SKIP() << opened.status();
    library_ = *opened;
    int gpus = 0;
    ASSERT_EQ(cudaSuccess, cudaGetDeviceCount(&gpus));
    ranks_ = static_cast<uint32_t>(std::min(gpus, 4));
    Make();
  }

  void Make() {
    const CommOptions options{.timeout = std::chrono::minutes(1)};
    auto control = MakeInProcessRanks(ranks_, options, &clock_).value();
    std::vector<absl::StatusOr<std::unique_ptr<Communicator>>> made(ranks_);
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < ranks_; ++r) {
      threads.emplace_back([&, r] {
        auto stream = MakeCudaSideStream(static_cast<int>(r), MiB(1));
        if (!stream.ok()) return void(made[r] = stream.status());
        made[r] = MakeNcclCommunicator(library_, std::move(control[r]), *std::move(stream), options,
                                       &clock_);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (auto& communicator : made) {
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      group_.push_back(*std::move(communicator));
    }
    std::printf("%s\n", group_[0]->description().c_str());
  }

  // In host memory that GPUs reach, as NCCL takes it like their own.
  void Run(LaidOut* exchange) {
    exchange->ForAllMemory([](MemoryView memory) {
      ASSERT_EQ(cudaSuccess, cudaHostRegister(memory.data(), memory.size(),
                                              cudaHostRegisterPortable | cudaHostRegisterMapped));
    });
    std::deque<TestOp> ops;
    for (uint32_t r = 0; r < ranks_; ++r) {
      if (!exchange->takes_part(r)) continue;
      TestOp& op = ops.emplace_back();
      exchange->Describe(r, &op);
      op.SetSegments();
      op.op.inbox = waiting_.inbox();
      op.op.event = &op;
      op.counter = &counter_;
      group_[r]->Enqueue(&op.op);
    }
    waiting_.HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp& op) { return op.ended; }); });
    for (const TestOp& op : ops) EXPECT_TRUE(op.op.status.ok()) << op.op.status;
    exchange->ForAllMemory([](MemoryView memory) { cudaHostUnregister(memory.data()); });
    for (uint32_t r = 0; r < ranks_; ++r) exchange->Check(r);
  }

  SteadyClock clock_;
  std::shared_ptr<const NcclLibrary> library_;
  uint32_t ranks_ = 0;
  Group group_;
  WaitingInbox waiting_;
  int counter_ = 0;
};

TEST_F(NcclGpuTest, EveryOperationOfEveryLayout) {
  using enum CommKind;
  for (const CommKind kind :
       {kAllGather, kReduceScatter, kAllReduce, kBroadcast, kAllToAll, kSend, kBarrier}) {
    if (kind == kSend && ranks_ == 1) continue;
    for (const FloatType type : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
      for (const Layout layout : kLayouts) {
        for (const size_t values : {size_t{0}, size_t{3000}, size_t{1'000'000}}) {
          LaidOut exchange(kind, type, std::vector(ranks_, layout), values, layout == Layout::kCut);
          Run(&exchange);
        }
      }
    }
  }
  for (const auto& communicator : group_) {
    const absl::Status closed = communicator->Close();
    EXPECT_TRUE(closed.ok()) << closed;
  }
}

TEST_F(NcclGpuTest, AnAbortEndsIt) {
  group_[0]->Abort(absl::CancelledError("enough"));
  for (const auto& communicator : group_) {
    TestOp op;
    op.op.inbox = waiting_.inbox();
    op.op.event = &op;
    op.counter = &counter_;
    communicator->Enqueue(&op.op);
    waiting_.HandleUntil([&] { return op.ended; });
    EXPECT_FALSE(op.op.status.ok());
    EXPECT_FALSE(communicator->Close().ok());
  }
}

}  // namespace
}  // namespace sluice
