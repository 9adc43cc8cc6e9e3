// That what offload/plan/zero_need.h says of the exchange among ranks is what their memory has.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "core/sim_memory.h"
#include "core/sim_world.h"
#include "offload/plan/zero_need.h"
#include "offload/run/tier_memory.h"
#include "tests/offload/zero_model.h"

namespace sluice {
namespace {

using testing::Model;
using testing::Needs;

void ExpectWithin5Percent(Bytes expected, Bytes found) {
  EXPECT_NEAR(static_cast<double>(expected.value()), static_cast<double>(found.value()),
              0.05 * static_cast<double>(expected.value()));
}

// That the memory of a rank which keeps things so has the need's room for the exchange, and in HBM
// nothing else but what is kept and what a GPU's buffers take.
void ExpectCarved(const ZeroModel& model, const ZeroNeed& need, int64_t rank) {
  ModelSpec spec;
  for (size_t u = 0; u < model.units.size(); ++u) {
    spec.units.push_back({.name = "unit"});
    spec.tensors.push_back({.name = "tensor",
                            .unit = UnitIndex(static_cast<uint32_t>(u)),
                            .elements = model.units[u]});
  }
  const auto [stage, states, params] = need.way;
  const Sharding sharding{.rank = Rank(static_cast<uint32_t>(rank)),
                          .ranks = static_cast<uint32_t>(model.gpus),
                          .states = stage >= 1,
                          .params = stage == 3};
  const auto layout =
      ModelLayout::Make(spec, 12 * kCellElements, model.types, model.format, sharding);
  ASSERT_TRUE(layout.ok()) << layout.status();
  // What leaves HBM takes states with it as far as RAM.
  const bool all_in_hbm = states == Tier::kHbm && params == Tier::kHbm;
  const auto placement =
      MakePlacement(*layout, {kNoLimit, kNoLimit, kNoLimit},
                    {.lowest_param_tier = params,
                     .lowest_state_tier = all_in_hbm ? Tier::kHbm : std::max(states, Tier::kPinned),
                     .highest_state_tier = all_in_hbm ? Tier::kHbm : Tier::kPinned,
                     .resident_elements_max = 0,
                     .hbm_in_place = model.exchange_tier == Tier::kPinned});
  ASSERT_TRUE(placement.ok()) << placement.status();
  SimMemory host;
  SimWorld world(1);
  const auto device = MakeSimDevice({}, &world, &host);
  const auto memory = TierMemory::Make(*layout, *placement, device.get(), &host);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto of = [](const BufferPool& pool) {
    return pool.buffer_size() * static_cast<int64_t>(pool.count());
  };
  const Bytes carved = of(memory->staging_buffers) + of(memory->received_buffers) +
                       Bytes(static_cast<int64_t>(memory->served_shard.size()));
  ExpectWithin5Percent(need.exchange.sum(), carved);
  // Of stage 1 the need is what is published: gradients whole. And nothing makes one rank's
  // parameters leave.
  if (stage == 1 || (states == Tier::kHbm && !all_in_hbm)) return;
  if (model.gpus == 1 && params != Tier::kHbm) return;
  const Bytes other = placement->hbm_cache + placement->sums_hbm + of(memory->add_buffers);
  ExpectWithin5Percent(need.gpu_kept.sum() + need.gpu_exchange(), memory->hbm.carved() - other);
}

// The pools that a rank's memory is carved into, and all that it keeps in HBM.
TEST(ZeroNeedTest, TheExchangeIsWhatIsCarved) {
  const std::vector<int64_t> units = {300'000, 500'000, 300'000, 290'000, 300'000, 1000};
  const std::pair<FloatType, FloatType> types[] = {{FloatType::kBf16, FloatType::kBf16},
                                                   {FloatType::kF32, FloatType::kF32}};
  for (int64_t ranks = 1; ranks <= 4; ++ranks) {
    for (const auto& [param, grad] : types) {
      for (const bool in_place : {false, true}) {
        ZeroModel model = Model(units, ranks, ranks, {param, grad});
        model.exchange_tier = in_place ? Tier::kPinned : Tier::kHbm;
        const auto needs = Needs(model);
        for (const ZeroNeed& need : needs) {
          for (const int64_t rank : std::set<int64_t>{0, ranks - 1}) {
            SCOPED_TRACE(::testing::Message()
                         << ranks << " ranks, rank " << rank << ", " << need.gpu_kept.formula()
                         << ", in place " << in_place);
            ExpectCarved(model, need, rank);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice
