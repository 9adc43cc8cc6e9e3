#include "optim/norm.h"

#include <cmath>

#include "core/status.h"
#include "optim/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/norm.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Adds squares of elements j, j + 8, ... to lanes[j]; n is a multiple of 8. A vector holds 8, 4, 2
// or 1 of the lanes.
void AddSquares(const float* values, size_t n, double* lanes) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t step = hn::Lanes(d);
  for (size_t lane = 0; lane < 8; lane += step) {
    auto sum = hn::LoadU(d, lanes + lane);
    for (size_t i = lane; i < n; i += 8) {
      const auto v = hn::PromoteTo(d, hn::LoadU(df, values + i));
      sum = hn::Add(sum, hn::Mul(v, v));
    }
    hn::StoreU(sum, d, lanes + lane);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(AddSquares);

double CellSquareSum(const void* values, FloatType type, size_t n) {
  SLUICE_CHECK(n <= static_cast<size_t>(kCellElements));
  alignas(64) float converted[kCellElements];
  const auto* floats = static_cast<const float*>(values);
  if (type != FloatType::kF32) {
    Convert(values, type, converted, FloatType::kF32, n);
    floats = converted;
  }
  double lanes[8] = {};
  const size_t whole = n / 8 * 8;
  HWY_DYNAMIC_DISPATCH(AddSquares)(floats, whole, lanes);
  for (size_t i = whole; i < n; ++i) {
    const auto v = static_cast<double>(floats[i]);
    lanes[i - whole] += v * v;
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

double NormOfCells(std::span<const double> cells) {
  double sum = 0;
  for (double cell : cells) sum += cell;
  return std::sqrt(sum);
}

ClipDecision DecideClip(double scaled_norm, double loss_scale, double max_norm) {
  const double norm = scaled_norm / loss_scale;
  if (!std::isfinite(norm)) return {.overflow = true, .norm = norm, .grad_scale = 0};
  double scale = 1.0 / loss_scale;
  if (max_norm > 0) scale *= std::min(1.0, max_norm / (norm + 1e-6));
  return {.overflow = false, .norm = norm, .grad_scale = static_cast<float>(scale)};
}

}  // namespace sluice
#endif  // HWY_ONCE
