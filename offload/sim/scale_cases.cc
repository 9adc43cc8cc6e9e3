#include "offload/sim/scale_cases.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int kWorkers = 4;                 // of a rank
constexpr double kUpdateBytes = 28;         // of memory, an element
constexpr double kUpdateBytesOnDrive = 52;  // with what comes from a drive and goes there

// Parts of a layer: queries, keys and values; projection; two matrices of the MLP.
constexpr double kParts[] = {0.25, 1.0 / 12, 1.0 / 3, 1.0 / 3};

struct Scaled {
  ModelSpec spec;
  int64_t unit = 0;  // elements
  double scale = 1;
};

// Units that are as large as so many whole cells for each rank.
Scaled ScaledDown(const ScaleCase& c) {
  const double meant = c.parameters / c.units;
  const int64_t per_shard = c.cells_of_shard > 0
                                ? c.cells_of_shard
                                : std::clamp<int64_t>(256 / static_cast<int64_t>(c.ranks()), 1, 16);
  Scaled scaled;
  scaled.unit = per_shard * kCellElements * c.ranks();
  scaled.scale = meant / static_cast<double>(scaled.unit);
  for (uint32_t u = 0; u < c.units; ++u) {
    scaled.spec.units.push_back({.name = fmt::format("layer {}", u)});
    int64_t left = scaled.unit / kCellElements;
    for (size_t p = 0; p < std::size(kParts) && left > 0; ++p) {
      const bool last = p + 1 == std::size(kParts);
      const int64_t cells =
          last ? left
               : std::clamp<int64_t>(
                     std::llround(kParts[p] * static_cast<double>(scaled.unit) / kCellElements), 1,
                     left);
      left -= cells;
      scaled.spec.tensors.push_back({.name = fmt::format("layer {} part {}", u, p),
                                     .unit = UnitIndex(u),
                                     .elements = cells * kCellElements});
    }
  }
  return scaled;
}

RuntimeConfig ConfigOf(const ScaleCase& c, const Scaled& scaled) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.chunk_elements = kCellElements;
  config.overlap = c.overlap;
  config.placement.resident_elements_max = 0;
  config.placement.lowest_param_tier = c.stage == 3 ? c.params : Tier::kHbm;
  config.placement.lowest_state_tier = c.states == Tier::kNvme ? Tier::kNvme : Tier::kPinned;
  config.sharding = {.states = c.stage >= 1, .params = c.stage == 3};
  config.budgets = {GiB(64), GiB(64), GiB(64)};
  config.io.in_flight_max = 64;
  if (c.stage == 3) {
    const int64_t shards = c.params == Tier::kHbm ? scaled.unit * c.units / c.ranks() * 2 : 0;
    config.budgets.hbm = Bytes(scaled.unit * 2 * c.cache_units + shards) + KiB(32);
  }
  if (c.states == Tier::kNvme || c.params == Tier::kNvme) config.nvme_paths = {"simulated"};
  return config;
}

