// Each of NCCL's functions and each call of the stream's fails at its n-th call, at once, later or
// by never ending, until nothing fails: everything ends, with a status that names a rank, and
// nothing of NCCL's is left behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "comm/nccl.h"
#include "core/status.h"
#include "tests/comm/fake_nccl/fake_side_stream.h"
#include "tests/comm/laid_out.h"

namespace sluice {
namespace {

using testing::HasSubstr;

constexpr uint32_t kRanks = 3;
constexpr Nanos kSoon = std::chrono::milliseconds(30);
constexpr Nanos kNever = std::chrono::minutes(1);  // on a machine however busy

struct Faulty {
  const char* function;
  std::vector<const char*> hows;
};
const Faulty kFaulty[] = {
    {"ncclGroupStart", {"error1"}},
    {"ncclGroupEnd", {"error1"}},
    {"ncclCommGetAsyncError", {"error3", "late6"}},
    {"ncclCommFinalize", {"error3", "never"}},
    {"ncclCommDestroy", {"error3"}},
    {"ncclAllGather", {"error4", "late2", "never"}},
    {"ncclReduceScatter", {"error5", "late6", "never"}},
    {"ncclAllReduce", {"error1", "late6", "never"}},
    {"ncclReduce", {"error1", "late6", "never"}},
    {"ncclBroadcast", {"error1", "late6", "never"}},
    {"ncclSend", {"error1", "late6", "never"}},
    {"ncclRecv", {"error1", "late6", "never"}},
};

class NcclFaultsTest : public CommFixture {
 protected:
  void TearDown() override { OpenFakeNccl().SetFaults(""); }

  // One of each, so that every function is called.
  void EnqueueAll() {
    using enum CommKind;
    for (const auto& [kind, layout] : {std::pair(kAllGather, Layout::kWhole),
                                       {kAllGather, Layout::kUneven},
                                       {kReduceScatter, Layout::kWhole},
                                       {kReduceScatter, Layout::kCut},
                                       {kAllReduce, Layout::kWhole},
                                       {kBroadcast, Layout::kWhole},
                                       {kAllToAll, Layout::kGaps},
                                       {kAllGather, Layout::kCut},
                                       {kSend, Layout::kWhole},
                                       {kBarrier, Layout::kWhole}}) {
      LaidOut& exchange =
          exchanges_.emplace_back(kind, FloatType::kF32, std::vector(kRanks, layout), 30, false);
      for (uint32_t r = 0; r < kRanks; ++r) {
        if (!exchange.takes_part(r)) continue;
        TestOp* const op = New(kBarrier);
        exchange.Describe(r, op);
        Enqueue(op, group()[r].get());
      }
    }
  }
  // Which passes once something does not end.
  void WaitForAllUntilTheDeadline(bool passes) {
    while (passes && OpenFakeNccl().FaultsMet() == 0 &&
           !std::ranges::all_of(ops_, [](const TestOp& op) { return op.ended; })) {
      if (!waiting_->inbox()->HandleAll()) std::this_thread::yield();
    }
    if (passes) Pass(2 * kNever);
    WaitForAll();
  }
  bool AllWell() const {
    return std::ranges::all_of(ops_, [](const TestOp& op) { return op.op.status.ok(); });
  }
  void ExpectNamed(const absl::Status& status) {
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(Message(status)), HasSubstr("rank "));
  }
  // What has failed names a rank, and so does all that comes after.
  void ExpectBroken() {
    for (const TestOp& op : ops_) {
      if (!op.op.status.ok()) ExpectNamed(op.op.status);
      EXPECT_FALSE(op.op.memory_lost);
    }
    for (uint32_t r = 0; r < kRanks; ++r) {
      const TestOp* const late = Barrier(r);
      WaitFor({late});
      ExpectNamed(late->op.status);
      ExpectNamed(group()[r]->Close());
    }
  }
  void Clear() {
    groups_.clear();
    exchanges_.clear();
    EXPECT_EQ(0, OpenFakeNccl().Communicators());
  }

