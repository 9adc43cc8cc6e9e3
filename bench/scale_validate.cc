#include "bench/scale_validate.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr uint32_t kUnits = 8;
constexpr Bytes kBlock = KiB(576);  // states of a chunk

ModelSpec SpecOf(const ValidationCase& c) {
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("unit {}", u)});
    for (int part = 0; part < 2; ++part) {
      spec.tensors.push_back({.name = fmt::format("unit {} part {}", u, part),
                              .unit = UnitIndex(u),
                              .elements = c.elements / 2});
    }
  }
  return spec;
}

// What `plan` must take of pinned memory, and a little more, so that what may be on the drive is.
Bytes TightPinned(const ModelSpec& spec, RuntimeConfig config) {
  Bytes works = config.budgets.pinned;
  for (Bytes step = works / 2; step >= MiB(1); step = step / 2) {
    config.budgets.pinned = works - step;
    if (MakePlan(spec, config).ok()) works = works - step;
  }
  return works + MiB(24);
}

RuntimeConfig ConfigOf(const ValidationCase& c, const ModelSpec& spec,
                       const std::string& directory) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.workers = 1;
  config.overlap = c.overlap;
  config.sharding = {.ranks = c.ranks, .states = c.stage >= 1, .params = c.stage == 3};
  config.placement.lowest_param_tier = c.stage == 3 ? c.params : Tier::kHbm;
  config.placement.lowest_state_tier = c.states;
  config.budgets = {GiB(2), GiB(4), GiB(8)};
  if (c.stage == 3) config.budgets.hbm = Bytes(c.elements * 2 * 3) + MiB(1);
  if (c.states == Tier::kNvme) {
    config.nvme_paths = {directory};
    config.budgets.pinned = TightPinned(spec, config);
  }
  return config;
}

// `drive`: bytes a second; `single`: where one block is on its way at a time.
SimHosts HostsOf(const ValidationCase& c, const MeasuredRates& rates, double drive, double single,
                 int cores) {
  SimHosts hosts;
  hosts.ranks = c.ranks;
  hosts.network = {.ranks_per_host = c.ranks,
                   .local_bytes_per_second = rates.exchange,
                   .local_latency = Nanos(static_cast<int64_t>(rates.round * 1e9)),
                   .small = KiB(4),
                   .own_takes_time = true};
  hosts.cores = cores;
  hosts.callers_help = true;
  const auto rate = [&](TaskKind kind) -> double& {
    return hosts.work.per_second[static_cast<size_t>(kind)];
  };
  rate(TaskKind::kUpdate) = rates.update;
  rate(TaskKind::kStream) = rates.stream;
  rate(TaskKind::kCopy) = rates.copy;
  rate(TaskKind::kSum) = rates.sum;
  rate(TaskKind::kTake) = rates.take;
  hosts.drive_bytes_per_second = drive / c.ranks;
  if (single > 0) {
    hosts.drive_latency =
        Nanos(std::max<int64_t>(0, static_cast<int64_t>(static_cast<double>(kBlock.value()) *
                                                        (1 / single - 1 / drive) * 1e9)));
  }
  hosts.wake = std::chrono::microseconds(50);
  return hosts;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

MeasuredRates MedianOf(const std::vector<MeasuredRates>& all) {
  MeasuredRates median;
  for (double MeasuredRates::*rate :
       {&MeasuredRates::update, &MeasuredRates::stream, &MeasuredRates::copy, &MeasuredRates::sum,
        &MeasuredRates::take, &MeasuredRates::exchange, &MeasuredRates::round}) {
    std::vector<double> values;
    values.reserve(all.size());
    for (const MeasuredRates& rates : all) values.push_back(rates.*rate);
    median.*rate = Median(std::move(values));
  }
  return median;
}

TrainingScript ScriptOf(const ValidationCase& c, int steps) {
  const auto ms = [](double value) { return Nanos(static_cast<int64_t>(value * 1e6)); };
  return {.steps = steps, .forward = ms(c.forward_ms), .backward = ms(c.backward_ms)};
}

}  // namespace

