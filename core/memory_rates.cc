#include "core/memory_rates.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

#include "core/clock.h"
#include "core/numa.h"
#include "core/status.h"

namespace sluice {

namespace {

constexpr size_t kLine = 64;

// The compiler must take `value` to be used.
template <typename T>
void Use(T value) {
  asm volatile("" : : "r"(value) : "memory");
}

uint64_t SumOf(ConstMemoryView memory) {
  const auto* const words = reinterpret_cast<const uint64_t*>(memory.data());
  uint64_t sums[8] = {};
  for (size_t i = 0; i < memory.size() / sizeof(uint64_t); i += std::size(sums)) {
    for (size_t j = 0; j < std::size(sums); ++j) sums[j] += words[i + j];
  }
  return std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
}

}  // namespace

absl::StatusOr<MemoryRates> MemoryRates::Create(const Options& options) {
  SLUICE_CHECK(!options.cores.empty() && options.threads > 0);
  MemoryRates rates(options);
  rates.options_.bytes_of_thread = RoundUp(options.bytes_of_thread, MiB(2));
  const ScopedNumaBinding binding({.node = options.node, .cores = options.cores, .reason = ""});
  for (int i = 0; i < options.threads; ++i) {
    SLUICE_ASSIGN_OR_RETURN(Arena arena,
                            Arena::Create(rates.resource_.get(), rates.options_.bytes_of_thread));
    if (options.node && i == 0) rates.share_on_node_ = ShareOnNode(arena.memory(), *options.node);
    rates.arenas_.push_back(std::move(arena));
  }
  return rates;
}

// From when all threads are there until the last has done its part.
template <typename Work>
double MemoryRates::Rate(Work work) {
  const ScopedNumaBinding binding({.node = options_.node, .cores = options_.cores, .reason = ""});
  const SteadyClock clock;
  std::barrier together(options_.threads + 1);
  std::atomic<int64_t> bytes{0};
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(options_.threads));
  for (int i = 0; i < options_.threads; ++i) {
    threads.emplace_back([&, i] {
      together.arrive_and_wait();
      bytes += work(arenas_[static_cast<size_t>(i)].memory());
      together.arrive_and_wait();
    });
  }
  together.arrive_and_wait();
  const TimePoint begin = clock.Now();
  together.arrive_and_wait();
  const double seconds = Seconds(clock.Now() - begin);
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(bytes.load()) / seconds;
}

double MemoryRates::Read() {
  return Rate([](MemoryView memory) {
    Use(SumOf(memory));
    return static_cast<int64_t>(memory.size());
  });
}

double MemoryRates::Write() {
  chained_ = false;
  return Rate([](MemoryView memory) {
    std::memset(memory.data(), 1, memory.size());
    Use(memory.data());
    return static_cast<int64_t>(memory.size());
  });
}

double MemoryRates::Copy() {
  chained_ = false;
  return Rate([](MemoryView memory) {
    const size_t half = memory.size() / 2;
    std::memcpy(memory.data() + half, memory.data(), half);
    Use(memory.data());
    return static_cast<int64_t>(half);
  });
}

double MemoryRates::Latency() {
  const ScopedNumaBinding binding({.node = options_.node, .cores = options_.cores, .reason = ""});
  const MemoryView memory = arenas_.front().memory();
  const size_t lines = memory.size() / kLine;
  const auto next = [&memory](size_t line) -> uint64_t& {
    return *reinterpret_cast<uint64_t*>(memory.data() + line * kLine);
  };
  if (!chained_) {  // one ring through all lines, in random order
    std::vector<uint32_t> order(lines);
    std::iota(order.begin(), order.end(), 0U);
    std::shuffle(order.begin() + 1, order.end(), std::minstd_rand(1));
    for (size_t i = 0; i < lines; ++i) next(order[i]) = order[(i + 1) % lines];
    chained_ = true;
  }
  constexpr int kSteps = 200'000;
  uint64_t at = 0;
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  for (int i = 0; i < kSteps; ++i) at = next(at);
  Use(at);
  return Seconds(clock.Now() - begin) / kSteps;
}

}  // namespace sluice