SimHosts HostsOf(const ScaleCase& c, double scale) {
  const Machine& m = c.machine;
  const double ranks = m.ranks_per_host;
  SimHosts hosts;
  hosts.ranks = c.ranks();
  hosts.mirrored = c.mirrored && c.hosts > 1;
  hosts.network = {
      .ranks_per_host = m.ranks_per_host,
      .local_bytes_per_second = m.local_bytes_per_second,
      .network_bytes_per_second = m.network_bytes_per_second,
      .local_latency = m.local_latency,
      .network_latency = m.network_latency,
      .steps = c.ring ? SimNetworkOptions::Steps::kRing : SimNetworkOptions::Steps::kTree,
      .message_gap = m.message_gap,
      .small = KiB(4)};
  if (c.free_network) {
    hosts.network.local_bytes_per_second = hosts.network.network_bytes_per_second = 1e18;
    hosts.network.local_latency = hosts.network.network_latency = hosts.network.message_gap =
        Nanos(0);
  }
  hosts.workers = kWorkers;
  hosts.scale = scale;
  hosts.seed = c.seed;
  const auto rate = [&](TaskKind kind) -> double& {
    return hosts.work.per_second[static_cast<size_t>(kind)];
  };
  const double memory =
      c.states == Tier::kHbm ? m.hbm_bytes_per_second : m.memory_bytes_per_second / ranks;
  rate(TaskKind::kUpdate) = memory / kUpdateBytes / kWorkers;
  rate(TaskKind::kStream) = memory / kUpdateBytesOnDrive / kWorkers;
  rate(TaskKind::kCopy) = m.hbm_bytes_per_second / 2;
  rate(TaskKind::kSum) = m.hbm_bytes_per_second / 2;
  rate(TaskKind::kTake) =
      (c.states == Tier::kHbm ? m.hbm_bytes_per_second / 2 : m.link_bytes_per_second) / 2;
  hosts.drive_bytes_per_second = m.drive_bytes_per_second / ranks;
  // The plan's budgets are of a model that was scaled down; what it says of homes is said here.
  hosts.place = [states = c.states, stage = c.stage, params = c.params](const ModelLayout& layout,
                                                                        Placement* placement) {
    // Of a model that is scaled down there are fewer chunks, so fewer are on their way.
    const auto share = static_cast<int>(layout.chunks().size() / 16);
    if (states == Tier::kNvme) {
      std::ranges::fill(placement->state_home, Tier::kNvme);
      placement->state_buffers = std::clamp(share, 4, 32);
    }
    if (stage == 3 && params == Tier::kNvme) {
      std::ranges::fill(placement->param_home, Tier::kNvme);
      placement->param_buffers = std::clamp(share, 4, 24);
    }
  };
  return hosts;
}

FloorTerms FloorOf(const ScaleCase& c, const Scaled& scaled, const SimHosts& hosts,
                   const TrainingScript& script, StepTraffic traffic) {
  const double drive = hosts.drive_bytes_per_second / scaled.scale;
  const double all_io = static_cast<double>((traffic.nvme_read + traffic.nvme_written).value());
  // What the buffers hold when forward is over can be written during backward; and parameters that
  // backward needs are read then.
  traffic.read_ahead += std::min(traffic.read_ahead, traffic.nvme_written);
  const double gradients = ExchangeSeconds(c.machine, c.ranks(), 2 * c.parameters);
  const double params = GatherSeconds(c.machine, c.ranks(), 2 * c.parameters);
  const double kept = c.stage == 3 ? static_cast<double>(c.cache_units) / c.units : 0;
  const double passes = c.micro_steps;
  // What stays in the cache from forward is not gathered for backward, nor the other way round.
  const double again = std::max(0.0, 1 - kept);
  const double micro_gathers = c.stage == 3 ? params * again : 0;
  double read_backward = 0;
  if (c.stage == 3 && c.params == Tier::kNvme) {
    read_backward = again * 2 * static_cast<double>(scaled.unit) * c.units / c.ranks();
    traffic.nvme_read -= Bytes(static_cast<int64_t>(read_backward * passes));
  }
  HardwareRates rates{
      .forward_seconds = Seconds(script.forward) * c.units * passes,
      .backward_seconds = Seconds(script.backward) * c.units * passes,
      .nvme_bytes = drive,
      .update_elements = hosts.work.per_second[static_cast<size_t>(
                             c.states == Tier::kNvme ? TaskKind::kStream : TaskKind::kUpdate)] *
                         kWorkers / scaled.scale,
      .links_backward_seconds =
          gradients * passes + micro_gathers * passes + (c.stage == 0 ? params * passes : 0),
      .links_forward_seconds = c.stage == 0 ? 0 : params * (c.stage == 3 ? passes : 1),
      .shared_cores = false};
  // The parts of micro-steps can't overlap with the update; what is sent in them counts once.
  if (c.stage == 3 && c.micro_steps > 1) {
    rates.links_backward_seconds += params * (passes - 1);
    rates.links_forward_seconds = params;
  }
  if (c.micro_steps > 1) {
    rates.backward_seconds += rates.forward_seconds * (passes - 1) / passes;
    rates.forward_seconds /= passes;
  }
  if (drive > 0) {
    rates.links_backward_seconds =
        std::max(rates.links_backward_seconds, read_backward * passes / drive);
  }
  FloorTerms floor = Floor(traffic, rates);
  if (drive > 0) floor.total = std::max(floor.total, all_io / drive);
  return floor;
}

}  // namespace

