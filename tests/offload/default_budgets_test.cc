#include "offload/plan/default_budgets.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <optional>

#include "tests/offload/random_placement.h"

namespace sluice {
namespace {

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
