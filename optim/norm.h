// optim/norm.h
//
// The global norm of the gradients, exactly reproducible: one fp64 partial sum of squares per cell
// of the canonical grid (core/grid.h), in a fixed order of eight lanes whatever the vector width;
// the cells' sums are then added in canonical order (tensor by tensor, cell by cell). Squares of
// fp32, bf16 and fp16 values are exact in fp64. An Inf or NaN gradient makes its sum Inf or NaN:
// that is the overflow check.

#ifndef SLUICE_OPTIM_NORM_H_
#define SLUICE_OPTIM_NORM_H_

#include <cstddef>
#include <span>

#include "core/grid.h"

namespace sluice {

// Lane j of 8 adds the squares of elements j, j + 8, ...; the lanes are added as
// ((0+4)+(2+6))+((1+5)+(3+7)). n <= kCellElements. Pure, thread-safe.
double CellSquareSum(const void* values, FloatType type, size_t n);

// sqrt of the cells' sums added in order.
double NormOfCells(std::span<const double> cells);

// What a gradient is multiplied by at step(): 1 / loss_scale, and, if max_norm > 0 and the unscaled
// norm exceeds it, max_norm / (norm + 1e-6), as torch.nn.utils.clip_grad_norm_ has it. `norm` is of
// the gradients as stored (scaled).
struct ClipDecision {
  bool overflow;     // norm is Inf or NaN: the step must be skipped
  double norm;       // unscaled
  float grad_scale;  // 0 if overflow
};
ClipDecision DecideClip(double scaled_norm, double loss_scale, double max_norm);

}  // namespace sluice

#endif  // SLUICE_OPTIM_NORM_H_