Machine Dgx2() {
  return {.name = "dgx2",
          .ranks_per_host = 16,
          .flops = 70e12,  // the peak that the paper's model of efficiency has
          .hbm_bytes_per_second = 800e9,
          .link_bytes_per_second = 4e9,  // 64 GB/s a host
          .local_bytes_per_second = 130e9,
          .network_bytes_per_second = 6.25e9,  // 8 x 100 Gb/s a host
          .drive_bytes_per_second = 28e9,
          .memory_bytes_per_second = 200e9};
}

Machine DgxA100() {
  return {.name = "a100",
          .ranks_per_host = 8,
          .flops = 160e12,
          .hbm_bytes_per_second = 1.6e12,
          .link_bytes_per_second = 25e9,
          .local_bytes_per_second = 240e9,
          .network_bytes_per_second = 25e9,
          .drive_bytes_per_second = 25e9,
          .memory_bytes_per_second = 300e9};
}

Machine DgxH100() {
  return {.name = "h100",
          .ranks_per_host = 8,
          .flops = 400e12,
          .hbm_bytes_per_second = 2.6e12,
          .link_bytes_per_second = 50e9,
          .local_bytes_per_second = 360e9,
          .network_bytes_per_second = 45e9,  // 400 Gb/s, less what protocols take
          .drive_bytes_per_second = 48e9,
          .memory_bytes_per_second = 480e9};
}

const Machine* FindMachine(const std::string& name) {
  static const auto* const all = new std::vector<Machine>{Dgx2(), DgxA100(), DgxH100()};
  const auto found = std::ranges::find(*all, name, &Machine::name);
  return found == all->end() ? nullptr : &*found;
}

double ExchangeSeconds(const Machine& m, uint32_t ranks, double bytes) {
  const double here = std::min(ranks, m.ranks_per_host), all = ranks;
  return std::max((here - 1) / all * bytes / m.local_bytes_per_second,
                  (all - here) / all * bytes / m.network_bytes_per_second);
}

double GatherSeconds(const Machine& m, uint32_t ranks, double bytes) {
  const double here = std::min(ranks, m.ranks_per_host), all = ranks;
  const double own = (all - here) / all * bytes / here;  // over the network
  return std::max(((all - 1) / all * bytes - own) / m.local_bytes_per_second,
                  own / m.network_bytes_per_second);
}

absl::StatusOr<ScaleResult> Simulate(const ScaleCase& c) {
  const Scaled scaled = ScaledDown(c);
  const RuntimeConfig config = ConfigOf(c, scaled);
  const SimHosts hosts = HostsOf(c, scaled.scale);
  const double pass = 2 * c.parameters / c.units * c.tokens / c.micro_steps / c.machine.flops;
  const auto seconds = [](double s) { return Nanos(static_cast<int64_t>(s * 1e9)); };
  const TrainingScript script{.steps = c.steps,
                              .forward = seconds(pass),
                              .backward = seconds(pass * (c.recompute ? 3 : 2)),
                              .micro_steps = c.micro_steps};
  ScaleResult result;
  SLUICE_ASSIGN_OR_RETURN(result.training, SimulateTraining(scaled.spec, config, hosts, script));
  result.step = result.training.StepSeconds();
  result.waited = result.training.WaitedSeconds();
  result.floor = FloorOf(c, scaled, hosts, script, result.training.traffic);
  result.scale = scaled.scale;
  result.sent =
      Bytes(static_cast<int64_t>(static_cast<double>(result.training.sent.value()) * scaled.scale));
  return result;
}

}  // namespace sluice
