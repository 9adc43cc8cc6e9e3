// What ranks may do between a training's first gradient and its last step, in every order: all come
// to the bits of plain arrays.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/nvme/temp_dir.h"
#include "tests/offload/ranks_script_run.h"

namespace sluice {
namespace {

using testing::InMemory;
using testing::PlainRanks;
using testing::RanksCase;
using testing::ScriptOp;
using testing::ScriptRank;
using Kind = testing::ScriptOp::Kind;

// All ranks carry out the operations; by rank, how that ended.
std::vector<absl::Status> RunScript(const RanksCase& c, const std::vector<ScriptOp>& ops) {
  std::vector<PlainRanks> plain{PlainRanks(c)};  // after that many operations
  for (const ScriptOp& op : ops) {
    plain.push_back(plain.back());
    plain.back().Do(op);
  }
  std::vector<RankLinks> links = testing::LinkRanks(c.ranks, c.behind_link);
  std::vector<absl::Status> ends(c.ranks);
  testing::OnRanks(c.ranks, [&](uint32_t r) {
    auto runtime = testing::MakeRank(c, r, std::move(links[r]));
    ends[r] = runtime.status();
    if (!runtime.ok()) return;
    ScriptRank rank(runtime->get(), c, r);  // outlives the runtime, which may read what it keeps
    ends[r] = rank.Load();
    for (size_t i = 0; i < ops.size() && ends[r].ok(); ++i) {
      ends[r] = rank.Do(ops[i], plain[i + 1]);
      if (!ends[r].ok()) ends[r] = Annotate(ends[r], fmt::format("operation {}", i));
    }
    if (ends[r].ok()) ends[r] = rank.CompareMasters(plain.back());
    const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
    if (ends[r].ok()) ends[r] = closed;
  });
  return ends;
}

void RunAndCompare(const RanksCase& c, const std::vector<ScriptOp>& ops) {
  const std::vector<absl::Status> ends = RunScript(c, ops);
  for (uint32_t r = 0; r < c.ranks; ++r)
    EXPECT_TRUE(ends[r].ok()) << "rank " << r << ": " << ends[r];
}

std::vector<uint32_t> AllUnits(const RanksCase& c) {
  std::vector<uint32_t> all;
  for (uint32_t u = 0; u < c.spec.units.size(); ++u) all.push_back(u);
  return all;
}
// All units, on the ranks that `on` names.
std::vector<std::vector<uint32_t>> UnitsOn(const RanksCase& c, const std::vector<uint32_t>& on) {
  std::vector<std::vector<uint32_t>> order(c.ranks);
  for (const uint32_t r : on) order[r] = AllUnits(c);
  return order;
}
std::vector<std::vector<uint32_t>> UnitsOnAll(const RanksCase& c) {
  return std::vector<std::vector<uint32_t>>(c.ranks, AllUnits(c));
}

// A script at every number of ranks and stage.
class RanksScriptTest : public ::testing::TestWithParam<std::tuple<uint32_t, int, bool>> {
 protected:
  RanksScriptTest() : c_(InMemory(std::get<0>(GetParam()), std::get<1>(GetParam()))) {
    c_.behind_link = std::get<2>(GetParam());
  }

  ScriptOp Micro(bool boundary = true) {
    return {.kind = Kind::kMicro, .order = UnitsOnAll(c_), .seed = ++seed_, .boundary = boundary};
  }
  ScriptOp MicroOn(const std::vector<uint32_t>& ranks, bool boundary = true) {
    ScriptOp op = Micro(boundary);
    op.order = UnitsOn(c_, ranks);
    return op;
  }
  ScriptOp On(Kind kind, uint32_t tensor = 0) {
    return {.kind = kind, .order = {}, .seed = ++seed_, .tensor = tensor};
  }
  ScriptOp Step() { return On(Kind::kStep); }

