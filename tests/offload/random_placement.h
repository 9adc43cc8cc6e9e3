// tests/offload/random_placement.h
//
// RapidCheck's source of what a placement is made of.

#ifndef SLUICE_TESTS_OFFLOAD_RANDOM_PLACEMENT_H_
#define SLUICE_TESTS_OFFLOAD_RANDOM_PLACEMENT_H_

#include <rapidcheck.h>

#include <utility>

#include "core/status.h"
#include "offload/plan/placement.h"
#include "tests/offload/random_model.h"

namespace sluice {

// A model, budgets from nothing to more than enough, and options.
struct Input {
  ModelLayout layout;
  Budgets budgets;
  PlacementOptions options;
};

inline Input AnyInput() {
  Input input;
  absl::StatusOr<ModelLayout> layout =
      ModelLayout::Make(AnyModel(), AnyChunkElements(), AnyFloatTypes());
  SLUICE_CHECK(layout.ok());
  input.layout = *std::move(layout);
  const auto tier = rc::gen::element(Tier::kHbm, Tier::kPinned, Tier::kNvme, Tier::kNvme);
  input.options = {.lowest_param_tier = *tier,
                   .lowest_state_tier = *tier,
                   .highest_state_tier = *rc::gen::element(Tier::kHbm, Tier::kPinned),
                   .resident_elements_max = *rc::gen::element<int64_t>(0, 100, 5000),
                   .state_buffers = *rc::gen::inRange(2, 12),
                   .param_buffers = *rc::gen::inRange(2, 12),
                   .grad_buffers = *rc::gen::inRange(2, 12),
                   .hbm_in_place = *rc::gen::arbitrary<bool>(),
                   .copy_bytes = KiB(*rc::gen::element(4, 16, 64, 1024)),
                   .workers = *rc::gen::inRange(1, 9)};
  const int64_t n = input.layout.parameter_count() + 4096 * 20;
  const auto budget = [](int64_t most) {
    return Bytes(*rc::gen::oneOf(rc::gen::inRange<int64_t>(0, most), rc::gen::just(most)));
  };
  input.budgets = {budget(*rc::gen::element<int64_t>(5, 25) * n), budget(30 * n), budget(20 * n)};
  return input;
}

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_RANDOM_PLACEMENT_H_
