// Which of NCCL's functions carry out which operation, for every way that ranks' memory lies, and
// that what comes is what it should be. (What every communicator promises: communicator_test.cc.)

#include "comm/nccl_calls.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/comm/fake_nccl/fake_side_stream.h"
#include "tests/comm/laid_out.h"

namespace sluice {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
constexpr CommKind kKinds[] = {CommKind::kAllGather, CommKind::kReduceScatter, CommKind::kAllReduce,
                               CommKind::kBroadcast, CommKind::kAllToAll,      CommKind::kSend};
constexpr const char* kFunctions[] = {"ncclAllGather", "ncclReduceScatter", "ncclAllReduce",
                                      "ncclReduce",    "ncclBroadcast",     "ncclSend",
                                      "ncclRecv"};

// Of ranks that all have the layout.
std::string FunctionOf(CommKind kind, Layout layout) {
  const bool whole = layout == Layout::kWhole, cut = layout == Layout::kCut;
  switch (kind) {
    case CommKind::kAllGather:
      return whole ? "ncclAllGather" : cut ? "ncclSend" : "ncclBroadcast";
    case CommKind::kReduceScatter:
      return whole ? "ncclReduceScatter" : "ncclReduce";
    case CommKind::kAllReduce:
      return "ncclAllReduce";
    case CommKind::kBroadcast:
      return cut ? "ncclSend" : "ncclBroadcast";
    default:
      return "ncclSend";
  }
}

class NcclCallsTest : public CommFixture {
 protected:
  void Run(LaidOut* exchange) {
    for (uint32_t r = 0; r < ranks(); ++r) {
      if (!exchange->takes_part(r)) continue;
      TestOp* const op = New(CommKind::kBarrier);
      exchange->Describe(r, op);
      Enqueue(op, group()[r].get());
    }
    WaitForAll();
    for (const TestOp& op : ops_) ASSERT_TRUE(op.op.status.ok()) << op.op.status;
    for (uint32_t r = 0; r < ranks(); ++r) exchange->Check(r);
    ops_.clear();
  }
  // That of these functions only `function` was called, and ncclRecv with ncclSend.
  static void ExpectOnly(const std::string& function) {
    for (const char* other : kFunctions) {
      const bool expected =
          other == function || (function == "ncclSend" && other == std::string("ncclRecv"));
      EXPECT_EQ(expected, OpenFakeNccl().Calls(other) > 0) << other << " beside " << function;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Fake, NcclCallsTest,
                         testing::Values(CommImplementation{"Nccl", NewMaker<NcclMaker>, false}),
                         NameOf);

// Of so many values that what goes in pieces goes in several.
TEST_P(NcclCallsTest, EachLayoutHasItsFunctions) {
  for (const uint32_t ranks : {1u, 2u, 3u}) {
    Start(ranks);
    for (const CommKind kind : kKinds) {
      if (kind == CommKind::kSend && ranks == 1) continue;
      for (const FloatType type : kTypes) {
        for (const Layout layout : kLayouts) {
          for (const bool in_place : {false, true}) {
            OpenFakeNccl().SetFaults("");
            LaidOut exchange(kind, type, std::vector(ranks, layout), 3000, in_place);
            Run(&exchange);
            if (ranks > 1) ExpectOnly(FunctionOf(kind, layout));
          }
        }
      }
    }
  }
}

// Then all do as it must.
TEST_P(NcclCallsTest, OneRankHasAnotherLayout) {
  constexpr uint32_t kRanks = 3;
  Start(kRanks);
  for (const CommKind kind : kKinds) {
    for (const Layout other : {Layout::kGaps, Layout::kCut}) {
      for (uint32_t odd = 0; odd < kRanks; ++odd) {
        OpenFakeNccl().SetFaults("");
        std::vector layouts(kRanks, Layout::kWhole);
        layouts[odd] = other;
        LaidOut exchange(kind, FloatType::kF32, layouts, 2000, false);
        Run(&exchange);
        if (exchange.takes_part(odd)) ExpectOnly(FunctionOf(kind, other));
      }
    }
  }
}

TEST_P(NcclCallsTest, NothingIsCalledForNothing) {
  Start(3);
  for (const CommKind kind : kKinds) {
    OpenFakeNccl().SetFaults("");
    LaidOut exchange(kind, FloatType::kF32, std::vector(3, Layout::kWhole), 0, false);
    Run(&exchange);
    for (const char* function : kFunctions) EXPECT_EQ(0, OpenFakeNccl().Calls(function));
  }
}

}  // namespace
}  // namespace sluice
