// bench/optim_bench.cc
//
// The optimizer's arithmetic: parameters a second of the fused AdamW with fp32 states, bf16
// gradient in and bf16 parameters out, chunk by chunk as the runtime does it (the three states of a
// chunk lie side by side), with and without the checksum before and after. `Touch` reads and writes
// the same bytes with one addition each: the limit that a run's figures are to be compared with.

#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "core/checksum.h"
#include "core/executor.h"
#include "optim/adamw.h"
#include "optim/convert.h"
#include "optim/norm.h"

namespace sluice {
namespace {

constexpr int64_t kInCache = 8192;
constexpr int64_t kFromDram = int64_t{16} << 20;

// What one thread updates: chunks of master, exp_avg, exp_avg_sq; gradients; parameters.
class Shard {
 public:
  Shard(int64_t elements, int64_t chunk)
      : chunk_(static_cast<size_t>(chunk)),
        chunks_(static_cast<size_t>(elements / chunk)),
        states_(3 * chunk_ * chunks_),
        grads_(chunk_ * chunks_),
        params_(chunk_ * chunks_) {
    std::minstd_rand random(1);
    std::uniform_real_distribution<float> uniform(0.5F, 1.0F);
    for (float& x : states_) x = uniform(random);
    for (uint16_t& g : grads_) g = FromFloat(uniform(random), FloatType::kBf16);
  }

  size_t chunks() const { return chunks_; }
  int64_t elements() const { return static_cast<int64_t>(grads_.size()); }
  std::span<float> states(size_t i) {
    return std::span(states_).subspan(3 * chunk_ * i, 3 * chunk_);
  }
  std::span<uint16_t> grads(size_t i) { return std::span(grads_).subspan(chunk_ * i, chunk_); }
  std::span<uint16_t> params(size_t i) { return std::span(params_).subspan(chunk_ * i, chunk_); }

  AdamWSpans spans(size_t i) {
    const std::span<float> all = states(i);
    return {.master = all.subspan(0, chunk_),
            .exp_avg = all.subspan(chunk_, chunk_),
            .exp_avg_sq = all.subspan(2 * chunk_, chunk_),
            .grad = grads(i).data(),
            .grad_type = FloatType::kBf16,
            .param_out = params(i).data(),
            .param_type = FloatType::kBf16};
  }

 private:
  size_t chunk_;
  size_t chunks_;
  std::vector<float> states_;
  std::vector<uint16_t> grads_;
  std::vector<uint16_t> params_;
};

void CountParameters(benchmark::State& state, int64_t elements) {
  state.SetItemsProcessed(state.iterations() * elements);
  state.SetBytesProcessed(state.iterations() * elements * 28);
}

// Arguments: elements of each thread, elements of a chunk.
void AdamW(benchmark::State& state) {
  const ScopedFlushDenormals flush;
  Shard shard(state.range(0), state.range(1));
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 1, 1.0F);
  for (auto _ : state) {
    for (size_t i = 0; i < shard.chunks(); ++i) AdamWUpdate(coefficients, shard.spans(i));
    benchmark::ClobberMemory();
  }
  CountParameters(state, shard.elements());
  state.SetLabel(VectorTarget());
}

void AdamWChecksummed(benchmark::State& state) {
  const ScopedFlushDenormals flush;
  Shard shard(state.range(0), state.range(1));
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 1, 1.0F);
  for (auto _ : state) {
    for (size_t i = 0; i < shard.chunks(); ++i) {
      const auto bytes = std::as_bytes(shard.states(i));
      const BlockIndex block(static_cast<uint32_t>(i));
      benchmark::DoNotOptimize(SeededChecksum(bytes, block, 1));
      AdamWUpdate(coefficients, shard.spans(i));
      benchmark::DoNotOptimize(SeededChecksum(bytes, block, 2));
    }
  }
  CountParameters(state, shard.elements());
  state.SetLabel(VectorTarget());
}

void Touch(benchmark::State& state) {
  Shard shard(state.range(0), state.range(1));
  for (auto _ : state) {
    for (size_t i = 0; i < shard.chunks(); ++i) {
      for (float& x : shard.states(i)) x += 1.0F;
      const std::span<uint16_t> grads = shard.grads(i);
      uint16_t* params = shard.params(i).data();
      for (uint16_t g : grads) *params++ = static_cast<uint16_t>(g + 1);
    }
    benchmark::ClobberMemory();
  }
  CountParameters(state, shard.elements());
}

void Shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"elements", "chunk"});
  b->Args({kInCache, kInCache});
  b->Args({kFromDram, kInCache});
  b->Args({kFromDram, 5 * kInCache});
  for (int threads : {1, 2}) b->Threads(threads);
  b->UseRealTime();
}
BENCHMARK(AdamW)->Apply(Shapes);
BENCHMARK(AdamWChecksummed)->Apply(Shapes);
BENCHMARK(Touch)->Apply(Shapes);

// Square sums of one cell, by type.
void SquareSum(benchmark::State& state) {
  const auto type = static_cast<FloatType>(state.range(0));
  const std::array<std::byte, kCellElements* 4> values = {};
  for (auto _ : state) {
    benchmark::DoNotOptimize(CellSquareSum(values.data(), type, kCellElements));
  }
  state.SetItemsProcessed(state.iterations() * kCellElements);
  state.SetLabel(Name(type));
}
BENCHMARK(SquareSum)->DenseRange(0, 2);

// One cell from fp32 to a 16-bit type, and back.
void ConvertCell(benchmark::State& state) {
  const auto type = static_cast<FloatType>(state.range(0));
  std::vector<float> values(kCellElements, 1.5F);
  std::vector<uint16_t> narrow(kCellElements);
  for (auto _ : state) {
    Convert(values.data(), FloatType::kF32, narrow.data(), type, kCellElements);
    Convert(narrow.data(), type, values.data(), FloatType::kF32, kCellElements);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kCellElements * 2);
  state.SetLabel(Name(type));
}
BENCHMARK(ConvertCell)->DenseRange(1, 2);

}  // namespace
}  // namespace sluice

BENCHMARK_MAIN();
