// bench/optim_bench.cc
//
// The optimizer's arithmetic: parameters a second of the fused AdamW with fp32 states, bf16
// gradient in and bf16 parameters out, chunk by chunk as the runtime does it (the three states of a
// chunk lie side by side, all on huge pages), with and without the checksums of its pieces before
// and after. Their shares are of the best loop of bench/touch.h, each thread on memory of its own.
//
// All of them take turns, many times over, and medians count. Time is a thread's CPU time, that of
// the slowest thread: waiting for memory is in it, waiting for a core that another process has is
// not.

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <cstdint>
#include <ctime>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "bench/touch.h"
#include "core/checksum.h"
#include "core/executor.h"
#include "core/status.h"
#include "optim/adamw.h"
#include "optim/convert.h"
#include "optim/norm.h"

namespace sluice {
namespace {

constexpr int64_t kFromDram = int64_t{16} << 20;
constexpr size_t kRounds = 15;

// Zeroed values on huge pages where the system has them.
template <typename T>
class HugeArray {
 public:
  explicit HugeArray(size_t n) : bytes_((n * sizeof(T) + kHuge - 1) / kHuge * kHuge + kHuge) {
    mapping_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SLUICE_CHECK(mapping_ != MAP_FAILED);
    const uintptr_t start = (reinterpret_cast<uintptr_t>(mapping_) + kHuge - 1) / kHuge * kHuge;
    madvise(reinterpret_cast<void*>(start), bytes_ - kHuge, MADV_HUGEPAGE);
    values_ = {reinterpret_cast<T*>(start), n};
  }
  ~HugeArray() { munmap(mapping_, bytes_); }
  HugeArray(const HugeArray&) = delete;
  HugeArray& operator=(const HugeArray&) = delete;
  std::span<T> values() const { return values_; }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  const size_t bytes_;
  void* mapping_;
  std::span<T> values_;
};

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
    for (float& x : states_.values()) x = uniform(random);
    for (uint16_t& g : grads_.values()) g = FromFloat(uniform(random), FloatType::kBf16);
    for (uint16_t& p : params_.values()) p = 1;
  }

  size_t chunks() const { return chunks_; }
  size_t elements() const { return chunk_ * chunks_; }
  std::span<float> states(size_t i) const {
    return states_.values().subspan(3 * chunk_ * i, 3 * chunk_);
  }
  std::span<uint16_t> grads(size_t i) const { return grads_.values().subspan(chunk_ * i, chunk_); }
  std::span<uint16_t> params(size_t i) const {
    return params_.values().subspan(chunk_ * i, chunk_);
  }

  AdamWSpans spans(size_t i) const {
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
  const size_t chunk_;
  const size_t chunks_;
  const HugeArray<float> states_;
  const HugeArray<uint16_t> grads_;
  const HugeArray<uint16_t> params_;
};

AdamWSpans Part(AdamWSpans all, size_t first, size_t n) {
  all.master = all.master.subspan(first, n);
  all.exp_avg = all.exp_avg.subspan(first, n);
  all.exp_avg_sq = all.exp_avg_sq.subspan(first, n);
  all.grad = static_cast<const uint16_t*>(all.grad) + first;
  all.param_out = static_cast<uint16_t*>(all.param_out) + first;
  return all;
}

// One chunk's work, in each way that is compared.
using Work = std::function<void(const Shard&, size_t)>;

std::vector<Work> Works() {
  std::vector<Work> works;
  for (const TouchWay way : kTouchWays) {
    works.emplace_back([way](const Shard& shard, size_t i) {
      Touch(way, shard.states(i), shard.grads(i), shard.params(i).data());
    });
  }
  const AdamWCoefficients coefficients = MakeCoefficients(AdamWHyper(), 1, 1.0F);
  works.emplace_back(
      [coefficients](const Shard& shard, size_t i) { AdamWUpdate(coefficients, shard.spans(i)); });
  works.emplace_back([coefficients](const Shard& shard, size_t i) {
    const BlockPieces pieces(Bytes(static_cast<int64_t>(shard.states(i).size_bytes())), 3);
    const BlockIndex block(static_cast<uint32_t>(i));
    const size_t stripes = pieces.column_stripes();
    for (uint32_t p = 0; p < pieces.count(); ++p) {
      StripeSums before, after;
      AdamWSpans spans =
          Part(shard.spans(i), pieces.begin(p, 0) / sizeof(float), pieces.size(p) / sizeof(float));
      spans.sums = {.before = &before, .after = &after, .stripe = {0, stripes, 2 * stripes}};
      AdamWUpdate(coefficients, spans);
      benchmark::DoNotOptimize(pieces.Checksum(before, block, 1, p));
      benchmark::DoNotOptimize(pieces.Checksum(after, block, 2, p));
    }
  });
  return works;
}
constexpr size_t kAdamW = std::size(kTouchWays);
constexpr size_t kChecksummed = kAdamW + 1;

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + kRounds / 2, values.end());
  return values[kRounds / 2];
}