  std::deque<LaidOut> exchanges_;
};

INSTANTIATE_TEST_SUITE_P(Fake, NcclFaultsTest,
                         testing::Values(CommImplementation{"Nccl", NewMaker<NcclMaker>, false}),
                         NameOf);

TEST_P(NcclFaultsTest, TheNthCallOfEachFunctionFails) {
  for (const auto& [function, hows] : kFaulty) {
    for (const std::string how : hows) {
      const bool closing = std::string(function).starts_with("ncclCommFinalize") ||
                           std::string(function).starts_with("ncclCommDestroy");
      for (int n = 1; n <= (std::string(function) == "ncclCommGetAsyncError" ? 12 : 40); ++n) {
        SCOPED_TRACE(testing::Message() << function << ", call " << n << ", " << how);
        Start(kRanks, {.timeout = kNever, .close_timeout = kSoon});
        OpenFakeNccl().SetFaults(
            (std::string(function) + ":" + std::to_string(n) + ":" + how).c_str());
        EnqueueAll();
        WaitForAllUntilTheDeadline(how == "never" && !closing);
        if (closing) {
          EXPECT_TRUE(AllWell());
        } else if (OpenFakeNccl().FaultsMet() > 0) {
          EXPECT_FALSE(AllWell());
          ExpectBroken();
        } else {
          EXPECT_TRUE(AllWell());
        }
        Clear();
        EXPECT_TRUE(n > 1 || OpenFakeNccl().FaultsMet() > 0);
        if (OpenFakeNccl().FaultsMet() == 0) break;
      }
    }
  }
}

// Of making a group: all ranks hear of it.
class NcclMakingTest : public testing::Test {
 protected:
  void TearDown() override { OpenFakeNccl().SetFaults(""); }
  std::vector<std::unique_ptr<SideStream>> Streams(int fails_at = -1) {
    std::vector<std::unique_ptr<SideStream>> streams;
    for (uint32_t r = 0; r < kRanks; ++r)
      streams.push_back(MakeFakeSideStream(kFakeStaging, r == 1 ? fails_at : -1));
    return streams;
  }
  void ExpectAllFail(const CommOptions& options, std::vector<std::unique_ptr<SideStream>> streams,
                     const std::string& text) {
    bool said = false;
    for (const auto& made : TryToMakeNcclGroup(MakeInProcessRanks(kRanks, options, &clock_).value(),
                                               std::move(streams), options, &clock_)) {
      EXPECT_FALSE(made.ok());
      EXPECT_THAT(std::string(Message(made.status())), HasSubstr("rank "));
      said |= Message(made.status()).find(text) != std::string_view::npos;
    }
    EXPECT_TRUE(said) << text;
    EXPECT_EQ(0, OpenFakeNccl().Communicators());
  }

  SteadyClock clock_;
};

TEST_F(NcclMakingTest, EachFunctionFails) {
  const std::pair<const char*, const char*> kFaults[] = {
      {"ncclGetUniqueId:1:error2", "ncclGetUniqueId: a fake error (ncclSystemError)"},
      {"ncclCommInitRankConfig:1:error1", "ncclUnhandledCudaError"},
      {"ncclCommInitRankConfig:3:error3", "ncclInternalError"},
      {"ncclCommInitRankConfig:2:late6", "remote process exited (ncclRemoteError)"},
      {"ncclCommGetAsyncError:1:error3", "ncclCommGetAsyncError: a fake error"},
      {"ncclCommGetAsyncError:3:late2", "ncclSystemError): the last error"},  // each asks once
  };
  for (const auto& [fault, text] : kFaults) {
    SCOPED_TRACE(fault);
    OpenFakeNccl().SetFaults(fault);
    ExpectAllFail({.timeout = kNever}, Streams(), text);
  }
  OpenFakeNccl().SetFaults("ncclCommInitRankConfig:1:never");
  ExpectAllFail({.timeout = kSoon}, Streams(), "");  // whoever of them is the first to say so
}

TEST_F(NcclMakingTest, RanksDiffer) {
  std::vector<std::unique_ptr<SideStream>> streams = Streams();
  streams[2] = MakeFakeSideStream(kFakeStaging * 2);
  ExpectAllFail({}, std::move(streams), "rank 0 has another staging than rank 2: 16384 and 32768");

  OpenFakeNccl().SetFaults("version=22105");
  const auto other = NcclLibrary::Open({.path = FakeNcclPath(), .packages = {}}).value();
  OpenFakeNccl().SetFaults("");
  Group control = MakeInProcessRanks(2, {}, &clock_).value();
  absl::Status statuses[2];
  const auto make = [&](size_t r) {
    statuses[r] = MakeNcclCommunicator(r == 0 ? FakeNcclLibrary() : other, std::move(control[r]),
                                       MakeFakeSideStream(kFakeStaging), {}, &clock_)
                      .status();
  };
  std::thread second(make, 1);
  make(0);
  second.join();
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status) || absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(Message(status)),
                HasSubstr("rank 0 has another version of NCCL than rank 1: 22703 and 22105"));
  }
}

