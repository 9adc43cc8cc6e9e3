#include "offload/plan/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/sim_memory.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "offload/plan/param_pieces.h"
#include "offload/run/tier_memory.h"
#include "tests/offload/random_placement.h"
#include "tests/offload/smallest_budget.h"

namespace sluice {
namespace {

using testing::HasSubstr;

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
  const int chunks = std::max(in.options.param_buffers, ResidentUpdates(in.options.workers));
  RC_ASSERT(p->param_buffers <= chunks + 2);
  for (size_t u = 0; u < p->param_home.size(); ++u) {
    RC_ASSERT(p->param_home[u] <= in.options.lowest_param_tier);
    if (all_in_hbm) RC_ASSERT(p->param_home[u] == Tier::kHbm);
    const UnitLayout& unit = in.layout.units()[u];
    if (unit.stays_in_hbm || unit.elements <= in.options.resident_elements_max)
      RC_ASSERT(p->param_home[u] == Tier::kHbm);
    if (p->param_home[u] != Tier::kHbm) RC_ASSERT(p->slot_bytes[u] <= p->hbm_cache);
  }
  const bool may_be_in_hbm = all_in_hbm || in.options.highest_state_tier == Tier::kHbm;
  for (const Tier tier : p->state_home) {
    RC_ASSERT(may_be_in_hbm || tier != Tier::kHbm);
    RC_ASSERT(!all_in_hbm || tier == Tier::kHbm);
    RC_ASSERT(tier <= in.options.lowest_state_tier);
  }
  const bool may_spill = in.options.lowest_state_tier == Tier::kNvme;
  for (size_t c = 0; c < p->grad_home.size(); ++c) {
    const bool updated = in.layout.chunks()[c].keep != Keep::kParam;
    if (updated) RC_ASSERT((p->grad_home[c] == Tier::kHbm) == (p->state_home[c] == Tier::kHbm));
    if (p->grad_home[c] == Tier::kNvme)
      RC_ASSERT(may_spill && in.layout.chunks()[c].grad_bytes() > Bytes(0));
  }
  RC_ASSERT(p->grad_buffers <= in.options.grad_buffers);
  const bool spills = p->grads_nvme > Bytes(0);
  RC_ASSERT((p->grad_buffers >= kBuffersMin) == spills);
}

// Buffers for parameters: where room is for two, each holds what a copy is to be, or one chunk.
RC_GTEST_PROP(PlacementTest, ABufferForParametersHoldsAChunkOrALargeCopy, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  Bytes chunk;
  for (const ChunkLayout& c : in.layout.chunks())
    chunk = std::max(chunk, RoundUp(c.param_bytes(), in.options.io_alignment));
  RC_ASSERT(p->param_buffer_bytes >= chunk);
  RC_ASSERT(p->param_buffer_bytes <= in.options.copy_bytes + chunk);
  if (in.options.hbm_in_place || in.options.lowest_state_tier == Tier::kHbm)
    RC_ASSERT(p->param_buffer_bytes == chunk);
  if (p->param_buffer_bytes == chunk) return;
  for (size_t u = 0; u < in.layout.units().size(); ++u) {
    if (p->param_home[u] == Tier::kPinned || in.layout.units()[u].lent) continue;
    Bytes unit;  // what of it crosses the link
    for (uint32_t c = 0; c < in.layout.chunks().size(); ++c) {
      const ChunkLayout& chunk = in.layout.chunks()[c];
      const bool crosses = p->param_home[u] == Tier::kNvme || p->CopiesUpdate(in.layout, c);
      if (chunk.unit.value() == u && crosses) unit += chunk.param_bytes();
    }
    RC_ASSERT(p->param_buffer_bytes >= std::min(unit, in.options.copy_bytes));
  }
}

// Every chunk whose parameters pass through a buffer is in one piece, beside its neighbours, and no
// piece could hold the next chunk too.
RC_GTEST_PROP(ParamPiecesTest, NeighboursShareABufferAsFarAsTheyFit, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  const ParamPieces pieces(in.layout, *p);
  uint32_t longest = 0;
  for (uint32_t c = 0; c < in.layout.chunks().size(); ++c) {
    const ChunkLayout& chunk = in.layout.chunks()[c];
    const bool on_nvme = p->param_home[chunk.unit.value()] == Tier::kNvme;
    const auto number = pieces.PieceOf(ChunkIndex(c));
    RC_ASSERT(number.has_value() == (on_nvme || p->CopiesUpdate(in.layout, c)));
    if (!number) continue;
    const ParamPieces::Piece& piece = pieces.pieces()[*number];
    RC_ASSERT(piece.first <= c && c < piece.first + piece.count);
    longest = std::max(longest, piece.count);
    const ChunkLayout& first = in.layout.chunks()[piece.first];
    RC_ASSERT(first.unit == chunk.unit);
    const Bytes at = pieces.OffsetOf(ChunkIndex(c));
    if (on_nvme) {
      RC_ASSERT(at.value() % in.options.io_alignment.value() == 0);
    } else {
      RC_ASSERT(at == Bytes((chunk.offset - first.offset) * chunk.types.param.size()));
    }
    const auto room = [&](const ChunkLayout& of) {
      return on_nvme ? RoundUp(of.param_bytes(), in.options.io_alignment) : of.param_bytes();
    };
    const Bytes end = at + room(chunk);
    RC_ASSERT(end <= p->param_buffer_bytes);
    const UnitLayout& unit = in.layout.unit(chunk.unit);
    if (c + 1 == unit.first_chunk + unit.chunk_count) continue;
    const ChunkLayout& next = in.layout.chunks()[c + 1];
    const bool fits =
        end + room(next) <= p->param_buffer_bytes && (on_nvme || p->CopiesUpdate(in.layout, c + 1));
    RC_ASSERT(fits == (pieces.PieceOf(ChunkIndex(c + 1)) == number));
    if (fits) RC_ASSERT(pieces.OffsetOf(ChunkIndex(c + 1)) == end);
  }
  RC_ASSERT(pieces.longest() == longest);
}

// With room for all, updates of parameters in HBM don't wait for two buffers, whatever the workers.
TEST(PlacementTest, WhereAllFitsAndCopiesCrossALinkBuffersAreForTheChunksOnTheirWay) {
  constexpr int64_t kElements = int64_t{16} << 20;
  for (const int64_t cells : {1, 12, 128, 1024}) {
    const ModelLayout layout = *ModelLayout::Make(
        {.units = {{"a"}}, .tensors = {{"x", UnitIndex(0), kElements, 0}}}, cells * kCellElements,
        {.param = FloatType::kBf16, .grad = FloatType::kBf16});
    const Bytes chunk(2 * cells * kCellElements);
    const Bytes least = Bytes(14 * kElements) + 2 * (Bytes(12 * cells * kCellElements) + chunk);
    for (const int workers : {1, 2, 16, 64}) {
      PlacementOptions options{.lowest_state_tier = Tier::kPinned, .workers = workers};
      for (const Bytes spare : {Bytes(0), MiB(1), GiB(4)}) {
        const auto p = MakePlacement(layout, {MiB(64), least + spare, Bytes(0)}, options);
        ASSERT_TRUE(p.ok()) << p.status();
        EXPECT_EQ(p->least_pinned.total(), least);
        if (spare == Bytes(0)) {
          EXPECT_EQ(p->pinned(), least);
        }
        if (spare < GiB(4)) continue;
        EXPECT_EQ(p->param_buffer_bytes, MiB(1) + chunk);
        EXPECT_GE(p->param_buffer_bytes * (p->param_buffers - 1), chunk * ResidentUpdates(workers));
      }
      options.hbm_in_place = true;
      const auto p = MakePlacement(layout, {MiB(64), least + GiB(1), Bytes(0)}, options);
      ASSERT_TRUE(p.ok()) << p.status();
      EXPECT_EQ(p->pinned(), least) << "nothing passes through";
    }
  }
}

RC_GTEST_PROP(PlacementTest, WhatFitsStaysAndWhatIsNeededFirst, ()) {
  const Input in = AnyInput();
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok()) return;
  const Bytes left = in.budgets.pinned - p->pinned();
  bool below = false;
  for (size_t c = 0; c < p->grad_home.size(); ++c) {
    const Bytes grads = in.layout.chunks()[c].grad_bytes();
    if (grads == Bytes(0) || p->grad_home[c] == Tier::kHbm) continue;  // frozen, or before these
    RC_ASSERT(!below || p->grad_home[c] == Tier::kNvme);
    if (!below && p->grad_home[c] == Tier::kNvme) {
      // Not even beside what did not have to stay: they come before parameters and states.
      const Bytes others =
          (in.options.lowest_param_tier == Tier::kNvme ? p->params_pinned : Bytes(0)) +
          p->states_pinned;
      RC_ASSERT(RoundUp(grads, kSlotAlignment) > left + others);
    }
    below = p->grad_home[c] == Tier::kNvme;
  }
  below = false;
  for (size_t c = 0; c < p->state_home.size(); ++c) {
    if (in.layout.chunks()[c].keep == Keep::kParam) continue;  // has none
    if (p->state_home[c] == Tier::kHbm) continue;
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

// Beside all parameters, a beginning of the states, with their gradients: no chunk more would fit.
RC_GTEST_PROP(PlacementTest, WhatHbmHoldsBesideParametersIsABeginningOfTheStates, ()) {
  Input in = AnyInput();
  in.options.highest_state_tier = Tier::kHbm;
  const absl::StatusOr<Placement> p = MakePlacement(in.layout, in.budgets, in.options);
  if (!p.ok() || in.options.lowest_state_tier == Tier::kHbm) return;
  const auto in_hbm = [](Tier home) { return home == Tier::kHbm; };
  const bool whole = std::ranges::all_of(p->param_home, in_hbm);
  std::optional<size_t> first_below;
  for (size_t c = 0; c < p->state_home.size(); ++c) {
    if (in.layout.chunks()[c].keep == Keep::kParam) continue;
    const bool here = in_hbm(p->state_home[c]);
    RC_ASSERT(!here || (whole && !first_below));
    if (!here && !first_below) first_below = c;
  }
  if (!whole || !first_below) return;
  Placement more = *p;
  more.state_home[*first_below] = more.grad_home[*first_below] = Tier::kHbm;
  SumUp(in.layout, &more);
  RC_ASSERT(more.hbm() > in.budgets.hbm);
}

// A larger budget of HBM never needs more of the other tiers.
RC_GTEST_PROP(PlacementTest, MoreHbmNeverNeedsMorePinnedMemory, ()) {
  Input in = AnyInput();
  in.budgets.pinned = Bytes(0);
  const auto smallest = [&in](Bytes hbm) -> std::optional<Bytes> {
    in.budgets.hbm = hbm;
    const absl::Status status = MakePlacement(in.layout, in.budgets, in.options).status();
    return TierNamed(status) == "pinned" ? SmallestNamed(status) : std::nullopt;
  };
  const Bytes less = in.budgets.hbm;
  const auto with_less = smallest(less);
  const auto with_more = smallest(less + Bytes(*rc::gen::inRange<int64_t>(0, 2'000'000)));
  if (with_less && with_more) RC_ASSERT(*with_more <= *with_less);
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
  EXPECT_EQ(p->grads_pinned + p->grads_nvme, Bytes(20480 * 3 * (4 + 2 + 2)));
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

}  // namespace
}  // namespace sluice
