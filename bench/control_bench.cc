// bench/control_bench.cc
//
// What the control plane costs by itself: planning.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "core/types.h"
#include "offload/plan/cache_segments.h"
#include "offload/plan/schedule.h"
#include "offload/plan/trace.h"

namespace sluice {
namespace {

// ---- Plans

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

void PlanShapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"units", "sizes"});
  for (const int64_t sizes : {1, 4}) {
    for (const int64_t units : {1000, 10'000, 100'000, 1'000'000}) b->Args({units, sizes});
  }
  b->Unit(benchmark::kMillisecond);
}

// A whole iteration and the forward of the next, from an empty cache.
void PlanAll(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1));
  Planner planner(problem.unit_bytes);
  const SegmentList empty(problem.capacity);
  int64_t moves = 0;
  for (auto _ : state) {
    planner.Begin({.trace = &problem.trace}, empty, [](UnitIndex) { return false; });
    for (; planner.Next() != nullptr; planner.Pop()) ++moves;
  }
  state.counters["moves"] = static_cast<double>(moves) / static_cast<double>(state.iterations());
  state.counters["s_per_move"] = benchmark::Counter(
      static_cast<double>(moves), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(PlanAll)->Apply(PlanShapes);

// A departure in the middle of forward: planned anew, with the cache full, as far as eight moves.
void PlanAnew(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1));
  Planner planner(problem.unit_bytes);
  SegmentList segments(problem.capacity);
  SegmentList::Place rest = segments.first();
  size_t held = 0;
  while (rest != SegmentList::kNone && segments.at(rest).size >= problem.unit_bytes[held]) {
    const UnitIndex unit(static_cast<uint32_t>(held));
    const SegmentList::Place place = segments.Put(rest, rest, unit, problem.unit_bytes[held++]);
    rest = segments.at(place).after;
  }
  for (auto _ : state) {
    planner.Begin({.trace = &problem.trace, .happened = held / 2}, segments,
                  [&](UnitIndex unit) { return unit.value() == held / 2; });
    for (int moves = 0; moves < 8 && planner.Next() != nullptr; ++moves) planner.Pop();
  }
}
BENCHMARK(PlanAnew)->Apply(PlanShapes);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
