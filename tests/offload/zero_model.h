// tests/offload/zero_model.h
//
// Models whose needs by ZeRO stage are asked for.

#ifndef SLUICE_TESTS_OFFLOAD_ZERO_MODEL_H_
#define SLUICE_TESTS_OFFLOAD_ZERO_MODEL_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "core/status.h"
#include "offload/plan/zero_need.h"
#include "optim/adamw_rule.h"

namespace sluice::testing {

inline std::vector<int64_t> EqualUnits(int64_t parameters, int64_t count) {
  std::vector<int64_t> units(static_cast<size_t>(count), parameters / count);
  units.back() += parameters % count;
  return units;
}

inline ZeroModel Model(std::vector<int64_t> units, int64_t gpus, int64_t per_host,
                       UnitTypes types = {FloatType::kBf16, FloatType::kBf16}) {
  return {.units = std::move(units),
          .types = types,
          .format = MakeFp32States(MakeAdamW()->fields()),
          .gpus = gpus,
          .gpus_per_host = per_host,
          .chunk_elements = [](int64_t parameters, Tier /*states*/) {
            return std::max(12 * kCellElements,
                            (parameters / (1 << 14) / kCellElements + 1) * kCellElements);
          }};
}

inline std::vector<ZeroNeed> Needs(const ZeroModel& model, int64_t rank = 0) {
  absl::StatusOr<std::vector<ZeroNeed>> needs = ZeroNeedsOf(model, rank);
  SLUICE_CHECK_MSG(needs.ok(), Message(needs.status()));
  return *std::move(needs);
}

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_ZERO_MODEL_H_
