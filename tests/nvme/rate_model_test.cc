// The oracle is the textbook's formula, solved by elimination with all comparisons at once.

#include "nvme/rate_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "tests/core/seeds.h"

namespace sluice {
namespace {

std::vector<RatePlace> AllPlaces(const RatePlace& sizes) {
  std::vector<RatePlace> places = {RatePlace{}};
  for (size_t axis = 0; axis < kRateAxes; ++axis) {
    std::vector<RatePlace> more;
    for (RatePlace place : places)
      for (place[axis] = 0; place[axis] < sizes[axis]; ++place[axis]) more.push_back(place);
    places = more;
  }
  return places;
}

// x of A x = b.
std::vector<double> Solve(std::vector<std::vector<double>> a, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t k = 0; k < n; ++k) {
    for (size_t i = k + 1; i < n; ++i) {
      const double factor = a[i][k] / a[k][k];
      for (size_t j = k; j < n; ++j) a[i][j] -= factor * a[k][j];
      b[i] -= factor * b[k];
    }
  }
  for (size_t k = n; k-- > 0;) {
    for (size_t j = k + 1; j < n; ++j) b[k] -= a[k][j] * b[j];
    b[k] /= a[k][k];
  }
  return b;
}

struct Comparison {
  size_t a, b;
  double ratio, deviation;
};

TEST(RateModelTest, IsTheSolutionOfAllComparisonsAtOnce) {
  const RatePlace sizes = {2, 3, 2, 2, 2};
  const std::vector<RatePlace> places = AllPlaces(sizes);
  for (const uint64_t seed : Seeds(20)) {
    std::mt19937_64 random(seed);
    const RateModel prior(places, sizes);
    // Covariances of differences, from what the model says before anything was compared.
    const auto differ = [&prior](size_t a, size_t b) { return std::pow(prior.Unsure(a, b), 2); };
    const auto alike = [&](size_t a, size_t b, size_t c, size_t d) {  // of a - b and c - d
      return (differ(a, d) + differ(b, c) - differ(a, c) - differ(b, d)) / 2;
    };
    RateModel model(places, sizes);
    std::vector<Comparison> all;
    for (size_t n = 0; n < 8; ++n) {
      Comparison c{.a = random() % places.size(),
                   .b = 0,
                   .ratio = std::uniform_real_distribution<double>(-1, 1)(random),
                   .deviation = std::uniform_real_distribution<double>(0.01, 0.2)(random)};
      c.b = (c.a + 1 + random() % (places.size() - 1)) % places.size();
      all.push_back(c);
      model.Compare(c.a, c.b, c.ratio, c.deviation);
    }
    std::vector<std::vector<double>> covariance(all.size(), std::vector<double>(all.size()));
    std::vector<double> ratios;
    for (size_t i = 0; i < all.size(); ++i) {
      for (size_t j = 0; j < all.size(); ++j)
        covariance[i][j] = alike(all[i].a, all[i].b, all[j].a, all[j].b);
      covariance[i][i] += all[i].deviation * all[i].deviation;
      ratios.push_back(all[i].ratio);
    }
    const std::vector<double> weights = Solve(covariance, ratios);
    for (size_t p = 1; p < places.size(); ++p) {
      double mean = 0;
      std::vector<double> to_p;
      for (size_t i = 0; i < all.size(); ++i) {
        to_p.push_back(alike(p, 0, all[i].a, all[i].b));
        mean += weights[i] * to_p[i];
      }
      double variance = differ(p, 0);
      const std::vector<double> known = Solve(covariance, to_p);
      for (size_t i = 0; i < all.size(); ++i) variance -= known[i] * to_p[i];
      EXPECT_NEAR(model.mean(p) - model.mean(0), mean, 1e-9);
      EXPECT_NEAR(model.Unsure(p, 0), std::sqrt(variance), 1e-6);
    }
  }
}

TEST(RateModelTest, ExpectedGainIsThatOfManyDraws) {
  const RatePlace sizes = {3, 4, 1, 1, 1};
  RateModel model(AllPlaces(sizes), sizes);
  model.Compare(1, 0, 0.1, 0.05);
  std::mt19937_64 random(1);
  for (const auto& [a, b] : {std::pair<size_t, size_t>{1, 0}, {0, 1}, {5, 0}, {11, 1}}) {
    std::normal_distribution<double> draw(model.mean(a) - model.mean(b), model.Unsure(a, b));
    double sum = 0;
    constexpr int kDraws = 200'000;
    for (int i = 0; i < kDraws; ++i) sum += std::max(draw(random), 0.0);
    EXPECT_NEAR(model.ExpectedGain(a, b), sum / kDraws, 0.003);
  }
  EXPECT_EQ(model.ExpectedGain(2, 2), 0);
}

}  // namespace
}  // namespace sluice
