// `sluice bench copy`: how fast memory is, by NUMA node, and the link to each GPU and back.

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/budget.h"
#include "core/cgroup.h"
#include "core/cuda_device.h"
#include "core/memory_rates.h"
#include "core/numa.h"
#include "core/status.h"
#include "core/topology.h"
#include "fmt/format.h"
#include "tools/bench_cases.h"
#include "tools/gpu_copies.h"

namespace sluice::tools {
namespace {

constexpr double kGiga = 1e9;

// Cores that work, on one node or on all.
struct Cores {
  std::string name;  // "node 0"
  std::vector<int> numbers;
  std::optional<int> node;
};

// Nodes with cores that may be used; where the kernel doesn't say, all together.
std::vector<Cores> FindCores(const Topology& topology, const std::vector<NumaNode>& nodes) {
  std::vector<Cores> found;
  for (const NumaNode& node : nodes) {
    Cores cores{.name = fmt::format("node {}", node.number), .numbers = {}, .node = node.number};
    std::ranges::set_intersection(node.cores, topology.cores, std::back_inserter(cores.numbers));
    if (!cores.numbers.empty()) found.push_back(std::move(cores));
  }
  if (found.empty())
    found.push_back({.name = "this machine", .numbers = topology.cores, .node = {}});
  return found;
}

struct MemoryPair {
  std::string name;  // "node 0", "node 1 from node 0"
  MemoryRates rates;
  bool local;
};

// All pairs, and what is not as it should be.
absl::StatusOr<std::vector<MemoryPair>> MakePairs(const Topology& topology, BenchReport* report) {
  const std::vector<NumaNode> nodes = ReadNumaNodes(FilesBelow(""));
  const std::vector<Cores> all = FindCores(topology, nodes);
  std::vector<std::pair<std::string, std::optional<int>>> memories;
  memories.reserve(nodes.size() + 1);
  for (const NumaNode& node : nodes)
    memories.emplace_back(fmt::format("node {}", node.number), node.number);
  if (memories.empty()) memories.emplace_back("this machine", std::nullopt);
  SLUICE_ASSIGN_OR_RETURN(const MemoryLimits limits, ReadMemoryLimits());
  const auto pairs = static_cast<int64_t>(all.size() * memories.size());
  std::vector<MemoryPair> made;
  for (const Cores& cores : all) {
    const int threads =
        std::min(static_cast<int>(cores.numbers.size()), std::max(1, topology.cores_allowed));
    for (const auto& [name, node] : memories) {
      const bool local = cores.node == node;
      const Bytes room = limits.available() / 2 / pairs / threads;
      SLUICE_ASSIGN_OR_RETURN(
          MemoryRates rates,
          MemoryRates::Create({.cores = cores.numbers,
                               .threads = threads,
                               .node = node,
                               .bytes_of_thread = std::min(MiB(256), std::max(MiB(2), room))}));
      if (rates.share_on_node().value_or(1) < 0.99) {
        report->notes.push_back(
            fmt::format("only {:.0f}% of the memory for {} lies there: the figures of it are mixed",
                        *rates.share_on_node() * 100, name));
      }
      made.push_back({.name = local ? name : fmt::format("{} from {}", name, cores.name),
                      .rates = std::move(rates),
                      .local = local});
    }
  }
  return made;
}

void AddMemory(std::vector<MemoryPair>* pairs, double seconds, BenchReport* report) {
  struct Kind {
    const char* name;
    const char* unit;
    std::function<double(MemoryRates*)> measure;
  };
  const Kind kinds[] = {
      {"read", "GB/s", [](MemoryRates* r) { return r->Read() / kGiga; }},
      {"write", "GB/s", [](MemoryRates* r) { return r->Write() / kGiga; }},
      {"copy", "GB/s", [](MemoryRates* r) { return r->Copy() / kGiga; }},
      {"latency", "ns", [](MemoryRates* r) { return r->Latency() * 1e9; }},
  };
  std::vector<std::vector<double>> rounds(pairs->size() * std::size(kinds));
  RoundClock clock(seconds);
  do {
    size_t i = 0;
    for (MemoryPair& pair : *pairs) {
      for (const Kind& kind : kinds) rounds[i++].push_back(kind.measure(&pair.rates));
    }
  } while (clock.Another());
  size_t i = 0;
  for (const MemoryPair& pair : *pairs) {
    for (const Kind& kind : kinds) {
      report->cases.push_back(MakeCase(fmt::format("memory of {}, {}", pair.name, kind.name),
                                       kind.unit, {.own = rounds[i++]}));
    }
  }
}

void AddGpu(int gpu, const Cores& cores, double seconds, BenchReport* report) {
  const ScopedNumaBinding binding({.node = cores.node, .cores = cores.numbers, .reason = ""});
  const auto copies = MakeGpuCopies(gpu);
  if (!copies.ok()) {
    report->notes.push_back(fmt::format("GPU {}: {}", gpu, Message(copies.status())));
    return;
  }
  report->setup.device = (*copies)->description();
  struct Kind {
    CopyWay way;
    Bytes size;
    int64_t count;
  };
  const Kind kinds[] = {{CopyWay::kToDevice, MiB(64), 16}, {CopyWay::kToHost, MiB(64), 16},
                        {CopyWay::kBoth, MiB(64), 16},     {CopyWay::kToDevice, MiB(1), 256},
                        {CopyWay::kToHost, MiB(1), 256},   {CopyWay::kToDevice, KiB(4), 1},
                        {CopyWay::kToHost, KiB(4), 1}};
  std::vector<BenchRounds> rounds(std::size(kinds));
  RoundClock clock(seconds);
  for (bool warm = true;; warm = false) {
    for (size_t i = 0; i < std::size(kinds); ++i) {
      const Kind& k = kinds[i];
      const double plain = (*copies)->PlainSeconds(k.way, k.size, k.count);
      const double own = (*copies)->DeviceSeconds(k.way, k.size, k.count);
      if (warm) continue;
      const double gigabytes =
          static_cast<double>(k.size.value() * k.count) * (k.way == CopyWay::kBoth ? 2 : 1) / kGiga;
      rounds[i].own.push_back(k.count == 1 ? own * 1e6 : gigabytes / own);
      rounds[i].limit.push_back(k.count == 1 ? plain * 1e6 : gigabytes / plain);
    }
    if (!warm && !clock.Another()) break;
  }
  for (size_t i = 0; i < std::size(kinds); ++i) {
    const Kind& k = kinds[i];
    BenchCase one =
        MakeCase(fmt::format("GPU {} and memory of {}, {}, {}", gpu, cores.name, Name(k.way),
                             k.count == 1 ? "latency of 4 KiB"
                                          : fmt::format("copies of {} MiB", k.size / MiB(1))),
                 k.count == 1 ? "us" : "GB/s", rounds[i]);
    one.limit_is = "a plain loop of cudaMemcpyAsync on cudaMallocHost's memory";
    report->cases.push_back(std::move(one));
  }
}

}  // namespace

absl::StatusOr<BenchReport> BenchCopy(const BenchOptions& options) {
  BenchReport report{.benchmark = "copy", .setup = DetectBenchSetup(), .cases = {}, .notes = {}};
  report.setup.code_path = "memcpy and memset of the C library";
  SLUICE_ASSIGN_OR_RETURN(const Topology topology, DetectTopology());
  int gpus = 0;
  absl::Status no_more;
  while ((no_more = ProbeCuda(gpus).status()).ok()) ++gpus;
  if (gpus == 0) report.notes.push_back(fmt::format("no GPU: {}", Message(no_more)));
  {
    SLUICE_ASSIGN_OR_RETURN(std::vector<MemoryPair> pairs, MakePairs(topology, &report));
    AddMemory(&pairs, gpus == 0 ? options.seconds : options.seconds / 2, &report);
  }
  const std::vector<Cores> cores = FindCores(topology, ReadNumaNodes(FilesBelow("")));
  for (int gpu = 0; gpu < gpus; ++gpu) {
    for (const Cores& of_node : cores) {
      const auto links = static_cast<double>(gpus) * static_cast<double>(cores.size());
      AddGpu(gpu, of_node, options.seconds / 2 / links, &report);
    }
  }
  return report;
}

}  // namespace sluice::tools
