#include "nvme/rate_model.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace sluice {

namespace {

// Of log(rate): how far it varies along one axis, whatever the others are, and beside that from one
// neighbourhood to another; and over how many steps it stays alike.
constexpr double kAlongAxis = 0.2;
constexpr double kTogether = 0.1;
constexpr double kSteps = 2.0;
constexpr double kEnginesAlike = 0.7;  // what holds of one holds of the others, so far

}  // namespace

RateModel::RateModel(std::vector<RatePlace> points, const RatePlace& sizes)
    : points_(std::move(points)), mean_(points_.size()) {
  for (size_t axis = 0; axis < kRateAxes; ++axis) {
    for (size_t d = 0; d < sizes[axis]; ++d) {
      const double steps = static_cast<double>(d) / kSteps;
      near_[axis].push_back(axis > 0 ? std::exp(-steps * steps / 2) : d == 0 ? 1 : kEnginesAlike);
    }
  }
}

double RateModel::Alike(size_t a, size_t b) const {
  double sum = 0;
  double pairs = 0;
  for (size_t axis = 0; axis < kRateAxes; ++axis) {
    const size_t p = points_[a][axis];
    const size_t q = points_[b][axis];
    const double near = near_[axis][p > q ? p - q : q - p];
    pairs += near * sum;
    sum += near;
  }
  return kAlongAxis * kAlongAxis * sum + kTogether * kTogether * pairs;
}

void RateModel::Compare(size_t a, size_t b, double log_ratio, double deviation) {
  // A row more of the Cholesky factor of the comparisons' covariance, and of what they say.
  std::vector<double> row(points_.size());
  for (size_t i = 0; i < row.size(); ++i) row[i] = Alike(i, a) - Alike(i, b);
  double variance = row[a] - row[b] + deviation * deviation;
  for (const std::vector<double>& before : says_) {
    const double known = before[a] - before[b];
    variance -= known * known;
    for (size_t i = 0; i < row.size(); ++i) row[i] -= known * before[i];
  }
  const double root = std::sqrt(std::max(variance, deviation * deviation));
  const double news = (log_ratio - (mean_[a] - mean_[b])) / root;
  for (size_t i = 0; i < row.size(); ++i) {
    row[i] /= root;
    mean_[i] += news * row[i];
  }
  says_.push_back(std::move(row));
}

double RateModel::Unsure(size_t a, size_t b) const {
  double variance = Alike(a, a) + Alike(b, b) - 2 * Alike(a, b);
  for (const std::vector<double>& row : says_) {
    const double known = row[a] - row[b];
    variance -= known * known;
  }
  return std::sqrt(std::max(variance, 0.0));
}

double RateModel::ExpectedGain(size_t a, size_t b) const {
  const double gain = mean_[a] - mean_[b];
  const double unsure = Unsure(a, b);
  if (unsure < 1e-9) return std::max(gain, 0.0);
  const double z = gain / unsure;
  const double below = std::erfc(-z / std::numbers::sqrt2) / 2;
  const double at = std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
  return gain * below + unsure * at;
}

}  // namespace sluice