// Arguments: threads, elements of each, elements of a chunk.
void AdamW(benchmark::State& state) {
  const auto threads = static_cast<size_t>(state.range(0));
  const std::vector<Work> works = Works();
  // By work and round: the slowest thread's seconds for each of its elements.
  std::vector<std::vector<double>> times(works.size(), std::vector<double>(kRounds));
  std::vector<std::vector<double>> own(threads, std::vector<double>(works.size()));
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  const auto run = [&](size_t thread) {
    const ScopedFlushDenormals flush;
    const Shard shard(state.range(1), state.range(2));
    // Work in a cache is short: repeated, it can be timed.
    const size_t repetitions = std::max<size_t>(1, (size_t{4} << 20) / shard.elements());
    for (size_t round = 0; round < kRounds; ++round) {
      for (size_t w = 0; w < works.size(); ++w) {
        together.arrive_and_wait();
        const double begin = CpuSeconds();
        for (size_t r = 0; r < repetitions; ++r) {
          for (size_t i = 0; i < shard.chunks(); ++i) works[w](shard, i);
        }
        own[thread][w] =
            (CpuSeconds() - begin) / static_cast<double>(repetitions * shard.elements());
      }
      together.arrive_and_wait();
      if (thread == 0) {
        for (size_t w = 0; w < works.size(); ++w) {
          for (const std::vector<double>& of : own)
            times[w][round] = std::max(times[w][round], of[w]);
        }
      }
    }
  };
  for (auto _ : state) {
    std::vector<std::thread> others;
    for (size_t t = 1; t < threads; ++t) others.emplace_back(run, t);
    run(0);
    for (std::thread& t : others) t.join();
  }
  size_t best = 0;
  for (size_t w = 1; w < kAdamW; ++w) {
    if (Median(times[w]) < Median(times[best])) best = w;
  }
  const auto share = [&](size_t work) {
    std::vector<double> shares(kRounds);
    for (size_t r = 0; r < kRounds; ++r) shares[r] = times[best][r] / times[work][r];
    return Median(shares);
  };
  constexpr double kBytes = 28;  // read and written
  const auto count = static_cast<double>(threads);
  state.counters["Gparam/s"] = count / Median(times[kAdamW]) / 1e9;
  state.counters["limit_GB/s"] = kBytes * count / Median(times[best]) / 1e9;
  state.counters["of_limit"] = share(kAdamW);
  state.counters["checksummed_of_limit"] = share(kChecksummed);
  state.counters["of_plain_limit"] = Median(times[0]) / Median(times[kAdamW]);
  state.SetLabel(std::string(VectorTarget()) + ", limit: " + Name(kTouchWays[best]));
}

void Shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"threads", "elements", "chunk"});
  const int64_t cores = std::max(1U, std::thread::hardware_concurrency());
  for (int64_t threads = 1;; threads = std::min(2 * threads, cores)) {
    for (const int64_t chunk : {8192, 40960}) {
      b->Args({threads, chunk, chunk});  // stays in cache
      b->Args({threads, kFromDram, chunk});
    }
    if (threads == cores) break;
  }
  b->Iterations(1)->UseRealTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK(AdamW)->Apply(Shapes);

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