// Bound by compute, by updates, by the drive, and by what ranks do together.
std::vector<ValidationCase> ValidationCases() {
  const auto ram = [](std::string name, uint32_t ranks, int stage, double forward,
                      double backward) {
    return ValidationCase{.name = std::move(name),
                          .ranks = ranks,
                          .stage = stage,
                          .params = stage == 3 ? Tier::kPinned : Tier::kHbm,
                          .elements = 8'000'000,
                          .forward_ms = forward,
                          .backward_ms = backward};
  };
  const auto drive = [](std::string name, uint32_t ranks, int stage, double forward,
                        double backward) {
    return ValidationCase{.name = std::move(name),
                          .ranks = ranks,
                          .stage = stage,
                          .states = Tier::kNvme,
                          .params = stage == 3 ? Tier::kNvme : Tier::kHbm,
                          .forward_ms = forward,
                          .backward_ms = backward};
  };
  std::vector<ValidationCase> cases = {
      ram("1 rank, RAM, compute", 1, 0, 10, 20),
      ram("1 rank, RAM, update", 1, 0, 1, 2),
      ram("2 ranks, stage 0, RAM", 2, 0, 5, 10),
      ram("2 ranks, stage 1, RAM, update", 2, 1, 1, 2),
      ram("2 ranks, stage 1, RAM", 2, 1, 5, 10),
      ram("2 ranks, stage 3, RAM", 2, 3, 5, 10),
      drive("1 rank, drive", 1, 0, 5, 10),
      drive("1 rank, drive, compute", 1, 0, 60, 60),
      drive("2 ranks, stage 1, drive", 2, 1, 5, 10),
      drive("2 ranks, stage 3, drive", 2, 3, 10, 20),
  };
  for (const size_t i : {size_t{7}, size_t{8}}) {
    ValidationCase serial = cases[i];
    serial.name += ", no overlap";
    serial.overlap = false;
    cases.push_back(std::move(serial));
  }
  return cases;
}

double Validation::Row::real() const { return Median(steps); }
double Validation::Row::drive() const { return Median(drives); }

absl::StatusOr<Validation> Validate(const std::string& directory, int repetitions, int steps) {
  constexpr double kProbe = 0.5;   // seconds
  constexpr size_t kSettling = 3;  // the first steps learn the trace
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  Validation result;
  for (const ValidationCase& c : ValidationCases()) result.rows.push_back({.of = c});
  for (int r = 0; r < repetitions; ++r) {
    for (Validation::Row& row : result.rows) {
      const ModelSpec spec = SpecOf(row.of);
      const bool drives = row.of.states == Tier::kNvme;
      result.rates.push_back(MeasureCores(cores));
      const auto probe = [&]() -> absl::Status {
        if (!drives) return absl::OkStatus();
        const uint32_t depth = IoEngine::Limits().in_flight_max * row.of.ranks;
        SLUICE_ASSIGN_OR_RETURN(row.drives.emplace_back(),
                                MeasureDrive(directory, kBlock, depth, kProbe));
        SLUICE_ASSIGN_OR_RETURN(row.single.emplace_back(),
                                MeasureDrive(directory, kBlock, 1, kProbe / 2));
        return absl::OkStatus();
      };
      SLUICE_RETURN_IF_ERROR(probe());
      SLUICE_ASSIGN_OR_RETURN(const std::vector<TrainingTimes> times,
                              TrainReally(spec, ConfigOf(row.of, spec, directory), row.of.ranks,
                                          ScriptOf(row.of, steps)));
      SLUICE_RETURN_IF_ERROR(probe());
      for (size_t i = kSettling; i < times[0].steps.size(); ++i)
        row.steps.push_back(Seconds(times[0].steps[i] - times[0].steps[i - 1]));
    }
  }
  result.median = MedianOf(result.rates);
  for (Validation::Row& row : result.rows) {
    const ModelSpec spec = SpecOf(row.of);
    SLUICE_ASSIGN_OR_RETURN(
        const SimTraining simulated,
        SimulateTraining(spec, ConfigOf(row.of, spec, directory),
                         HostsOf(row.of, result.median, row.drive(), Median(row.single), cores),
                         ScriptOf(row.of, 8)));
    row.simulated = simulated.StepSeconds();
  }
  return result;
}

}  // namespace sluice
