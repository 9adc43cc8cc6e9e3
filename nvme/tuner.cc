#include "nvme/tuner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <utility>

#include "core/status.h"
#include "nvme/rate_model.h"

namespace sluice {

namespace {

size_t IndexOf(const auto& values, const auto& value) {
  return static_cast<size_t>(std::ranges::find(values, value) - values.begin());
}

RatePlace PlaceOf(const TuneGrid& grid, const TunePoint& p) {
  return {IndexOf(grid.engines, p.engine), IndexOf(grid.requests, p.request),
          IndexOf(grid.in_flight, p.in_flight), IndexOf(grid.batches, p.batch),
          IndexOf(grid.runs, p.run)};
}

std::vector<RatePlace> PlacesOf(const TuneGrid& grid, const std::vector<TunePoint>& points) {
  std::vector<RatePlace> places;
  places.reserve(points.size());
  for (const TunePoint& point : points) places.push_back(PlaceOf(grid, point));
  return places;
}

class Search {
 public:
  Search(const TuneGrid& grid, const TuneOptions& options, const MeasurePoint& measure)
      : options_(options),
        measure_(measure),
        points_(grid.Points()),
        model_(PlacesOf(grid, points_),
               {grid.engines.size(), grid.requests.size(), grid.in_flight.size(),
                grid.batches.size(), grid.runs.size()}),
        tries_(points_.size()) {}

  absl::StatusOr<Tuning> Run() {
    best_ = IndexOf(points_, options_.start);
    if (best_ == points_.size()) return absl::InvalidArgumentError("the start is not in the grid");
    tries_[best_] = 1;
    order_.push_back(best_);
    LearnNoise();
    TryNeighbours();
    Explore();
    while (GoesOn() && TryNeighbours()) Explore();
    SaveBytesInFlight();
    if (!status_.ok()) return status_;
    return Result();
  }

 private:
  static constexpr uint32_t kIdleMax = 5;  // comparisons in a row that promised nothing

  // So many measurements are kept for SaveBytesInFlight.
  uint32_t kept() const { return saving_ ? 0 : options_.measurements_max / 6; }
  bool GoesOn() const {
    return status_.ok() && measurements_ + 2 + kept() <= options_.measurements_max &&
           (!options_.goes_on || options_.goes_on());
  }

  double Measure(size_t point) {
    ++measurements_;
    const absl::StatusOr<double> rate = measure_(points_[point]);
    if (!rate.ok() && status_.ok()) status_ = rate.status();
    return rate.ok() ? std::max(*rate, 1.0) : 1;
  }

  // How much more `point` gives than the best, by one pair, which of the two is first in turn.
  double Pair(size_t point) {
    swap_ = !swap_;
    const double a = Measure(swap_ ? best_ : point);
    if (!status_.ok()) return 0;
    const double b = Measure(swap_ ? point : best_);
    return swap_ ? std::log(b / a) : std::log(a / b);
  }

  // How far pairs are off, from some of the start with itself. Of these the one that is off most
  // may be a hiccup.
  void LearnNoise() {
    std::vector<double> off;
    while (off.size() < 5 && GoesOn()) off.push_back(std::abs(Pair(best_)));
    std::ranges::sort(off);
    double sum = 0;
    for (size_t i = 0; i + 1 < off.size(); ++i) sum += off[i] * off[i];
    noise_ = std::clamp(1.2 * std::sqrt(sum / 4), 0.005, 0.1);
  }

  // What is not as expected is measured again, until two pairs agree or the middle one of five is
  // taken: hiccups hardly come that often.
  void Compare(size_t point) {
    const double expected = model_.mean(point) - model_.mean(best_);
    std::vector<double> ratios = {Pair(point)};
    bool clear = std::abs(ratios[0] - expected) < 4 * noise_;
    while (!clear && ratios.size() < 5 && GoesOn()) {
      const double again = Pair(point);
      for (const double r : ratios) clear = clear || std::abs(again - r) < 3 * noise_;
      ratios.push_back(again);
    }
    if (!status_.ok()) return;
    std::ranges::sort(ratios);
    double ratio = ratios[ratios.size() / 2];
    if (ratios.size() == 2) ratio = (ratios[0] + ratios[1]) / 2;
    model_.Compare(point, best_, ratio, noise_);
    if (tries_[point]++ == 0) order_.push_back(point);
  }

  void Explore() {
    for (uint32_t idle = 0; idle < kIdleMax && GoesOn();) {
      const size_t next = MostPromising();
      idle = model_.ExpectedGain(next, best_) < options_.worth ? idle + 1 : 0;
      Compare(next);
      best_ = BestTried();
    }
  }

