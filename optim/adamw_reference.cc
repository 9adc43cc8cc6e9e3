#include "optim/adamw_reference.h"

#include <cmath>
#include <limits>

namespace sluice {
namespace {

// fp32 arithmetic on values held in fp64.
class Fp32 {
 public:
  explicit Fp32(Subnormals subnormals) : flush_(subnormals == Subnormals::kFlushed) {}

  double Add(double a, double b) const { return Round(In(a) + In(b)); }
  double Sub(double a, double b) const { return Round(In(a) - In(b)); }
  double Mul(double a, double b) const { return Round(In(a) * In(b)); }
  double Div(double a, double b) const { return Round(In(a) / In(b)); }
  double Sqrt(double a) const { return Round(std::sqrt(In(a))); }

 private:
  static constexpr double kSmallestNormal = std::numeric_limits<float>::min();

  double In(double x) const {
    return flush_ && std::abs(x) < kSmallestNormal ? std::copysign(0.0, x) : x;
  }

  // Whether a result is subnormal is asked of the value rounded as if exponents had no bound.
  double Round(double x) const {
    if (flush_ && std::abs(x) < 2 * kSmallestNormal) {
      x = std::ldexp(static_cast<float>(std::ldexp(x, 64)), -64);
    }
    return In(static_cast<float>(In(x)));
  }

  bool flush_;
};

}  // namespace

AdamWElement<double> AdamWExact(const AdamWHyper& hyper, int64_t step, double grad_scale,
                                double grad, AdamWElement<double> state) {
  const auto t = static_cast<double>(step);
  const double correction1 = hyper.bias_correction ? 1 - std::pow(hyper.beta1, t) : 1;
  const double correction2 = hyper.bias_correction ? 1 - std::pow(hyper.beta2, t) : 1;
  auto [p, m, v] = state;
  double g = grad * grad_scale;
  if (hyper.decay_mode == WeightDecayMode::kL2) {
    g += hyper.weight_decay * p;
  } else {
    p *= 1 - hyper.lr * hyper.weight_decay;
  }
  m = hyper.beta1 * m + (1 - hyper.beta1) * g;
  v = hyper.beta2 * v + (1 - hyper.beta2) * g * g;
  p -= hyper.lr * (m / correction1) / (std::sqrt(v / correction2) + hyper.eps);
  return {p, m, v};
}

AdamWElement<float> AdamWRounded(const AdamWCoefficients& c, Subnormals subnormals, float grad,
                                 AdamWElement<float> state) {
  const Fp32 fp(subnormals);
  double p = state.master;
  double m = state.exp_avg;
  double v = state.exp_avg_sq;
  double g = fp.Mul(grad, c.grad_scale);
  if (c.decay_mode == WeightDecayMode::kL2) {
    g = fp.Add(g, fp.Mul(c.decay, p));
  } else {
    p = fp.Mul(p, c.decay);
  }
  m = fp.Add(m, fp.Mul(c.one_minus_beta1, fp.Sub(g, m)));
  v = fp.Add(fp.Mul(c.beta2, v), fp.Mul(c.one_minus_beta2, fp.Mul(g, g)));
  const double d = fp.Add(fp.Div(fp.Sqrt(v), c.bias_correction2_sqrt), c.eps);
  p = fp.Sub(p, fp.Mul(c.step_size, fp.Div(m, d)));
  return {static_cast<float>(p), static_cast<float>(m), static_cast<float>(v)};
}

}  // namespace sluice
