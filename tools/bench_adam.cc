// `sluice bench adam`: the optimizer's arithmetic. Parameters a second of the fused AdamW with fp32
// states, bf16 gradient in and bf16 parameters out, chunk by chunk as the runtime does it (the
// three states of a chunk lie side by side, all on huge pages), with and without the checksums of
// its pieces before and after. The limit is the best loop of tools/touch.h, each thread on memory
// of its own.
//
// All of them take turns. Time is a thread's CPU time, that of the slowest thread: waiting for
// memory is in it, waiting for a core that another process has is not.

#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <ctime>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/budget.h"
#include "core/checksum.h"
#include "core/executor.h"
#include "core/status.h"
#include "fmt/format.h"
#include "optim/adamw.h"
#include "optim/convert.h"
#include "optim/norm.h"
#include "tools/bench_cases.h"
#include "tools/touch.h"

namespace sluice::tools {
namespace {

constexpr int64_t kFromMemory = int64_t{16}
                                << 20;  // elements of a thread: far more than caches hold
constexpr int64_t kChunk = 40960;
constexpr int64_t kCachedChunk = 8192;

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
    std::vector<float> some(4096);
    for (float& x : some) x = uniform(random);
    const auto states = states_.values();
    for (size_t i = 0; i < states.size(); ++i) states[i] = some[i % some.size()];
    const auto grads = grads_.values();
    for (size_t i = 0; i < grads.size(); ++i)
      grads[i] = FromFloat(some[i % some.size()], FloatType::kBf16);
    std::ranges::fill(params_.values(), uint16_t{1});
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
      Keep(pieces.Checksum(before, block, 1, p));
      Keep(pieces.Checksum(after, block, 2, p));
    }
  });
  return works;
}
constexpr size_t kAdamW = std::size(kTouchWays);
constexpr size_t kChecksummed = kAdamW + 1;

// By work and round: the slowest thread's seconds for each of its elements.
struct AdamRounds {
  std::vector<std::vector<double>> seconds;

  size_t BestLimit() const {
    size_t best = 0;
    for (size_t w = 1; w < kAdamW; ++w) {
      if (Median(seconds[w]) < Median(seconds[best])) best = w;
    }
    return best;
  }
};

