// The oracle is arithmetic: known figures, and that ranks together have the whole, once or each.

#include "offload/plan/zero_need.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/status.h"
#include "tests/offload/zero_model.h"

namespace sluice {
namespace {

using testing::EqualUnits;
using testing::Model;
using testing::Needs;

constexpr int64_t kBillion = 1'000'000'000;

const ZeroNeed& Of(const std::vector<ZeroNeed>& needs, const ZeroWay& way) {
  return *std::ranges::find(needs, way, &ZeroNeed::way);
}

// Any model, on any number of GPUs.
ZeroModel AnyModel() {
  const std::vector<FloatType> types = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
  const auto units = *rc::gen::resize(
      6, rc::gen::nonEmpty(rc::gen::container<std::vector<int64_t>>(rc::gen::inRange(1, 300'000))));
  const int64_t gpus = *rc::gen::inRange<int64_t>(1, 20);
  return Model(units, gpus, *rc::gen::inRange<int64_t>(1, gpus + 1),
               {*rc::gen::elementOf(types), *rc::gen::elementOf(types)});
}

// What gradients pass through among ranks is beside them.
TEST(ZeroNeedTest, SevenBillionOnFourGpusAreTheKnownFigures) {
  const auto needs = Needs(Model(EqualUnits(7 * kBillion, 32), 4, 4));
  const Bytes figures[] = {Bytes(112 * kBillion), Bytes(49 * kBillion), Bytes(77 * kBillion / 2),
                           Bytes(28 * kBillion)};
  const char* formulas[] = {"(2+2+12)P", "(2+2)P + 12P/N", "2P + (2+12)P/N", "(2+2+12)P/N"};
  for (int stage = 0; stage < kZeroStages; ++stage) {
    const ZeroNeed& need = Of(needs, {.stage = stage});
    EXPECT_EQ(need.gpu_kept.sum(), figures[stage]) << stage;
    EXPECT_EQ(need.gpu_kept.formula(), formulas[stage]);
    EXPECT_EQ(need.nvme.formula(), "0");
    EXPECT_EQ(need.ram.sum(), need.buffers * 4);
    // Of a unit of 218.75 million: three times its gradients, and twice three quarters of them.
    EXPECT_EQ(need.exchange.formula(), "6L + 4L*(N-1)/N");
    EXPECT_EQ(need.gpu_exchange(), Bytes(1'312'500'000 + 656'250'000));
    EXPECT_EQ(need.gpu(), need.gpu_kept.sum() + need.gpu_moving.sum() + need.gpu_exchange());
  }
}

// Computed in RAM, it is there, for each rank of the host.
TEST(ZeroNeedTest, TheExchangeIsWhereComputeIs) {
  ZeroModel model = Model(EqualUnits(1'200'000'000, 12), 6, 3);
  const auto on_gpus = Needs(model);
  model.exchange_tier = Tier::kPinned;
  const auto in_ram = Needs(model);
  for (size_t i = 0; i < on_gpus.size(); ++i) {
    const ZeroNeed &gpu = on_gpus[i], &ram = in_ram[i];
    EXPECT_EQ(ram.gpu_exchange(), Bytes(0));
    EXPECT_EQ(ram.gpu(), gpu.gpu() - gpu.gpu_exchange());
    EXPECT_EQ(ram.kept_in_ram, gpu.kept_in_ram);
    EXPECT_EQ(ram.ram.sum(), gpu.ram.sum() + ram.exchange.sum() * 3);
    EXPECT_EQ(ram.ram_least.sum(), gpu.ram_least.sum() + ram.exchange.sum() * 3);
    EXPECT_THAT(ram.ram.formula(), ::testing::EndsWith("(B+E)*g"));
    // Parameters in RAM are sent from there, if that is where compute is.
    const bool served = gpu.way.params != Tier::kHbm;
    const bool served_in_ram = gpu.way.params == Tier::kNvme;
    constexpr int64_t kL = 100'000'000;
    EXPECT_EQ(gpu.exchange.sum(),
              Bytes(6 * kL + 4 * (kL - kL / 6) + (served ? 2 * ((kL + 5) / 6) : 0)));
    EXPECT_EQ(ram.exchange.sum(),
              Bytes(6 * kL + 4 * (kL - kL / 6) + (served_in_ram ? 2 * ((kL + 5) / 6) : 0)));
  }
}

// Each cell of the table, by hand: 1.2e9 parameters in 12 equal units, 6 GPUs, 3 a host.
TEST(ZeroNeedTest, EveryWayIsTheArithmeticOfItsStage) {
  constexpr int64_t kP = 1'200'000'000, kN = 6, kG = 3, kT = kP / 6;
  const auto needs = Needs(Model(EqualUnits(kP, 12), kN, kG));
  ASSERT_EQ(needs.size(), 18u);
  for (const ZeroNeed& need : needs) {
    const auto [stage, states, params] = need.way;
    SCOPED_TRACE(need.gpu_kept.formula() + " | " + need.ram.formula());
    const int64_t states_each = stage >= 1 ? kP / kN : kP;
    const int64_t grads_each = stage >= 2 ? kP / kN : kP;
    int64_t kept = 0, moving = 0, ram = 0, nvme = 0, grads_in_ram = 0;
    if (params == Tier::kHbm) kept += 2 * (stage == 3 ? kP / kN : kP);
    if (params == Tier::kPinned) ram += 2 * kP;  // once a host
    if (params == Tier::kNvme) nvme += 2 * kP / kN * kG;
    if (stage == 3) moving += 2 * kT;
    if (states == Tier::kHbm) {
      kept += 12 * states_each + 2 * grads_each;
      if (stage >= 2) moving += 2 * kT;
    } else {
      moving += 2 * kT;
      grads_in_ram = 2 * grads_each * kG;
      (states == Tier::kPinned ? ram : nvme) += 12 * states_each * kG;
    }
    EXPECT_EQ(need.gpu_kept.sum(), Bytes(kept));
    EXPECT_EQ(need.gpu_moving.sum(), Bytes(moving));
    EXPECT_EQ(need.ram.sum() - need.buffers * kG, Bytes(ram + grads_in_ram));
    EXPECT_EQ(need.kept_in_ram, Bytes(ram + grads_in_ram));
    EXPECT_EQ(need.nvme.sum(), Bytes(nvme));
    const int64_t spilled = states == Tier::kNvme ? grads_in_ram : 0;
    EXPECT_EQ(need.ram_least.sum(), need.ram.sum() - Bytes(spilled));
    EXPECT_EQ(need.nvme_most.sum(), Bytes(nvme + spilled));
  }
}

// Two buffers each of states, parameters, and of gradients if they may go to NVMe; and eight bytes
// a cell for the sums of squares.
TEST(ZeroNeedTest, BuffersAreThoseOfThePlacementOfAShare) {
  const ZeroModel model = Model({100'000'000}, 2, 2);
  const auto needs = Needs(model);
  constexpr int64_t kChunk = 12 * kCellElements;
  constexpr int64_t kSums = (50'000'000 / kCellElements + 1) * 8;
  const auto buffers = [&](Tier states) {
    return Of(needs, {.stage = 1, .states = states}).buffers;
  };
  EXPECT_EQ(buffers(Tier::kPinned), RoundUp(Bytes(kSums), kSlotAlignment) + Bytes(2 * 14 * kChunk));
  EXPECT_EQ(buffers(Tier::kHbm), RoundUp(Bytes(kSums), kSlotAlignment) + Bytes(2 * 14 * kChunk));
  EXPECT_EQ(buffers(Tier::kNvme), RoundUp(Bytes(kSums), kSlotAlignment) + Bytes(2 * 16 * kChunk));
}

// Where something is partitioned, ranks have it once together; else each has it.
RC_GTEST_PROP(ZeroNeedTest, RanksTogetherHaveTheWhole, ()) {
  const ZeroModel model = AnyModel();
  const int64_t p = model.parameters();
  const int64_t param = model.types.param.size(), grad = SizeOf(model.types.grad);
  constexpr int64_t kState = 12;
  const auto ways = ZeroWays();
  std::vector<int64_t> gpus(ways.size()), ram(ways.size()), nvme(ways.size());
  int64_t hosts = 0;
  for (int64_t rank = 0; rank < model.gpus; ++rank) {
    const auto needs = Needs(model, rank);
    const bool first_of_host = rank % model.gpus_per_host == 0;
    hosts += first_of_host ? 1 : 0;
    for (size_t i = 0; i < ways.size(); ++i) {
      gpus[i] += needs[i].gpu_kept.sum().value();
      if (!first_of_host) continue;
      ram[i] += needs[i].kept_in_ram.value();
      nvme[i] += needs[i].nvme.sum().value();
    }
  }
  for (size_t i = 0; i < ways.size(); ++i) {
    const auto [stage, states, params] = ways[i];
    const int64_t all_params = param * p * (stage == 3 ? 1 : model.gpus);
    const int64_t all_grads = grad * p * (stage >= 2 ? 1 : model.gpus);
    const int64_t all_states = kState * p * (stage >= 1 ? 1 : model.gpus);
    std::map<Tier, int64_t> wanted;
    wanted[params] += params == Tier::kPinned ? param * p * hosts : all_params;
    wanted[states] += all_states;
    wanted[states == Tier::kHbm ? Tier::kHbm : Tier::kPinned] += all_grads;
    RC_ASSERT(gpus[i] == wanted[Tier::kHbm]);
    RC_ASSERT(ram[i] == wanted[Tier::kPinned]);
    RC_ASSERT(nvme[i] == wanted[Tier::kNvme]);
  }
}

RC_GTEST_PROP(ZeroNeedTest, NoRankNeedsMoreThanTheFirst, ()) {
  const ZeroModel model = AnyModel();
  const auto first = Needs(model);
  const auto other = Needs(model, *rc::gen::inRange<int64_t>(0, model.gpus));
  for (size_t i = 0; i < first.size(); ++i) {
    RC_ASSERT(other[i].gpu() <= first[i].gpu());
    RC_ASSERT(other[i].ram.sum() <= first[i].ram.sum());
    RC_ASSERT(other[i].nvme.sum() <= first[i].nvme.sum());
  }
}

// A higher stage keeps no more, of any tier; nor does a GPU, or a host with as many, among more.
RC_GTEST_PROP(ZeroNeedTest, HigherStagesAndMoreGpusNeedNoMore, ()) {
  ZeroModel model = AnyModel();
  const auto needs = Needs(model);
  for (const ZeroNeed& need : needs) {
    if (need.way.stage == 3) continue;
    ZeroWay next = need.way;
    ++next.stage;
    RC_ASSERT(Of(needs, next).gpu_kept.sum() <= need.gpu_kept.sum());
    RC_ASSERT(Of(needs, next).kept_in_ram <= need.kept_in_ram);
    RC_ASSERT(Of(needs, next).nvme.sum() <= need.nvme.sum());
  }
  model.gpus += *rc::gen::inRange<int64_t>(1, 9);
  const auto more = Needs(model);
  for (size_t i = 0; i < needs.size(); ++i) {
    RC_ASSERT(more[i].gpu_kept.sum() <= needs[i].gpu_kept.sum());
    RC_ASSERT(more[i].kept_in_ram <= needs[i].kept_in_ram);
    RC_ASSERT(more[i].nvme.sum() <= needs[i].nvme.sum());
  }
}

// On one GPU there is nothing to part or to gather.
RC_GTEST_PROP(ZeroNeedTest, OnOneGpuStagesAreTheSame, ()) {
  ZeroModel model = AnyModel();
  model.gpus = model.gpus_per_host = 1;
  const auto needs = Needs(model);
  for (const ZeroNeed& need : needs) {
    if (need.way.params != Tier::kHbm) continue;
    ZeroWay plain = need.way;
    plain.stage = 0;
    RC_ASSERT(need.gpu() == Of(needs, plain).gpu());
    RC_ASSERT(need.ram.sum() == Of(needs, plain).ram.sum());
    RC_ASSERT(need.nvme.sum() == Of(needs, plain).nvme.sum());
  }
}

TEST(ZeroNeedTest, HugeModelsOverflowNothing) {
  for (const auto& [gpus, per_host] : {std::pair<int64_t, int64_t>{1024, 8},
                                       {1024, 1024},
                                       {1023, 7},
                                       {kGpusMax, kGpusPerHostMax},
                                       {1, 1}}) {
    for (const int64_t parameters : {10'000 * kBillion, kElementsMax}) {
      const auto needs = Needs(
          Model(EqualUnits(parameters, 64), gpus, per_host, {FloatType::kBf16, FloatType::kF32}));
      for (const ZeroNeed& need : needs) {
        for (const ZeroFigure* figure : {&need.gpu_kept, &need.gpu_moving, &need.ram, &need.nvme,
                                         &need.ram_least, &need.nvme_most}) {
          for (const ZeroTerm& term : figure->terms) EXPECT_GT(term.bytes, Bytes(0));
          EXPECT_LE(figure->sum(), Bytes(20 * parameters * per_host + (int64_t{1} << 50)));
        }
      }
      // The exact share of one rank, in more than 64 bits.
      const auto wide = static_cast<__int128>(parameters);
      const auto share = static_cast<int64_t>((wide + gpus - 1) / gpus);
      EXPECT_EQ(Of(needs, {.stage = 3}).gpu_kept.sum(), Bytes(18 * share));
      const auto host = Of(needs, {.stage = 0, .states = Tier::kNvme}).nvme.sum();
      EXPECT_EQ(host.value(), static_cast<int64_t>(12 * wide * per_host));
    }
  }
}

TEST(ZeroNeedTest, TheTwoLargestUnitsMove) {
  EXPECT_EQ(Model({5}, 2, 2).two_units(), 5);
  EXPECT_EQ(Model({5, 9, 7}, 2, 2).two_units(), 16);
  EXPECT_EQ(Model({9, 9, 1}, 2, 2).two_units(), 18);
  EXPECT_EQ(Model({1, 2, 3, 4}, 2, 2).two_units(), 7);
}

class ZeroChoiceTest : public ::testing::Test {
 protected:
  ZeroWay Recommended(Bytes hbm, std::optional<Bytes> ram, std::optional<Bytes> nvme) const {
    const auto best = RecommendZero(needs_, {hbm, ram, nvme, 20});
    return best ? needs_[*best].way : ZeroWay{.stage = -1};
  }
  static Bytes GB(int64_t n) { return Bytes(n * kBillion); }

  const std::vector<ZeroNeed> needs_ = Needs(Model(EqualUnits(7 * kBillion, 32), 4, 4));
};

TEST_F(ZeroChoiceTest, TheLeastThatIsOffloadedAndThenTheLowestStage) {
  const auto none = std::nullopt;
  EXPECT_EQ(Recommended(GB(143), none, none), ZeroWay{.stage = 0});
  EXPECT_EQ(Recommended(GB(142), none, none), ZeroWay{.stage = 1});
  EXPECT_EQ(Recommended(GB(52), none, none), ZeroWay{.stage = 2});
  EXPECT_EQ(Recommended(GB(40), none, none), ZeroWay{.stage = 3});
  EXPECT_EQ(Recommended(GB(36), GB(200), none), (ZeroWay{3, Tier::kHbm, Tier::kPinned}));
  EXPECT_EQ(Recommended(GB(24), GB(500), GB(999)), (ZeroWay{2, Tier::kPinned, Tier::kHbm}));
  EXPECT_EQ(Recommended(GB(24), GB(90), GB(999)), (ZeroWay{2, Tier::kNvme, Tier::kHbm}));
  EXPECT_EQ(Recommended(GB(10), GB(110), GB(999)), (ZeroWay{3, Tier::kPinned, Tier::kHbm}));
  EXPECT_EQ(Recommended(GB(5), GB(1000), GB(999)), (ZeroWay{3, Tier::kPinned, Tier::kPinned}));
  // Gradients on NVMe, so that parameters may be in RAM.
  EXPECT_EQ(Recommended(GB(5), GB(20), GB(999)), (ZeroWay{3, Tier::kNvme, Tier::kPinned}));
  EXPECT_EQ(Recommended(GB(5), GB(13), GB(999)), (ZeroWay{3, Tier::kNvme, Tier::kNvme}));
  EXPECT_EQ(Recommended(GB(1), GB(20), GB(999)).stage, -1);
  EXPECT_EQ(Recommended(GB(24), none, none).stage, -1);  // RAM is not known
}

// 1.75 and 2.08 GB are needed: of 4 GB that is tight, and of what is tight the least is taken.
TEST_F(ZeroChoiceTest, WhatIsTightIsTakenOnlyIfNothingFitsWell) {
  const ZeroMachine machine{GB(4), GB(1000), GB(999), 20};
  EXPECT_EQ(JudgeZero(Of(needs_, {3, Tier::kPinned, Tier::kPinned}), machine).fit, ZeroFit::kTight);
  EXPECT_EQ(Recommended(GB(4), GB(1000), GB(999)), (ZeroWay{3, Tier::kPinned, Tier::kPinned}));
  EXPECT_EQ(Recommended(GB(31), std::nullopt, std::nullopt).stage, -1);
  EXPECT_EQ(Recommended(GB(32), std::nullopt, std::nullopt), ZeroWay{.stage = 3});
}

// A byte less of any tier is too little, and is said of that tier.
TEST_F(ZeroChoiceTest, VerdictsTurnAtTheByte) {
  for (const ZeroNeed& need : needs_) {
    const ZeroMachine exact{need.gpu(), need.ram_least.sum(), need.nvme_most.sum(), 0};
    const ZeroVerdict fits = JudgeZero(need, exact);
    EXPECT_EQ(fits.fit, ZeroFit::kFits);
    EXPECT_EQ(fits.spills, need.way.states == Tier::kNvme);
    for (const Tier tier : {Tier::kHbm, Tier::kPinned, Tier::kNvme}) {
      ZeroMachine less = exact, unknown = exact;
      auto ZeroMachine::*const field = tier == Tier::kHbm      ? &ZeroMachine::hbm
                                       : tier == Tier::kPinned ? &ZeroMachine::ram
                                                               : &ZeroMachine::nvme;
      *(less.*field) -= Bytes(1);
      EXPECT_EQ(JudgeZero(need, less).fit, ZeroFit::kTooLarge);
      EXPECT_EQ(JudgeZero(need, less).tier, tier);
      (unknown.*field).reset();
      const bool needs_it = tier == Tier::kHbm ||
                            (tier == Tier::kPinned && need.kept_in_ram > Bytes(0)) ||
                            (tier == Tier::kNvme && need.nvme.sum() > Bytes(0));
      EXPECT_EQ(JudgeZero(need, unknown).fit, needs_it ? ZeroFit::kUnknown : ZeroFit::kFits);
    }
    ZeroMachine roomy = exact;
    roomy.ram = need.ram.sum();
    roomy.nvme = need.nvme.sum();
    EXPECT_FALSE(JudgeZero(need, roomy).spills);
    EXPECT_EQ(JudgeZero(need, roomy).fit, ZeroFit::kFits);
    roomy.headroom_percent = 1;
    EXPECT_EQ(JudgeZero(need, roomy).fit, ZeroFit::kTight);
  }
}

}  // namespace
}  // namespace sluice
