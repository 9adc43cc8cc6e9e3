#include "offload/run/report_figures.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "fmt/format.h"

namespace sluice {

namespace {

using Json = nlohmann::ordered_json;

Json OfAllDrives(const BlockStore& store, Histogram BlockStore::DriveState::*times) {
  const auto all = std::make_unique<Histogram>();
  for (const BlockStore::DriveState& drive : store.drive_states()) all->Merge(drive.*times);
  return TimesObject(*all);
}

constexpr size_t kShown = 64;  // steps, one by one

// Of `values` in order, the one at place ceil(share * n); null if there are none.
Json PercentileOf(std::vector<double> values, double share) {
  if (values.empty()) return nullptr;
  std::ranges::sort(values);
  const auto place = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
  return values[std::max<size_t>(place, 1) - 1];
}

std::vector<double> SecondsOf(const StepTimes::Figures& figures) {
  std::vector<double> seconds;
  for (const StepTimes::Step& step : figures.latest) seconds.push_back(Seconds(step.took));
  return seconds;
}

std::optional<double> EfficiencyOf(const StepTimes::Step& step) {
  if (!step.floor_seconds || step.took == Nanos(0)) return std::nullopt;
  return *step.floor_seconds / Seconds(step.took);
}

std::vector<double> EfficienciesOf(const StepTimes::Figures& figures) {
  std::vector<double> all;
  for (const StepTimes::Step& step : figures.latest) {
    if (const auto efficiency = EfficiencyOf(step)) all.push_back(*efficiency);
  }
  return all;
}

Json OrNull(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

Json RatesObject(const HardwareRates& r) {
  return {{"forward_seconds", r.forward_seconds}, {"backward_seconds", r.backward_seconds},
          {"nvme_bytes", r.nvme_bytes},           {"update_elements", r.update_elements},
          {"checksum_bytes", r.checksum_bytes},   {"copy_bytes", r.copy_bytes},
          {"shared_cores", r.shared_cores}};
}

Json FloorObject(const FloorTerms& t) {
  return {{"total", t.total},   {"forward", t.forward},     {"backward", t.backward},
          {"io", t.io},         {"update", t.update},       {"checksum", t.checksum},
          {"copies", t.copies}, {"gradients", t.gradients}, {"spill", t.spill}};
}

Json AllNull(Json object) {
  for (Json& value : object) value = nullptr;
  return object;
}

std::string WhatInWords(WaitedFor what) {
  switch (what) {
    case WaitedFor::kFetch:
      return "units on their way to HBM";
    case WaitedFor::kUpdate:
      return "updates";
    case WaitedFor::kGradients:
      return "gradients";
    case WaitedFor::kRanks:
      return "other ranks";
    case WaitedFor::kDrive:
      return "the drives";
  }
  return "";
}

std::string StepsInWords(const StepTimes::Figures& figures) {
  const std::vector<double> seconds = SecondsOf(figures);
  if (seconds.empty()) return "No step was timed.";
  std::string text =
      fmt::format("{} step{} timed, the median {:.3g} s", figures.count,
                  figures.count == 1 ? "" : "s", PercentileOf(seconds, 0.5).get<double>());
  const Json efficiency = PercentileOf(EfficienciesOf(figures), 0.5);
  if (efficiency.is_null()) return text + ".";
  return text + fmt::format(", {:.2f} of its floor (the last one: {:.3g} s).",
                            efficiency.get<double>(), figures.floor.total);
}

std::string WaitsInWords(const StepTimes::Figures& figures) {
  std::vector<size_t> order(kWaits);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](size_t w) { return figures.waited[w]; });
  std::string list;
  Nanos all{0};
  for (const size_t w : order) {
    const Nanos waited = figures.waited[w];
    all += waited;
    if (waited == Nanos(0)) continue;
    list += fmt::format("{}{:.3g} s for {} ({:.0f}%)", list.empty() ? "" : ", ", Seconds(waited),
                        WhatInWords(static_cast<WaitedFor>(w)),
                        100 * Seconds(waited) / Seconds(figures.in_all));
  }
  if (list.empty()) return "Nothing was waited for.";
  return fmt::format("Of {:.3g} s, {:.3g} s were waited: {}.", Seconds(figures.in_all),
                     Seconds(all), list);
}

}  // namespace

Json TimesObject(const Histogram& times) {
  return {{"count", times.count()},
          {"p50", times.Percentile(0.5)},
          {"p99", times.Percentile(0.99)},
          {"max", times.max()}};
}

Json HistogramsObject(const Metrics& metrics, const BlockStore& store) {
  using State = BlockStore::DriveState;
  return {{"queue_wait", OfAllDrives(store, &State::queue_wait_ns)},
          {"read", OfAllDrives(store, &State::read_ns)},
          {"write", OfAllDrives(store, &State::write_ns)},
          {"acquire", TimesObject(metrics.Times("acquire_ns"))},
          {"update_chunk", TimesObject(metrics.Times("update_chunk_ns"))}};
}

Json StepsObject(const StepTimes::Figures& figures) {
  const std::vector<double> seconds = SecondsOf(figures);
  const std::vector<double> efficiencies = EfficienciesOf(figures);
  Json rates = RatesObject(figures.rates.value_or(HardwareRates()));
  Json floor = FloorObject(figures.floor);
  Json latest_seconds = Json::array();
  Json latest_efficiencies = Json::array();
  for (size_t i = seconds.size() - std::min(seconds.size(), kShown); i < seconds.size(); ++i) {
    latest_seconds.push_back(seconds[i]);
    latest_efficiencies.push_back(OrNull(EfficiencyOf(figures.latest[i])));
  }
  return {{"count", figures.count},
          {"seconds",
           {{"p50", PercentileOf(seconds, 0.5)},
            {"p99", PercentileOf(seconds, 0.99)},
            {"max", PercentileOf(seconds, 1)}}},
          {"floor_seconds", figures.rates ? std::move(floor) : AllNull(std::move(floor))},
          {"rates", figures.rates ? std::move(rates) : AllNull(std::move(rates))},
          {"efficiency", PercentileOf(efficiencies, 0.5)},
          {"latest_seconds", std::move(latest_seconds)},
          {"latest_efficiencies", std::move(latest_efficiencies)}};
}

Json WaitedObject(const StepTimes::Figures& figures) {
  Json seconds, share;
  for (size_t w = 0; w < kWaits; ++w) {
    const char* const name = Name(static_cast<WaitedFor>(w));
    const double waited = Seconds(figures.waited[w]);
    seconds[name] = waited;
    share[name] = waited > 0 ? waited / Seconds(figures.in_all) : 0.0;
  }
  return {{"of_seconds", Seconds(figures.in_all)},
          {"seconds", std::move(seconds)},
          {"share", std::move(share)},
          {"words", StepsInWords(figures) + " " + WaitsInWords(figures)}};
}

}  // namespace sluice
