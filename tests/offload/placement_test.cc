#include "offload/plan/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/sim_memory.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "offload/run/tier_memory.h"
#include "tests/offload/random_model.h"
#include "tests/offload/smallest_budget.h"

namespace sluice {
namespace {

using testing::HasSubstr;

// A model, budgets from nothing to more than enough, and options.
struct Input {
  ModelLayout layout;
  Budgets budgets;
  PlacementOptions options;
};

Input AnyInput() {
  Input input;
  absl::StatusOr<ModelLayout> layout =
      ModelLayout::Make(AnyModel(), AnyChunkElements(), AnyFloatTypes());
  SLUICE_CHECK(layout.ok());
  input.layout = *std::move(layout);
  const auto tier = rc::gen::element(Tier::kHbm, Tier::kPinned, Tier::kNvme, Tier::kNvme);
  input.options = {.lowest_param_tier = *tier,
                   .lowest_state_tier = *tier,
                   .resident_elements_max = *rc::gen::element<int64_t>(0, 100, 5000),
                   .state_buffers = *rc::gen::inRange(2, 12),
                   .param_buffers = *rc::gen::inRange(2, 12)};
  const int64_t n = input.layout.parameter_count() + 4096 * 20;
  const auto budget = [](int64_t most) {
    return Bytes(*rc::gen::oneOf(rc::gen::inRange<int64_t>(0, most), rc::gen::just(most)));
  };
  input.budgets = {budget(5 * n), budget(30 * n), budget(20 * n)};
  return input;
}

Bytes StateBytes(const ModelLayout& layout, size_t chunk) {
  return RoundUp(layout.chunks()[chunk].state_bytes(), kSlotAlignment);
}

RC_GTEST_PROP(PlacementTest, NoBudgetIsEverExceeded, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  RC_ASSERT(p->hbm() <= in.budgets.hbm);
  RC_ASSERT(p->pinned() <= in.budgets.pinned);
  RC_ASSERT(p->nvme() <= in.budgets.nvme);
  // The sums are those of the homes, and the memory that is taken is carved to the last byte.
  SimMemory host;
  SimWorld world(1);
  const auto device = MakeSimDevice({}, &world, &host);
  const absl::StatusOr<TierMemory> memory = TierMemory::Make(in.layout, *p, device.get(), &host);
  RC_ASSERT(memory.ok());
  RC_ASSERT(memory->hbm.carved() == p->hbm());
  RC_ASSERT(memory->pinned.carved() == p->pinned());
  Bytes on_nvme;
  for (const BlockShape& block : memory->blocks.shapes)
    on_nvme += RoundUp(block.size, kSlotAlignment);
  RC_ASSERT(on_nvme == p->nvme());
}

RC_GTEST_PROP(PlacementTest, OptionsAreKept, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  const bool all_in_hbm = in.options.lowest_state_tier == Tier::kHbm;
  RC_ASSERT(p->param_buffers >= kBuffersMin);
  RC_ASSERT(p->state_buffers >= (in.layout.updated_count() > 0 ? kBuffersMin : 0));
  RC_ASSERT(p->state_buffers <= in.options.state_buffers);
  RC_ASSERT(p->param_buffers <= in.options.param_buffers);
  for (size_t u = 0; u < p->param_home.size(); ++u) {
    RC_ASSERT(p->param_home[u] <= in.options.lowest_param_tier);
    if (all_in_hbm) RC_ASSERT(p->param_home[u] == Tier::kHbm);
    const UnitLayout& unit = in.layout.units()[u];
    if (unit.stays_in_hbm || unit.elements <= in.options.resident_elements_max)
      RC_ASSERT(p->param_home[u] == Tier::kHbm);
    if (p->param_home[u] != Tier::kHbm) RC_ASSERT(p->slot_bytes[u] <= p->hbm_cache);
  }
  for (const Tier tier : p->state_home) {
    RC_ASSERT((tier == Tier::kHbm) == all_in_hbm);
    RC_ASSERT(tier <= in.options.lowest_state_tier);
  }
  RC_ASSERT((p->grad_home == Tier::kHbm) == all_in_hbm);
}

RC_GTEST_PROP(PlacementTest, WhatFitsStaysAndWhatIsNeededFirst, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  const Bytes left = in.budgets.pinned - p->pinned();
  bool below = false;
  for (size_t c = 0; c < p->state_home.size(); ++c) {
    if (in.layout.chunks()[c].keep == Keep::kParam) continue;  // has none
    RC_ASSERT(!below || p->state_home[c] == Tier::kNvme);
    if (!below && p->state_home[c] == Tier::kNvme) RC_ASSERT(StateBytes(in.layout, c) > left);
    below = p->state_home[c] == Tier::kNvme;
  }
  below = false;
  for (size_t u = 0; u < p->param_home.size(); ++u) {
    if (p->param_home[u] == Tier::kHbm) continue;
    RC_ASSERT(!below || p->param_home[u] == Tier::kNvme);
    if (!below && p->param_home[u] == Tier::kNvme) RC_ASSERT(p->slot_bytes[u] > left);
    below = p->param_home[u] == Tier::kNvme;
  }
}

RC_GTEST_PROP(PlacementTest, TheSmallestBudgetNamedWorksAndOneByteLessDoesNot, ()) {
  Input in = AnyInput();
  in.budgets = {Bytes(0), Bytes(0), Bytes(0)};
  int refusals = 0;
  for (;; ++refusals) {
    RC_ASSERT(refusals <= 3);
    const absl::Status refused = MakePlacement(in.layout, in.budgets, in.options).status();
    if (refused.ok()) break;
    RC_ASSERT(absl::IsResourceExhausted(refused));
    const std::string tier = TierNamed(refused);
    const std::optional<Bytes> smallest = SmallestNamed(refused);
    RC_ASSERT(smallest.has_value());
    RC_ASSERT(SmallestThatWould(refused) == smallest);
    Bytes* const budget = tier == "hbm"      ? &in.budgets.hbm
                          : tier == "pinned" ? &in.budgets.pinned
                                             : &in.budgets.nvme;
    *budget = *smallest - Bytes(1);
    const absl::Status again = MakePlacement(in.layout, in.budgets, in.options).status();
    RC_ASSERT(TierNamed(again) == tier);
    RC_ASSERT(SmallestNamed(again) == smallest);
    *budget = *smallest;
    RC_ASSERT(TierNamed(MakePlacement(in.layout, in.budgets, in.options).status()) != tier);
  }
}

// Two units of 20480 elements, three chunks each.
ModelLayout TwoUnits() {
  const ModelSpec spec = {
      .units = {{"first"}, {"second"}},
      .tensors = {{"x", UnitIndex(0), 20480, 0}, {"y", UnitIndex(1), 20480, 0}}};
  absl::StatusOr<ModelLayout> layout = ModelLayout::Make(spec, 2 * kCellElements);
  SLUICE_CHECK(layout.ok());
  return *std::move(layout);
}

TEST(PlacementTest, WithRoomForAllNothingMoves) {
  const ModelLayout layout = TwoUnits();
  const absl::StatusOr<Placement> p = MakePlacement(layout, {MiB(1), MiB(4), Bytes(0)}, {});
  ASSERT_TRUE(p.ok()) << p.status();
  EXPECT_EQ(Bytes(0), p->hbm_cache);
  EXPECT_EQ(KiB(160), p->hbm_fixed);
  EXPECT_EQ(KiB(480), p->states_pinned);
  EXPECT_EQ(kBuffersMin, p->state_buffers) << "little moves, so few buffers are needed";
}

// Each unit takes the room of its own types: 20480 elements of each pair, and of bytes.
TEST(PlacementTest, RoomIsThatOfTheUnitsTypes) {
  constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};
  ModelSpec spec;
  const auto add = [&spec](UnitTypes types, Keep keep) {
    const UnitIndex unit(static_cast<uint32_t>(spec.units.size()));
    spec.units.push_back({.name = "unit", .types = types});
    spec.tensors.push_back({.name = "x", .unit = unit, .elements = 20480, .keep = keep});
  };
  for (const FloatType param : kTypes) {
    for (const FloatType grad : kTypes) add({.param = param, .grad = grad}, Keep::kAll);
  }
  add({.param = ElementType::Bytes()}, Keep::kParam);
  const absl::StatusOr<ModelLayout> layout = ModelLayout::Make(spec, 2 * kCellElements);
  ASSERT_TRUE(layout.ok());
  const absl::StatusOr<Placement> p =
      MakePlacement(*layout, {KiB(200), MiB(1), GiB(1)}, {.resident_elements_max = 0});
  ASSERT_TRUE(p.ok()) << p.status();
  for (size_t u = 0; u < 9; ++u) EXPECT_EQ(p->slot_bytes[u], Bytes(20480 * (u < 3 ? 4 : 2)));
  EXPECT_EQ(p->slot_bytes[9], Bytes(20480));
  EXPECT_EQ(p->grads, Bytes(20480 * 3 * (4 + 2 + 2)));
  EXPECT_EQ(p->param_buffer_bytes, Bytes(8192 * 4));
  EXPECT_EQ(p->params_pinned + p->params_nvme, Bytes(20480 * (3 * 4 + 6 * 2 + 1)));
}

TEST(PlacementTest, AnErrorSaysWhatElseCouldBeChanged) {
  const ModelLayout layout = TwoUnits();
  EXPECT_THAT(std::string(Message(MakePlacement(layout, {KiB(100), MiB(4), Bytes(0)},
                                                {.lowest_param_tier = Tier::kHbm})
                                      .status())),
              testing::AllOf(HasSubstr("the hbm budget of 100 KiB (102400 bytes) can't work"),
                             HasSubstr("the smallest that would is 160 KiB (163840 bytes)"),
                             HasSubstr("offload_param")));
  EXPECT_THAT(std::string(Message(MakePlacement(layout, {MiB(1), KiB(10), Bytes(0)},
                                                {.lowest_state_tier = Tier::kPinned})
                                      .status())),
              HasSubstr("or let states and parameters go to NVMe"));
  // Parameters, gradients and states of 40960 elements, two buffers, and the sums.
  EXPECT_THAT(std::string(Message(MakePlacement(layout, {KiB(100), MiB(4), Bytes(0)},
                                                {.lowest_state_tier = Tier::kHbm})
                                      .status())),
              testing::AllOf(HasSubstr("states, gradients and parameters must all stay there"),
                             HasSubstr("the smallest that would is 868 KiB"),
                             HasSubstr("offload_optimizer")));
  EXPECT_THAT(
      std::string(Message(MakePlacement(layout, {MiB(1), KiB(700), Bytes(0)}, {}).status())),
      HasSubstr("or raise the pinned budget"));
}

constexpr Budgets kNotGiven = {Bytes(-1), Bytes(-1), Bytes(-1)};

RC_GTEST_PROP(DefaultBudgetsTest, LeaveTheHostSomething, ()) {
  const Input in = AnyInput();
  const Bytes available = MiB(*rc::gen::inRange<int64_t>(0, 100'000));
  const Budgets host = DefaultBudgets(kNotGiven, in.layout, in.options, available, std::nullopt);
  RC_ASSERT(host.hbm >= Bytes(0) && host.hbm <= available / 4);
  RC_ASSERT(host.pinned >= Bytes(0));
  RC_ASSERT(host.hbm + host.pinned <= std::max(host.hbm, available - MiB(256)));
  const Budgets gpu = DefaultBudgets(kNotGiven, in.layout, in.options, available, GiB(1));
  const bool all_in_hbm = in.options.lowest_state_tier == Tier::kHbm;
  RC_ASSERT(gpu.hbm <= (all_in_hbm ? GiB(1) : MiB(512)));
  RC_ASSERT(gpu.pinned <= std::max(Bytes(0), available - MiB(256)));
}

RC_GTEST_PROP(DefaultBudgetsTest, KeepWhatWasGiven, ()) {
  const Input in = AnyInput();
  const Budgets kept = DefaultBudgets(in.budgets, in.layout, in.options, GiB(1), std::nullopt);
  RC_ASSERT(kept.hbm == in.budgets.hbm && kept.pinned == in.budgets.pinned &&
            kept.nvme == in.budgets.nvme);
}

}  // namespace
}  // namespace sluice
