// Ranks that fail, leave or disagree: every other one ends with a status that names the rank, and
// all can be closed.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "tests/offload/ranks_script_run.h"

namespace sluice {
namespace {

using testing::InMemory;
using testing::LinkRanks;
using testing::MakeRank;
using testing::OnRanks;
using testing::PlainRanks;
using testing::RanksCase;
using testing::ScriptOp;
using testing::ScriptRank;
using Kind = testing::ScriptOp::Kind;

constexpr uint32_t kUnits = 4;

// Of fewer units, so that a training has fewer points.
RanksCase SmallCase(uint32_t ranks, int stage) {
  RanksCase c = InMemory(ranks, stage);
  c.config.engine = IoEngineKind::kThreads;  // there is nothing to read or write
  c.spec.units.resize(kUnits);
  std::erase_if(c.spec.tensors,
                [](const ModelSpec::Tensor& t) { return t.unit.value() >= kUnits; });
  return c;
}

// Two steps of two micro-steps, values read between them.
std::vector<ScriptOp> Training(uint32_t ranks) {
  const std::vector<std::vector<uint32_t>> order(ranks, {0, 1, 2, 3});
  std::vector<ScriptOp> ops;
  for (int step = 0; step < 2; ++step) {
    for (const bool boundary : {false, true})
      ops.push_back(
          {.kind = Kind::kMicro, .order = order, .seed = 2 * step + 1, .boundary = boundary});
    ops.push_back({.kind = Kind::kReadGrad, .order = {}, .tensor = 2});
    ops.push_back({.kind = Kind::kStep, .order = {}});
    ops.push_back({.kind = Kind::kRead, .order = {}});
  }
  return ops;
}

enum class Failure { kAbortAgreement, kAbortGradients, kAbortGathers, kCloses, kIsDestroyed };

struct Outcome {
  absl::Status status;
  absl::Status closed;
  size_t calls = 0;
};

// Rank `failing` fails before its call number `point`; nobody does if there is no such call. Then
// all go on, and take one step more.
std::vector<Outcome> RunAndFail(const RanksCase& c, uint32_t failing, Failure failure,
                                size_t point) {
  const std::vector<ScriptOp> ops = Training(c.ranks);
  std::vector<PlainRanks> plain{PlainRanks(c)};
  for (const ScriptOp& op : ops) {
    plain.push_back(plain.back());
    plain.back().Do(op);
  }
  std::vector<RankLinks> links = LinkRanks(c.ranks);
  std::vector<Outcome> outcomes(c.ranks);
  OnRanks(c.ranks, [&](uint32_t r) {
    Outcome& outcome = outcomes[r];
    Communicator* const to_abort = failure == Failure::kAbortAgreement   ? links[r].agreement.get()
                                   : failure == Failure::kAbortGradients ? links[r].gradients.get()
                                                                         : links[r].gathers.get();
    auto runtime = MakeRank(c, r, std::move(links[r]));
    outcome.status = runtime.status();
    if (!runtime.ok()) return;
    const bool leaves = failure == Failure::kCloses || failure == Failure::kIsDestroyed;
    ScriptRank rank(runtime->get(), c, r, [&] {
      if (outcome.calls++ != point || r != failing) return absl::OkStatus();
      if (leaves) return absl::CancelledError("leaves");
      to_abort->Abort(absl::InternalError("planned"));
      return absl::OkStatus();
    });
    outcome.status = rank.Load();
    for (size_t i = 0; i < ops.size() && outcome.status.ok(); ++i)
      outcome.status = rank.Do(ops[i], plain[i + 1]);
    if (outcome.status.ok()) outcome.status = rank.Do(ops.front(), plain.back());
    if (outcome.status.ok()) outcome.status = rank.Step();
    if (outcome.status.ok()) outcome.status = rank.Drain();
    if (failure == Failure::kIsDestroyed && r == failing) {
      runtime->reset();
    } else {
      outcome.closed = OffloadRuntime::Close(*std::move(runtime));
    }
  });
  return outcomes;
}

class RankFailureTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, Failure>> {};

TEST_P(RankFailureTest, EndsEveryOtherRankByName) {
  const auto [ranks, stage, failure] = GetParam();
  if (failure == Failure::kAbortGathers && stage == 0) GTEST_SKIP() << "nothing is gathered";
  const RanksCase c = SmallCase(ranks, stage);
  constexpr size_t kNever = 1u << 30;
  const size_t calls = RunAndFail(c, 0, failure, kNever)[0].calls;
  ASSERT_GT(calls, 100u);
  const size_t stride = calls / 4;
  for (size_t point = (7 * ranks + 11 * static_cast<size_t>(stage)) % stride; point < calls - 1;
       point += stride) {
    const uint32_t failing = static_cast<uint32_t>(point) % ranks;
    const std::vector<Outcome> outcomes = RunAndFail(c, failing, failure, point);
    for (uint32_t r = 0; r < ranks; ++r) {
      EXPECT_TRUE(outcomes[r].closed.ok()) << outcomes[r].closed;
      EXPECT_FALSE(outcomes[r].status.ok()) << "rank " << r << ", call " << point;
      if (r == failing) continue;
      EXPECT_NE(outcomes[r].status.message().find("rank " + std::to_string(failing)),
                std::string_view::npos)
          << "rank " << r << ", call " << point << ": " << outcomes[r].status;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, RankFailureTest,
    ::testing::Combine(::testing::Values(2, 3, 4), ::testing::Values(0, 1, 2),
                       ::testing::Values(Failure::kAbortAgreement, Failure::kAbortGradients,
                                         Failure::kAbortGathers, Failure::kCloses,
                                         Failure::kIsDestroyed)));

// By rank, how a first step of what `change` makes of the last rank ends.
std::vector<absl::Status> RunDifferent(
    uint32_t ranks, const std::function<void(RanksCase*)>& change,
    const std::function<absl::Status(ScriptRank*, uint32_t)>& calls) {
  std::vector<RankLinks> links = LinkRanks(ranks);
  std::vector<absl::Status> ends(ranks);
  OnRanks(ranks, [&](uint32_t r) {
    RanksCase c = SmallCase(ranks, 1);
    if (r + 1 == ranks) change(&c);
    auto runtime = MakeRank(c, r, std::move(links[r]));
    ends[r] = runtime.status();
    if (!runtime.ok()) return;
    ScriptRank rank(runtime->get(), c, r);
    ends[r] = rank.Load();
    if (ends[r].ok()) ends[r] = calls(&rank, r);
    const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
    EXPECT_TRUE(closed.ok()) << closed;
  });
  return ends;
}

struct Difference {
  const char* named;
  std::function<void(RanksCase*)> change;
};

class DifferentRanksTest : public ::testing::TestWithParam<Difference> {};

TEST_P(DifferentRanksTest, FailOnAllAndSayHow) {
  for (const uint32_t ranks : {2u, 3u, 4u}) {
    const auto ends = RunDifferent(ranks, GetParam().change,
                                   [](ScriptRank* rank, uint32_t) { return rank->Step(); });
    for (const absl::Status& end : ends) {
      EXPECT_EQ(end.code(), absl::StatusCode::kFailedPrecondition) << end;
      EXPECT_NE(end.message().find(GetParam().named), std::string_view::npos) << end;
      EXPECT_NE(end.message().find("rank " + std::to_string(ranks - 1)), std::string_view::npos)
          << end;
    }
  }
}

const Difference kDifferences[] = {
    {"ZeRO stage", [](RanksCase* c) { c->stage = 0; }},
    {"number of units",
     [](RanksCase* c) {
       c->spec.units.push_back({.name = "more"});
       c->spec.tensors.push_back({.name = "more", .unit = UnitIndex(kUnits), .elements = 5});
     }},
    {"number of tensors", [](RanksCase* c) { c->spec.tensors.pop_back(); }},
    {"names of units", [](RanksCase* c) { c->spec.units[1].name = "other"; }},
    {"names of tensors", [](RanksCase* c) { c->spec.tensors[1].name = "other"; }},
    {"sizes of tensors", [](RanksCase* c) { c->spec.tensors[1].elements += 1; }},
    {"types of parameters", [](RanksCase* c) { c->config.types.param = FloatType::kF16; }},
    {"types of gradients", [](RanksCase* c) { c->config.types.grad = FloatType::kF32; }},
    {"parameter groups", [](RanksCase* c) { c->spec.tensors[1].group ^= 1; }},
    {"frozen tensors", [](RanksCase* c) { c->spec.tensors[2].keep = Keep::kParam; }},
    {"loss scale", [](RanksCase* c) { c->config.loss_scale.static_scale = 2; }},
    {"clip norm", [](RanksCase* c) { c->training.clip_norm = 2; }},
    {"hyperparameters",
     [](RanksCase* c) {
       std::vector<AdamWHyper> groups = testing::AdamWGroups();
       groups[1].lr *= 2;
       c->training.groups = testing::GroupsOf(groups);
     }},
};
INSTANTIATE_TEST_SUITE_P(All, DifferentRanksTest, ::testing::ValuesIn(kDifferences));

// The last rank does something else where the others do the same: an error, not a hang.
TEST(DifferentCallsTest, FailOnAllAndSayWhichWay) {
  const RanksCase c = SmallCase(3, 1);
  const PlainRanks plain(c);
  const auto op = [](Kind kind, uint32_t tensor = 0) {
    return ScriptOp{.kind = kind, .order = {}, .tensor = tensor};
  };
  const ScriptOp ops[] = {op(Kind::kStep),        op(Kind::kClear),       op(Kind::kClearOne, 1),
                          op(Kind::kClearOne, 2), op(Kind::kReadGrad, 1), op(Kind::kReadGrad, 2),
                          op(Kind::kRead),        op(Kind::kWrite, 1),    op(Kind::kWriteGrad, 3)};
  for (const ScriptOp& first : ops) {
    for (const ScriptOp& second : ops) {
      if (first.kind == second.kind && first.tensor == second.tensor) continue;
      const auto ends = RunDifferent(
          3, [](RanksCase*) {},
          [&](ScriptRank* rank, uint32_t r) {
            const absl::Status status = rank->Do(r == 2 ? first : second, plain);
            return status.ok() ? rank->Step() : status;
          });
      for (const absl::Status& end : ends) {
        EXPECT_EQ(end.code(), absl::StatusCode::kFailedPrecondition)
            << static_cast<int>(first.kind) << " " << static_cast<int>(second.kind) << ": " << end;
      }
    }
  }
}

// The last of three ranks does nothing where the others do `call`: they wait for it only so long,
// and name it alone. So does whoever comes later.
class AwaitedRankTest : public ::testing::TestWithParam<std::tuple<int, Kind>> {};

TEST_P(AwaitedRankTest, IsNamedWhenItDoesNotCome) {
  const auto [stage, kind] = GetParam();
  RanksCase c = SmallCase(3, stage);
  c.config.rank_timeout = std::chrono::milliseconds(500);
  const PlainRanks plain(c);
  const ScriptOp micro{.kind = Kind::kMicro, .order = {{0, 1, 2, 3}, {3, 2, 1, 0}, {0, 1, 2, 3}}};
  PlainRanks after = plain;
  after.Do(micro);
  std::vector<RankLinks> links = LinkRanks(3);
  std::vector<absl::Status> ends(3);
  std::atomic<int> ended = 0;
  OnRanks(3, [&](uint32_t r) {
    auto runtime = MakeRank(c, r, std::move(links[r]));
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    ScriptRank rank(runtime->get(), c, r);
    ends[r] = rank.Load();
    if (ends[r].ok()) ends[r] = rank.Do(micro, after);
    if (r < 2) {
      if (ends[r].ok()) ends[r] = rank.Do({.kind = kind, .order = micro.order, .tensor = 2}, after);
      if (ends[r].ok())
        ends[r] = rank.Do(micro, after);  // of a second micro-step none can be ended
      if (ends[r].ok()) ends[r] = rank.Step();
      ++ended;
      ended.notify_all();
    } else {
      for (int seen; (seen = ended) < 2;) ended.wait(seen);
      if (ends[r].ok()) ends[r] = rank.Step();
    }
    const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
    EXPECT_TRUE(closed.ok()) << closed;
  });
  for (const absl::Status& end : ends) {
    EXPECT_FALSE(end.ok());
    EXPECT_NE(end.message().find("has waited 0.5 s for rank 2 to do so too"),
              std::string_view::npos)
        << end;
  }
}

INSTANTIATE_TEST_SUITE_P(All, AwaitedRankTest,
                         ::testing::Combine(::testing::Values(0, 3),
                                            ::testing::Values(Kind::kStep, Kind::kMicro,
                                                              Kind::kClear, Kind::kReadGrad,
                                                              Kind::kRead, Kind::kWrite)));

TEST(UnmadeRankTest, ARankThatCantBeMadeIsNamed) {
  std::vector<RankLinks> links = LinkRanks(3);
  std::vector<absl::Status> ends(3);
  OnRanks(3, [&](uint32_t r) {
    RanksCase c = SmallCase(3, 2);
    if (r == 1) c.config.budgets.hbm = Bytes(1);
    auto runtime = MakeRank(c, r, std::move(links[r]));
    ends[r] = runtime.status();
    if (!runtime.ok()) return;
    ScriptRank rank(runtime->get(), c, r);
    ends[r] = rank.Load();
    EXPECT_TRUE(OffloadRuntime::Close(*std::move(runtime)).ok());
  });
  EXPECT_TRUE(absl::IsResourceExhausted(ends[1])) << ends[1];
  for (const uint32_t r : {0u, 2u})
    EXPECT_NE(ends[r].message().find("rank 1"), std::string_view::npos) << ends[r];
}

}  // namespace
}  // namespace sluice