AdamRounds MeasureAdam(size_t threads, int64_t elements, int64_t chunk, double seconds) {
  const std::vector<Work> works = Works();
  AdamRounds rounds{.seconds = std::vector<std::vector<double>>(works.size())};
  std::vector<std::vector<double>> own(threads, std::vector<double>(works.size()));
  std::barrier together(static_cast<std::ptrdiff_t>(threads));
  RoundClock clock(seconds);
  bool more = true;  // written by the first thread between barriers
  const auto run = [&](size_t thread) {
    const ScopedFlushDenormals flush;
    const Shard shard(elements, chunk);
    // Work in a cache is short: repeated, it can be timed.
    const size_t repetitions = std::max<size_t>(1, (size_t{4} << 20) / shard.elements());
    while (more) {
      for (size_t w = 0; w < works.size(); ++w) {
        together.arrive_and_wait();
        const double begin = ThreadCpuSeconds();
        for (size_t r = 0; r < repetitions; ++r) {
          for (size_t i = 0; i < shard.chunks(); ++i) works[w](shard, i);
        }
        own[thread][w] =
            (ThreadCpuSeconds() - begin) / static_cast<double>(repetitions * shard.elements());
      }
      together.arrive_and_wait();
      if (thread == 0) {
        for (size_t w = 0; w < works.size(); ++w) {
          double slowest = 0;
          for (const std::vector<double>& of : own) slowest = std::max(slowest, of[w]);
          rounds.seconds[w].push_back(slowest);
        }
        more = clock.Another();
      }
      together.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& t : others) t.join();
  return rounds;
}

// Billions of parameters a second, by round.
std::vector<double> Rates(const std::vector<double>& seconds, size_t threads) {
  std::vector<double> rates;
  rates.reserve(seconds.size());
  for (const double s : seconds) rates.push_back(static_cast<double>(threads) / s / 1e9);
  return rates;
}

void AddAdam(size_t threads, int64_t elements, bool cached, double seconds, BenchReport* report) {
  const AdamRounds rounds = cached
                                ? MeasureAdam(threads, kCachedChunk, kCachedChunk, seconds)
                                : MeasureAdam(threads, elements / kChunk * kChunk, kChunk, seconds);
  const size_t best = rounds.BestLimit();
  const std::pair<const char*, size_t> works[] = {{"update", kAdamW},
                                                  {"update with checksums", kChecksummed}};
  for (const auto& [name, work] : works) {
    BenchCase one = MakeCase(
        fmt::format("{}, {}, {}", name, cached ? "in cache" : "from memory", CoresText(threads)),
        "Gparam/s",
        {.own = Rates(rounds.seconds[work], threads),
         .limit = Rates(rounds.seconds[best], threads),
         .peer = {}});
    one.limit_is = fmt::format(
        "the best of {} loops over the same memory that add 1 to all that an update reads and "
        "writes, 28 bytes a parameter: {}",
        std::size(kTouchWays), Name(kTouchWays[best]));
    report->cases.push_back(std::move(one));
  }
}

// Billions of elements a second, by type, of one core, in cache.
template <typename Pass>
void AddPass(const char* name, FloatType type, double seconds, BenchReport* report, Pass pass) {
  constexpr int kPasses = 2000;
  std::vector<double> rates;
  RoundClock clock(seconds);
  do {
    const double begin = ThreadCpuSeconds();
    for (int i = 0; i < kPasses; ++i) pass();
    rates.push_back(kPasses * static_cast<double>(kCellElements) / (ThreadCpuSeconds() - begin) /
                    1e9);
  } while (clock.Another());
  report->cases.push_back(
      MakeCase(fmt::format(fmt::runtime(name), Name(type)), "Gelements/s", {.own = rates}));
}

void AddPasses(double seconds, BenchReport* report) {
  alignas(64) static float wide[kCellElements];
  alignas(64) static uint16_t narrow[kCellElements];
  std::ranges::fill(wide, 1.5F);
  for (const FloatType type : {FloatType::kF32, FloatType::kBf16, FloatType::kF16}) {
    std::vector<std::byte> values(kCellElements * sizeof(float));
    AddPass("square sum of {}, in cache, 1 core", type, seconds / 5, report,
            [&] { Keep(CellSquareSum(values.data(), type, kCellElements)); });
  }
  for (const FloatType type : {FloatType::kBf16, FloatType::kF16}) {
    AddPass("fp32 to {} and back, in cache, 1 core", type, seconds / 5, report, [&] {
      Convert(wide, FloatType::kF32, narrow, type, kCellElements);
      Convert(narrow, type, wide, FloatType::kF32, kCellElements);
      Keep(wide);
    });
  }
}

}  // namespace

absl::StatusOr<BenchReport> BenchAdam(const BenchOptions& options) {
  BenchReport report{.benchmark = "adam", .setup = DetectBenchSetup(), .cases = {}, .notes = {}};
  report.setup.code_path = VectorTarget();
  const auto cores = static_cast<size_t>(report.setup.cores);
  SLUICE_ASSIGN_OR_RETURN(const MemoryLimits memory, ReadMemoryLimits());
  constexpr int64_t kBytesAnElement = 16;  // 28 are read and written, of 16
  const int64_t room = memory.available().value() / 2 / kBytesAnElement;
  const int64_t elements = std::min(kFromMemory, room / static_cast<int64_t>(cores));
  if (elements < kFromMemory) {
    if (elements < kChunk)
      return absl::ResourceExhaustedError("half of the available memory is too little for this");
    report.notes.push_back(fmt::format(
        "{} parameters a core, for want of memory: caches may hold more of it", elements));
  }
  std::vector<size_t> counts = {1};
  if (cores > 1) counts.push_back(cores);
  const double part = options.seconds / (2.0 * static_cast<double>(counts.size()) + 0.5);
  for (const size_t threads : counts) {
    for (const bool cached : {false, true}) AddAdam(threads, elements, cached, part, &report);
  }
  AddPasses(part / 2, &report);
  return report;
}

}  // namespace sluice::tools
