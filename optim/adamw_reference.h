// optim/adamw_reference.h
//
// What adamw.h promises, one element at a time and never vectorised; for tests only, the library
// does not contain it. Computed in fp64, twice: without rounding in between, to say how exact the
// kernel is, and with each operation's result rounded to fp32, to say what its bits are. (fp64 has
// more than twice the digits of fp32 and two, so that rounding twice is rounding once.)

#ifndef SLUICE_OPTIM_ADAMW_REFERENCE_H_
#define SLUICE_OPTIM_ADAMW_REFERENCE_H_

#include <cstdint>

#include "optim/adamw.h"

namespace sluice {

template <typename T>
struct AdamWElement {
  T master;
  T exp_avg;
  T exp_avg_sq;
};

// The formula in fp64.
AdamWElement<double> AdamWExact(const AdamWHyper& hyper, int64_t step, double grad_scale,
                                double grad, AdamWElement<double> state);

// What becomes of subnormal inputs and results of an operation.
enum class Subnormals : uint8_t { kGradual, kFlushed };

// The bits that the kernel must give, but for which NaN. To be called with FTZ and DAZ off.
AdamWElement<float> AdamWRounded(const AdamWCoefficients& coefficients, Subnormals subnormals,
                                 float grad, AdamWElement<float> state);

}  // namespace sluice

#endif  // SLUICE_OPTIM_ADAMW_REFERENCE_H_
