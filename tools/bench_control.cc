// `sluice bench control`: what the control plane costs by itself: plans, and what the control
// thread does for each chunk, gradient and acquisition (tools/control_rig.h).

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/types.h"
#include "fmt/format.h"
#include "offload/plan/cache_segments.h"
#include "offload/plan/schedule.h"
#include "offload/plan/trace.h"
#include "tools/bench_cases.h"
#include "tools/control_rig.h"

namespace sluice::tools {
namespace {

// Units in forward and backward, in a cache for half of them.
struct Problem {
  Problem(int64_t units, int64_t sizes) {
    Trace steps;
    const auto count = static_cast<uint32_t>(units);
    for (uint32_t i = 0; i < 2 * count; ++i) {
      const UnitIndex unit(i < count ? i : 2 * count - 1 - i);
      steps.push_back({unit, true});
      steps.push_back({unit, false});
    }
    trace = IndexedTrace(std::move(steps));
    Bytes all;
    for (uint32_t u = 0; u < count; ++u) {
      unit_bytes.push_back(MiB(1 + static_cast<int64_t>(u * 2654435761u >> 16) % sizes));
      all += unit_bytes.back();
    }
    capacity = all / 2 + MiB(sizes);
  }
  IndexedTrace trace{{}};
  std::vector<Bytes> unit_bytes;
  Bytes capacity;
};

// Milliseconds of `work`, by round, each of as many repetitions as take a while.
template <typename Work>
std::vector<double> Milliseconds(double seconds, Work work) {
  constexpr double kLeast = 2e-3;  // seconds of a round
  double begin = ThreadCpuSeconds();
  work();
  const double first = ThreadCpuSeconds() - begin;
  const int repetitions = first >= kLeast ? 1 : static_cast<int>(kLeast / (first + 1e-7)) + 1;
  std::vector<double> rounds;
  RoundClock clock(seconds);
  do {
    begin = ThreadCpuSeconds();
    for (int i = 0; i < repetitions; ++i) work();
    rounds.push_back((ThreadCpuSeconds() - begin) / repetitions * 1e3);
  } while (clock.Another());
  return rounds;
}

void AddPlans(int64_t units, int64_t sizes, double seconds, BenchReport* report) {
  const std::string shape =
      fmt::format("{} units of {}", units, sizes == 1 ? "one size" : "four sizes");
  const Problem problem(units, sizes);
  {  // A whole iteration and the forward of the next, from an empty cache.
    Planner planner(problem.unit_bytes);
    const SegmentList empty(problem.capacity);
    report->cases.push_back(
        MakeCase("a whole plan, " + shape, "ms", {.own = Milliseconds(seconds / 2, [&] {
                                                    planner.Begin({.trace = &problem.trace}, empty,
                                                                  [](UnitIndex) { return false; });
                                                    while (planner.Next() != nullptr) planner.Pop();
                                                  })}));
  }
  // A departure in the middle of forward: planned anew, with the cache full, as far as eight moves.
  Planner planner(problem.unit_bytes);
  SegmentList segments(problem.capacity);
  SegmentList::Place rest = segments.first();
  size_t held = 0;
  while (rest != SegmentList::kNone && segments.at(rest).size >= problem.unit_bytes[held]) {
    const UnitIndex unit(static_cast<uint32_t>(held));
    const SegmentList::Place place = segments.Put(rest, rest, unit, problem.unit_bytes[held++]);
    rest = segments.at(place).after;
  }
  report->cases.push_back(
      MakeCase("a plan made anew, " + shape, "ms",
               {.own = Milliseconds(seconds / 2, [&] {
                  planner.Begin({.trace = &problem.trace, .happened = held / 2}, segments,
                                [&](UnitIndex unit) { return unit.value() == held / 2; });
                  for (int moves = 0; moves < 8 && planner.Next() != nullptr; ++moves)
                    planner.Pop();
                })}));
}

void AddThread(uint32_t units, double seconds, BenchReport* report) {
  constexpr int kResident = 1000;
  ControlRig rig(units);
  for (int warm = 0; warm < 3; ++warm) rig.Step();
  std::vector<double> acquisitions, gradients, chunks, resident;
  RoundClock clock(seconds);
  do {
    const ControlRig::Seconds s = rig.Step();
    acquisitions.push_back(units / s.acquisitions);
    gradients.push_back(units / s.gradients);
    chunks.push_back(units / s.chunks);
    resident.push_back(rig.Resident(kResident) / kResident * 1e6);
  } while (clock.Another());
  const auto add = [&](const char* what, const char* unit, const std::vector<double>& rounds) {
    report->cases.push_back(
        MakeCase(fmt::format("{}, {} units", what, units), unit, {.own = rounds}));
  };
  add("chunks", "chunks/s", chunks);
  add("gradients", "gradients/s", gradients);
  add("acquisitions", "acquisitions/s", acquisitions);
  add("a resident unit", "us", resident);
}

}  // namespace

absl::StatusOr<BenchReport> BenchControl(const BenchOptions& options) {
  BenchReport report{.benchmark = "control", .setup = DetectBenchSetup(), .cases = {}, .notes = {}};
  report.setup.code_path = "the control thread alone";
  for (const uint32_t units : {256, 2048, 16'384}) AddThread(units, options.seconds / 6, &report);
  std::vector<int64_t> plans = {1000, 10'000, 100'000};
  constexpr double kForAMillion = 30;
  if (options.seconds >= kForAMillion) plans.push_back(1'000'000);
  for (const int64_t sizes : {1, 4}) {
    for (const int64_t units : plans) AddPlans(units, sizes, options.seconds / 16, &report);
  }
  report.notes = {
      "CPU time of one thread; drives, device and workers cost next to nothing here "
      "(docs/benchmarks.md, \"The control thread\")"};
  if (options.seconds < kForAMillion) {
    report.notes.push_back(
        fmt::format("plans for a million units too with --seconds {}", kForAMillion));
  }
  return report;
}

}  // namespace sluice::tools