  // One pair of each point beside the best, so that nothing rests on the model alone. Whether
  // another is the best then.
  bool TryNeighbours() {
    const size_t before = best_;
    for (size_t i = 0; i < points_.size() && GoesOn(); ++i)
      if (Beside(model_.point(i), model_.point(before))) Compare(i);
    best_ = BestTried();
    return best_ != before;
  }

  // One place away on one axis, or another engine. With a transfer twice as large the batch may be
  // half, which submits as many bytes, and a run twice as long.
  static bool Beside(const RatePlace& a, const RatePlace& b) {
    std::array<int, kRateAxes> by{};
    int axes = 0;
    for (size_t axis = 0; axis < kRateAxes; ++axis) {
      by[axis] = static_cast<int>(a[axis]) - static_cast<int>(b[axis]);
      axes += by[axis] != 0 ? 1 : 0;
      if (axis > 0 && std::abs(by[axis]) > 1) return false;
    }
    const auto& [engine, request, in_flight, batch, run] = by;
    if (axes <= 1) return axes == 1;
    return engine == 0 && in_flight == 0 && request != 0 && batch != request && run != -request;
  }

  size_t MostPromising() const {
    size_t most = best_;
    double gain_max = -1;
    for (size_t i = 0; i < points_.size(); ++i) {
      if (i == best_) continue;
      const double gain = model_.ExpectedGain(i, best_);
      if (gain > gain_max) {
        gain_max = gain;
        most = i;
      }
    }
    return most;
  }

  size_t BestTried() const {
    return *std::ranges::max_element(order_, {}, [this](size_t i) { return model_.mean(i); });
  }

  // Fewest bytes in flight first: the point that should give most of those with so many, if that is
  // about as much as the best gives. The best has won because it was lucky too, so what counts is
  // pairs made from now on.
  void SaveBytesInFlight() {
    saving_ = true;
    std::map<Bytes, size_t> candidates;
    for (size_t i = 0; i < points_.size(); ++i) {
      if (points_[i].in_flight >= points_[best_].in_flight) continue;
      const auto [at, first] = candidates.try_emplace(points_[i].in_flight, i);
      if (!first && model_.mean(i) > model_.mean(at->second)) at->second = i;
    }
    for (const auto& [bytes, i] : candidates) {
      if (model_.mean(i) > model_.mean(best_) - 0.3 && IsAsGood(i)) {
        best_ = i;
        return;
      }
    }
  }

  bool IsAsGood(size_t point) {
    if (tries_[point]++ == 0) order_.push_back(point);
    double sum = 0;
    for (int pairs = 1; pairs <= 14 && GoesOn(); ++pairs) {
      const double ratio = Pair(point);
      if (!status_.ok()) return false;
      model_.Compare(point, best_, ratio, noise_);
      sum += std::clamp(ratio, -4 * noise_, 4 * noise_);
      const double over = sum / pairs + options_.equal;
      const double unsure = noise_ / std::sqrt(pairs);
      if (over < -unsure) return false;
      if (pairs > 3 && over > 2 * unsure) return true;
    }
    return false;
  }

  Tuning Result() {
    Tuning tuning{.best = points_[best_], .tried = {}, .measurements = measurements_};
    for (const size_t i : order_)
      tuning.tried.push_back({points_[i], std::exp(model_.mean(i) - model_.mean(best_))});
    return tuning;
  }

  const TuneOptions& options_;
  const MeasurePoint& measure_;
  const std::vector<TunePoint> points_;
  RateModel model_;
  std::vector<uint32_t> tries_;  // by point
  std::vector<size_t> order_;    // of points tried
  size_t best_ = 0;
  double noise_ = 0;  // standard deviation of what a pair says
  bool swap_ = false;
  bool saving_ = false;
  uint32_t measurements_ = 0;
  absl::Status status_;
};

}  // namespace

bool TuneGrid::Has(const TunePoint& p) const {
  const auto in = [](const auto& values, const auto& value) {
    return std::ranges::find(values, value) != values.end();
  };
  return in(engines, p.engine) && in(requests, p.request) && in(in_flight, p.in_flight) &&
         in(batches, p.batch) && in(runs, p.run) && p.request <= p.in_flight &&
         p.depth() >= depth_min && p.depth() <= depth_max && p.batch <= p.depth() &&
         p.run >= p.request;
}

std::vector<TunePoint> TuneGrid::Points() const {
  std::vector<TunePoint> points;
  for (const IoEngineKind engine : engines)
    for (const Bytes request : requests)
      for (const Bytes bytes : in_flight)
        for (const uint32_t batch : batches)
          for (const Bytes run : runs) {
            const TunePoint point{engine, request, bytes, batch, run};
            if (Has(point)) points.push_back(point);
          }
  return points;
}

absl::StatusOr<Tuning> Tune(const TuneGrid& grid, const TuneOptions& options,
                            const MeasurePoint& measure) {
  return Search(grid, options, measure).Run();
}

}  // namespace sluice
