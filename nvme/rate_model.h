// nvme/rate_model.h
//
// What is known of the rates at all points of a grid after some of them were compared: a Gaussian
// process over the logarithm of the rate. Near points are likely to be alike, along each axis by
// itself and in all of them together, and a comparison of two points says something of every other.
// So noise averages out over a neighbourhood, and no point needs to be measured often. A comparison
// is of two points measured one after the other: how fast the drive is at that moment drops out.
// Pure.
//
// Threads: one. Allocates with each comparison: 8 bytes a point.

#ifndef SLUICE_NVME_RATE_MODEL_H_
#define SLUICE_NVME_RATE_MODEL_H_

#include <array>
#include <cstddef>
#include <vector>

namespace sluice {

inline constexpr size_t kRateAxes = 5;
// A point of the grid by its place on each axis. On the first one, places have no order: none is
// nearer than another.
using RatePlace = std::array<size_t, kRateAxes>;

class RateModel {
 public:
  // `sizes`: places on each axis, all below these.
  RateModel(std::vector<RatePlace> points, const RatePlace& sizes);

  // The rate at `a` was exp(log_ratio) times that at `b`, give or take `deviation`.
  void Compare(size_t a, size_t b, double log_ratio, double deviation);

  size_t size() const { return points_.size(); }
  const RatePlace& point(size_t i) const { return points_[i]; }
  // The logarithm of the rate, beside that of an average point.
  double mean(size_t i) const { return mean_[i]; }
  // How unsure mean(a) - mean(b) is: a standard deviation.
  double Unsure(size_t a, size_t b) const;
  // By how much `a` is expected to be better than `b` if it is better at all, and else 0.
  double ExpectedGain(size_t a, size_t b) const;

 private:
  double Alike(size_t a, size_t b) const;  // covariance before anything was compared

  const std::vector<RatePlace> points_;
  std::array<std::vector<double>, kRateAxes> near_;  // by axis, by distance
  std::vector<double> mean_;                         // by point
  // One for each comparison: what it says of each point, whitened (a row of L^-1 K).
  std::vector<std::vector<double>> says_;
};

}  // namespace sluice

#endif  // SLUICE_NVME_RATE_MODEL_H_