// Of rank 1, from its n-th call on.
TEST_F(NcclMakingTest, TheStreamFails) {
  for (int n = 0; n < 30; ++n) {
    SCOPED_TRACE(n);
    auto made = TryToMakeNcclGroup(MakeInProcessRanks(kRanks, {}, &clock_).value(), Streams(n),
                                   {.timeout = kNever, .close_timeout = kSoon}, &clock_);
    WaitingInbox waiting;
    int counter = 0;
    std::deque<TestOp> ops;
    std::deque<LaidOut> exchanges;
    for (int i = 0; i < 10; ++i)
      exchanges.emplace_back(CommKind::kAllGather, FloatType::kF32,
                             std::vector(kRanks, Layout::kCut), 500, false);
    for (LaidOut& exchange : exchanges) {
      for (uint32_t r = 0; r < kRanks; ++r) {
        if (!made[r].ok()) continue;
        TestOp& op = ops.emplace_back();
        exchange.Describe(r, &op);
        op.SetSegments();
        op.op.inbox = waiting.inbox();
        op.op.event = &op;
        op.counter = &counter;
        (*made[r])->Enqueue(&op.op);
      }
    }
    waiting.HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp& op) { return op.ended; }); });
    for (uint32_t r = 0; r < kRanks; ++r) {
      const absl::Status status = made[r].ok() ? (*made[r])->Close() : made[r].status();
      EXPECT_FALSE(status.ok()) << r;
      EXPECT_THAT(std::string(Message(status)), HasSubstr("rank "));
      EXPECT_THAT(std::string(Message(status)), HasSubstr("the device has failed"));
    }
    made.clear();
    EXPECT_EQ(0, OpenFakeNccl().Communicators());
  }
}

// A stream that never runs past anything, whatever is aborted.
class StuckStream final : public SideStream {
 public:
  StuckStream() : inner_(MakeFakeSideStream(kFakeStaging)) {}
  absl::Status Bind() override { return inner_->Bind(); }
  void* handle() const override { return inner_->handle(); }
  MemoryView staging() const override { return inner_->staging(); }
  absl::Status Copy(ConstMemoryView from, std::byte* to) override { return inner_->Copy(from, to); }
  absl::StatusOr<uint64_t> Mark() override { return inner_->Mark(); }
  absl::StatusOr<bool> Passed(uint64_t) override { return false; }
  std::string description() const override { return "a stuck stream"; }

 private:
  const std::unique_ptr<SideStream> inner_;
};

TEST_F(NcclMakingTest, AStreamThatStaysStuckIsGivenUp) {
  static auto* const kept = new std::vector<SideStream*>;  // it is never destroyed
  LeapingClock clock;
  std::vector<std::unique_ptr<SideStream>> streams = Streams();
  streams[0] = std::make_unique<StuckStream>();
  kept->push_back(streams[0].get());
  auto made = TryToMakeNcclGroup(MakeInProcessRanks(kRanks, {}, &clock).value(), std::move(streams),
                                 {.timeout = kNever}, &clock);
  WaitingInbox waiting;
  int counter = 0;
  std::deque<TestOp> ops(kRanks);
  static auto* const exchange = new LaidOut(CommKind::kAllReduce, FloatType::kF32,
                                            std::vector(kRanks, Layout::kWhole), 100, false);
  for (uint32_t r = 0; r < kRanks; ++r) {
    exchange->Describe(r, &ops[r]);
    ops[r].SetSegments();
    ops[r].op.inbox = waiting.inbox();
    ops[r].op.event = &ops[r];
    ops[r].counter = &counter;
    (*made[r])->Enqueue(&ops[r].op);
  }
  while (!ops[0].ended) {
    clock.Leap(std::chrono::seconds(1));
    waiting.inbox()->HandleAll();
    std::this_thread::yield();
  }
  waiting.HandleUntil([&] { return ops[1].ended && ops[2].ended; });
  EXPECT_FALSE(ops[0].op.status.ok());
  EXPECT_THAT(std::string(Message(ops[0].op.status)),
              HasSubstr("whose memory may still be in use"));
  EXPECT_TRUE(ops[0].op.memory_lost);
  EXPECT_FALSE((*made[0])->Close().ok());
  made.clear();
}

// The framework's table is what ranks meet over.
TEST_F(NcclMakingTest, RanksMeetOverATable) {
  SuppliedMaker supplied(kRanks);
  Group group = MakeNcclGroup(supplied.Make({}), {}, &clock_);
  EXPECT_THAT(group[0]->description(), HasSubstr("3 ranks over NCCL 2.27.3 (as given: "));
  EXPECT_THAT(group[0]->description(), HasSubstr("they meet over 3 ranks, supplied by"));
  WaitingInbox waiting;
  int counter = 0;
  for (const Layout layout : kLayouts) {
    LaidOut exchange(CommKind::kAllGather, FloatType::kBf16, std::vector(kRanks, layout), 700,
                     true);
    std::deque<TestOp> ops(kRanks);
    for (uint32_t r = 0; r < kRanks; ++r) {
      exchange.Describe(r, &ops[r]);
      ops[r].SetSegments();
      ops[r].op.inbox = waiting.inbox();
      ops[r].op.event = &ops[r];
      ops[r].counter = &counter;
      group[r]->Enqueue(&ops[r].op);
    }
    waiting.HandleUntil(
        [&] { return std::ranges::all_of(ops, [](const TestOp& op) { return op.ended; }); });
    for (uint32_t r = 0; r < kRanks; ++r) {
      EXPECT_TRUE(ops[r].op.status.ok()) << ops[r].op.status;
      exchange.Check(r);
    }
  }
  for (const auto& communicator : group) EXPECT_TRUE(communicator->Close().ok());
  group.clear();
}

}  // namespace
}  // namespace sluice