  RanksCase c_;
  int seed_ = 0;
};

TEST_P(RanksScriptTest, GradientsAreClearedInTheMiddle) {
  RunAndCompare(c_, {Micro(false), On(Kind::kClear), Micro(), Step(), Micro(), On(Kind::kClear),
                     On(Kind::kClear), Micro(), Step(), Micro(), On(Kind::kClear), Step()});
}

TEST_P(RanksScriptTest, OneTensorIsCleared) {
  std::vector<ScriptOp> ops;
  for (const uint32_t t : {0u, 2u, 3u, 5u}) {
    ops.push_back(Micro(false));
    ops.push_back(On(Kind::kClearOne, t));
    ops.push_back(On(Kind::kReadGrad, t));
    if (t > 2) ops.push_back(Micro());
    ops.push_back(Step());
  }
  RunAndCompare(c_, ops);
}

TEST_P(RanksScriptTest, GradientsOnOneRankOnly) {
  for (const uint32_t rank : {0u, c_.ranks - 1}) {
    RunAndCompare(c_, {MicroOn({rank}), On(Kind::kReadGrad, 3), Step(), MicroOn({rank}, false),
                       On(Kind::kClear), MicroOn({c_.ranks - 1 - rank}), Step(),
                       MicroOn({rank}, false), On(Kind::kClearOne, 2), Micro(), Step()});
  }
}

TEST_P(RanksScriptTest, StepsWithoutAnyGradient) {
  RunAndCompare(c_, {Step(), Step(), On(Kind::kReadGrad, 1), Micro(), Step(), Step(),
                     On(Kind::kClear), Step(), On(Kind::kRead)});
}

TEST_P(RanksScriptTest, ARefusedStepKeepsGradientsOnAllRanks) {
  for (const uint32_t rank : {0u, c_.ranks - 1}) {
    ScriptOp one = On(Kind::kHeldStep), all = one;
    one.order = UnitsOn(c_, {rank});
    one.order[rank] = {1};
    all.order = UnitsOnAll(c_);
    RunAndCompare(c_, {Micro(false), Micro(), one, Step(), Micro(), all, one, Micro(), Step()});
  }
}

TEST_P(RanksScriptTest, ValuesAreReadAnywhere) {
  std::vector<ScriptOp> ops{On(Kind::kRead)};
  for (int step = 0; step < 2; ++step) {
    for (const bool boundary : {false, true}) {
      ops.push_back(Micro(boundary));
      ops.push_back(On(Kind::kRead));
      for (uint32_t t = 0; t < 7; ++t) ops.push_back(On(Kind::kReadGrad, t));
    }
    ops.push_back(Step());
    ops.push_back(On(Kind::kReadGrad, 1));
    ops.push_back(On(Kind::kRead));
  }
  RunAndCompare(c_, ops);
}

TEST_P(RanksScriptTest, WhatIsWrittenAllSee) {
  std::vector<ScriptOp> ops{Micro(), Step()};
  for (uint32_t t = 0; t < 7; ++t) ops.push_back(On(Kind::kWrite, t));
  for (ScriptOp op : {Micro(), Step(), On(Kind::kWrite, 3), On(Kind::kRead), Micro(false),
                      On(Kind::kWrite, 1), Micro(), Step()})
    ops.push_back(op);
  RunAndCompare(c_, ops);
}

TEST_P(RanksScriptTest, AWrittenGradientIsStepped) {
  RunAndCompare(c_, {On(Kind::kWriteGrad, 2), On(Kind::kReadGrad, 2), Step(), Micro(false),
                     On(Kind::kWriteGrad, 1), On(Kind::kWriteGrad, 6), Micro(), Step(),
                     MicroOn({0}), On(Kind::kWriteGrad, 1), Step()});
}

TEST_P(RanksScriptTest, MicroStepsWithoutIterations) {
  ScriptOp first = Micro(), second = Micro(), third = MicroOn({c_.ranks - 1});
  first.bracketed = second.bracketed = third.bracketed = false;
  RunAndCompare(c_, {first, second, Step(), second, On(Kind::kReadGrad, 1), third, Step(), third,
                     Step(), Micro(false), first, Micro(), Step()});
}

TEST_P(RanksScriptTest, OneRankEvaluates) {
  ScriptOp evaluate = On(Kind::kEvaluate);
  evaluate.order = UnitsOn(c_, {c_.ranks - 1});
  RunAndCompare(c_, {evaluate, Micro(false), Micro(), Step(), evaluate, evaluate, Micro(), Step(),
                     evaluate, On(Kind::kRead), Step()});
}

// Units come twice, and nobody waits for gradients: what a rank is ahead by changes nothing.
TEST_P(RanksScriptTest, AheadOfTheOthers) {
  std::vector<ScriptOp> ops;
  for (int i = 0; i < 6; ++i) {
    ScriptOp micro = Micro(i % 2 != 0);
    micro.waits = false;
    for (uint32_t r = 0; r < c_.ranks; ++r) {
      for (uint32_t u = 0; u < c_.spec.units.size(); u += 2 + r) micro.order[r].push_back(u);
    }
    ops.push_back(micro);
    if (micro.boundary) ops.push_back(Step());
  }
  RunAndCompare(c_, ops);
}

// A rank that skips a unit does not wait for its update; what the others have of it comes while
// that may read the gradients before.
TEST_P(RanksScriptTest, OthersGradientsComeDuringAnUpdate) {
  TempDir directory;
  c_.config.nvme_paths = {directory.path()};
  c_.config.budgets.pinned = MiB(1);
  c_.config.placement.state_buffers = 4;
  std::vector<ScriptOp> ops;
  for (int i = 0; i < 20; ++i) {
    ScriptOp micro = Micro();
    for (std::vector<uint32_t>& order : micro.order) order = {0, 1, 2, 3, 4, 5, 6};
    micro.order[static_cast<size_t>(i) % c_.ranks] = {0};
    ops.push_back(micro);
    ops.push_back(Step());
  }
  RunAndCompare(c_, ops);
}

TEST_P(RanksScriptTest, AnOverflowOnOneRankSkipsTheStepOnAll) {
  c_.config.types = {.param = FloatType::kF16, .grad = FloatType::kF16};
  c_.training.param_type = c_.training.grad_type = FloatType::kF16;
  c_.config.loss_scale = {.static_scale = 0, .initial_scale_power = 4, .hysteresis = 1};
  for (uint32_t rank = 0; rank < c_.ranks; ++rank) {
    for (const uint32_t tensor : {0u, 6u}) {
      ScriptOp overflow = Micro(rank % 2 == 0);
      overflow.overflows = rank;
      overflow.tensor = tensor;
      RunAndCompare(c_, {Micro(), Step(), overflow, Micro(), Step(), Micro(), Step()});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RanksScriptTest,
                         ::testing::Combine(::testing::Values(2, 3, 4), ::testing::Values(0, 1, 2),
                                            ::testing::Values(false)));
INSTANTIATE_TEST_SUITE_P(BehindLink, RanksScriptTest,
                         ::testing::Combine(::testing::Values(3), ::testing::Values(0, 1, 2),
                                            ::testing::Values(true)));

// Any of what is above, in any order, as the seed says.
std::vector<ScriptOp> RandomScript(const RanksCase& c, uint64_t seed) {
  uint64_t dice = testing::Mix(seed + 500);
  const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
  const auto tensors = static_cast<uint64_t>(c.spec.tensors.size());
  const auto some_units = [&](uint64_t of) {
    std::vector<uint32_t> order;
    for (uint32_t u = 0; u < c.spec.units.size(); ++u) {
      const uint64_t times = draw(of);
      for (uint64_t i = 0; i < std::min<uint64_t>(times, 2); ++i) order.push_back(u);
    }
    return order;
  };
  std::vector<ScriptOp> ops;
  bool between_steps = true, given = false;
  for (int i = 0; i < 24; ++i) {
    ScriptOp op{.kind = Kind::kMicro, .order = UnitsOnAll(c), .seed = i + 1};
    op.tensor = static_cast<uint32_t>(draw(tensors));
    const bool frozen = c.spec.tensors[op.tensor].keep == Keep::kParam;
    const uint64_t kind = draw(16);
    op.waits = draw(3) != 0;
    if (kind < 6) {
      op.boundary = draw(2) == 0;
      // Units that come in an iteration after gradients of another make what is added to what
      // depend on who is faster: a window has one iteration, or every unit in each.
      if (!given && kind < 4 && !op.boundary) {
        // Who waits for what only it has twice may keep the others waiting (grad_exchange.h).
        for (uint32_t r = 0; r < c.ranks; ++r) op.order[r] = some_units(op.waits ? 2 : 3);
      } else if (kind == 5) {
        op.bracketed = false;
      }
      given = op.boundary || !op.bracketed;
      between_steps = false;
    } else if (kind < 9) {
      op.kind = Kind::kStep;
      given = false;
      between_steps = true;
    } else if (kind == 9) {
      if (!between_steps) continue;
      op.kind = Kind::kEvaluate;
      op.order = UnitsOn(c, {static_cast<uint32_t>(draw(c.ranks))});
    } else if (kind == 10) {
      op.kind = Kind::kRead;
    } else if (kind == 11) {
      op.kind = Kind::kClear;
      given = false;
    } else {
      if (frozen) continue;
      constexpr Kind kOfOne[] = {Kind::kClearOne, Kind::kReadGrad, Kind::kWrite, Kind::kWriteGrad};
      op.kind = kOfOne[kind - 12];
      given = given && op.kind == Kind::kWrite;
    }
    ops.push_back(op);
  }
  ops.push_back({.kind = Kind::kStep, .order = {}});
  return ops;
}

RanksCase RandomCase(uint64_t seed, const std::string& directory) {
  uint64_t dice = testing::Mix(seed + 1000);
  const auto draw = [&dice](uint64_t n) { return (dice = testing::Mix(dice + 1)) % n; };
  RanksCase c = InMemory(2 + static_cast<uint32_t>(draw(3)), static_cast<int>(draw(3)));
  c.spec = testing::MixedModel(seed);
  c.config.workers = 1 + static_cast<int>(draw(2));
  c.config.placement.state_buffers = c.config.placement.grad_buffers = 4;
  c.config.nvme_paths = {directory};
  if (draw(2) == 0) c.config.budgets.pinned = KiB(1000);
  return c;
}

class RandomScriptTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(RandomScriptTest, ComesToTheBitsOfPlainArrays) {
  TempDir directory;
  RanksCase c = RandomCase(GetParam(), directory.path());
  c.behind_link = GetParam() % 2 == 1;
  RunAndCompare(c, RandomScript(c, GetParam()));
}

INSTANTIATE_TEST_SUITE_P(All, RandomScriptTest, ::testing::Range<uint64_t>(1, 41));

TEST(BusyRandomScriptTest, ComesToTheBitsOfPlainArrays) {
  std::atomic<bool> end{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 3; ++i) {
    busy.emplace_back([&end] {
      while (!end) {
      }
    });
  }
  for (uint64_t seed = 100; seed < 106; ++seed) {
    TempDir directory;
    const RanksCase c = RandomCase(seed, directory.path());
    SCOPED_TRACE(seed);
    RunAndCompare(c, RandomScript(c, seed));
  }
  end = true;
  for (std::thread& thread : busy) thread.join();
}

}  // namespace
}  // namespace sluice
