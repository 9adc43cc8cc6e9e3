// One step's update over the host device, all states in RAM and all parameters in HBM: how long it
// takes, by size of chunks and rate of the link. To compare two builds, run each in turn.
//
//   grain_bench [CELLS of a chunk [BYTES a second of the link, 0: none [WORKERS]]]
//
// Prints the fastest and the median step, and the process's CPU time and waits of all of them.

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/run/factory.h"
#include "optim/adamw.h"

namespace sluice {
namespace {

constexpr uint32_t kUnits = 8;
constexpr int64_t kElements = 5'000'000;  // of a unit
constexpr int kSteps = 9;                 // the first does not count

void Measure(int64_t chunk_cells, double link, int workers) {
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.workers = workers;
  config.chunk_elements = chunk_cells * kCellElements;
  config.link_bytes_per_second = link;
  config.budgets = {MiB(96), GiB(2), Bytes(0)};
  ModelSpec spec;
  for (uint32_t u = 0; u < kUnits; ++u) {
    spec.units.push_back({.name = fmt::format("unit{}", u)});
    spec.tensors.push_back(
        {.name = fmt::format("tensor{}", u), .unit = UnitIndex(u), .elements = kElements});
  }
  absl::StatusOr<std::unique_ptr<OffloadRuntime>> made = MakeRuntime(spec, config);
  SLUICE_CHECK_MSG(made.ok(), Message(made.status()));
  OffloadRuntime* const runtime = made->get();
  const auto wait = [runtime](Ticket ticket) {
    std::optional<absl::Status> status;
    while (!status) status = runtime->Wait(ticket, std::chrono::seconds(1));
    SLUICE_CHECK_MSG(status->ok(), Message(*status));
  };
  std::vector<float> masters(kElements, 0.01f);
  const std::vector<std::byte> grads(kElements * 2, std::byte{0x3a});
  for (uint32_t t = 0; t < kUnits; ++t) {
    wait(runtime->Access({.write = true,
                          .tensor = TensorIndex(t),
                          .field = Field::kMaster,
                          .data = reinterpret_cast<std::byte*>(masters.data()),
                          .type = ElementType(FloatType::kF32),
                          .done = nullptr}));
  }
  std::vector<double> milliseconds;
  for (int step = 0; step < kSteps; ++step) {
    for (uint32_t t = 0; t < kUnits; ++t) wait(runtime->PushGrad(TensorIndex(t), grads));
    wait(runtime->Drain());
    const auto begin = std::chrono::steady_clock::now();
    wait(runtime->Step({.groups = {Hyperparameters::Of(AdamWHyper{.lr = 0.01})}}));
    wait(runtime->Drain());
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    if (step > 0) milliseconds.push_back(took.count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  fmt::print("fastest {:.1f} ms, median {:.1f} ms, CPU {:.2f} s, waits {}\n", milliseconds.front(),
             milliseconds[milliseconds.size() / 2], seconds(use.ru_utime) + seconds(use.ru_stime),
             use.ru_nvcsw);
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  sluice::Measure(argc > 1 ? std::atoll(argv[1]) : 12, argc > 2 ? std::atof(argv[2]) : 0,
                  argc > 3 ? std::atoi(argv[3]) : 1);
}
