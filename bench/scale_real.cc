#include "bench/scale_real.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "comm/in_process.h"
#include "comm/ordered_reduce.h"
#include "core/clock.h"
#include "core/executor.h"
#include "core/memory_resource.h"
#include "core/sim_faults.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/direct_file.h"
#include "nvme/io_engine.h"
#include "offload/plan/placement.h"
#include "optim/adamw.h"
#include "optim/norm.h"

namespace sluice {

namespace {

const SteadyClock kClock;

// Memory of a thread's own on huge pages, as a runtime's is.
template <typename T>
class Touched {
 public:
  Touched(size_t n, T value) {
    auto memory = resource_.Allocate(Bytes(static_cast<int64_t>(n * sizeof(T))), kSlotAlignment);
    SLUICE_CHECK_MSG(memory.ok(), Message(memory.status()));
    memory_ = *memory;
    values_ = {reinterpret_cast<T*>(memory_.data()), n};
    std::ranges::fill(values_, value);
  }
  ~Touched() { resource_.Deallocate(memory_); }
  Touched(const Touched&) = delete;
  Touched& operator=(const Touched&) = delete;
  T* data() const { return values_.data(); }
  std::span<T> values() const { return values_; }

 private:
  HugePageResource resource_;
  MemoryView memory_;
  std::span<T> values_;
};

// Amounts a second of one thread, while as many as `threads` do the same, each on its own: `make`
// is called on each thread, and what it returns again and again, for about `seconds`.
double RateOf(int threads, double amount, const std::function<std::function<void()>()>& make,
              double seconds = 0.12) {
  std::atomic<int> there{0};
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> all;
  all.reserve(rates.size());
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      const std::function<void()> work = make();
      const ScopedFlushDenormals flush;
      work();
      ++there;
      while (there.load() < threads) std::this_thread::yield();
      const TimePoint begin = kClock.Now();
      double done = 0;
      while (Seconds(kClock.Now() - begin) < seconds) {
        work();
        done += amount;
      }
      rates[static_cast<size_t>(t)] = done / Seconds(kClock.Now() - begin);
    });
  }
  for (std::thread& thread : all) thread.join();
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum / threads;
}

constexpr size_t kElements = size_t{1} << 22;

std::function<void()> UpdateWork(bool sums) {
  struct All {
    Touched<float> states{3 * kElements, 0.5F};
    Touched<uint16_t> grads{kElements, 0x3a3a};
    Touched<uint16_t> params{kElements, 0};
  };
  const auto all = std::make_shared<All>();
  return [all, sums, coefficients = MakeCoefficients(AdamWHyper(), 1, 1.0F)] {
    StripeSums before, after;
    for (size_t at = 0; at + 4096 <= kElements; at += 4096) {
      const auto part = [&](size_t field) {
        return all->states.values().subspan(field * kElements + at, 4096);
      };
      AdamWSpans spans{.master = part(0),
                       .exp_avg = part(1),
                       .exp_avg_sq = part(2),
                       .grad = all->grads.data() + at,
                       .grad_type = FloatType::kBf16,
                       .param_out = all->params.data() + at,
                       .param_type = FloatType::kBf16};
      if (sums)
        spans.sums = {&before, &after, {0, 4096 / kStripeElements, 2 * (4096 / kStripeElements)}};
      AdamWUpdate(coefficients, spans);
    }
  };
}

std::function<void()> CopyWork(bool squares) {
  struct All {
    Touched<uint16_t> from{kElements, 0x3a3a};
    Touched<uint16_t> to{kElements, 0};
    double sum = 0;
  };
  const auto all = std::make_shared<All>();
  return [all, squares] {
    for (size_t at = 0; at + 4096 <= kElements; at += 4096) {
      std::memcpy(all->to.data() + at, all->from.data() + at, 8192);
      if (squares) all->sum += CellSquareSum(all->to.data() + at, FloatType::kBf16, 4096);
    }
  };
}

std::function<void()> SumWork() {
  const auto all = std::make_shared<Touched<uint16_t>>(2 * kElements, uint16_t{0x3a3a});
  return [all] {
    const void* const from[] = {all->data(), all->data() + kElements};
    OrderedSum(from, FloatType::kBf16, 0.5F, all->data(), FloatType::kBf16, kElements);
  };
}

// Sleeps until woken.
class Bell final : public Waker, public Event {
 public:
  Bell() { inbox_.SetWaker(this); }
  void Wake() override {
    rings_.fetch_add(1);
    rings_.notify_one();
  }
  void Handle() override { ended_ = true; }
  void Call(Communicator* communicator, CommOp* op) {
    op->inbox = &inbox_;
    op->event = this;
    ended_ = false;
    communicator->Enqueue(op);
    while (!ended_) {
      const int seen = rings_.load();
      if (!inbox_.HandleAll()) rings_.wait(seen);
    }
  }

 private:
  std::atomic<int> rings_{0};
  Inbox inbox_;
  bool ended_ = false;
};

// Of an operation between two ranks, each of which sends so many bytes to the other.
double SecondsOfExchange(size_t bytes, int calls) {
  auto group = MakeInProcessRanks(2, {}, &kClock);
  SLUICE_CHECK(group.ok());
  double seconds = 0;
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      const Touched<std::byte> from(bytes, std::byte{1}), to(bytes, std::byte{2});
      std::vector<ConstMemoryView> send(2);
      std::vector<MemoryView> receive(2);
      send[1 - r] = from.values();
      receive[1 - r] = to.values();
      const std::vector<uint32_t> ends = EndsOfOneEach(2);
      CommOp op;
      op.kind = CommKind::kAllToAll;
      op.send = {send, ends};
      op.receive = {receive, ends};
      Bell bell;
      bell.Call((*group)[r].get(), &op);
      const TimePoint begin = kClock.Now();
      for (int i = 0; i < calls; ++i) bell.Call((*group)[r].get(), &op);
      if (r == 0) seconds = Seconds(kClock.Now() - begin) / calls;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return seconds;
}

// A program's side that waits in real time.
class RealHost final : public ScriptHost {
 public:
  explicit RealHost(OffloadRuntime* runtime) : runtime_(runtime) {}
  TimePoint Now() const override { return kClock.Now(); }
  bool AwaitTicket(Ticket ticket) override {
    std::optional<absl::Status> result;
    while (!result) result = runtime_->Wait(ticket, std::chrono::seconds(60));
    status_ = *std::move(result);
    return true;
  }
  bool AwaitTime(Nanos time) override {
    std::this_thread::sleep_until(std::chrono::steady_clock::time_point(kClock.Now() + time));
    return true;
  }
  absl::Status TakeStatus() override { return std::move(status_); }

 private:
  OffloadRuntime* const runtime_;
  absl::Status status_;
};

std::vector<RankLinks> LinksOf(uint32_t ranks) {
  std::vector<RankLinks> links(ranks);
  if (ranks == 1) return links;
  for (auto which : {&RankLinks::agreement, &RankLinks::gradients, &RankLinks::gathers}) {
    auto group = MakeInProcessRanks(ranks, {.timeout = std::chrono::seconds(60)}, &kClock);
    SLUICE_CHECK(group.ok());
    for (uint32_t r = 0; r < ranks; ++r) links[r].*which = std::move((*group)[r]);
  }
  return links;
}

}  // namespace

MeasuredRates MeasureCores(int threads) {
  MeasuredRates rates;
  constexpr auto kAll = static_cast<double>(kElements);
  rates.update = RateOf(threads, kAll, [] { return UpdateWork(false); });
  rates.stream = RateOf(threads, kAll, [] { return UpdateWork(true); });
  rates.copy = RateOf(threads, 2 * kAll, [] { return CopyWork(false); });
  rates.take = RateOf(threads, kAll, [] { return CopyWork(true); });
  rates.sum = RateOf(threads, 2 * kAll, [] { return SumWork(); });
  constexpr size_t kExchanged = size_t{4} << 20;
  rates.exchange = static_cast<double>(kExchanged) / SecondsOfExchange(kExchanged, 40);
  rates.round = SecondsOfExchange(256, 1000);
  return rates;
}

absl::StatusOr<double> MeasureDrive(const std::string& directory, Bytes block, uint32_t depth,
                                    double seconds) {
  constexpr uint64_t kBlocks = 640;
  SLUICE_ASSIGN_OR_RETURN(
      const DirectFile file,
      DirectFile::CreateUnnamed(directory, block * static_cast<int64_t>(kBlocks)));
  const Touched<std::byte> memory(block.size() * depth, std::byte{1});
  const MemoryView arenas[] = {memory.values()};
  SteadyClock clock;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<IoEngine> engine,
                          MakeIoEngine(IoEngineKind::kAuto, std::span(&file, 1), arenas,
                                       {.in_flight_max = depth}, &clock));
  std::vector<IoOp> ops(depth);
  std::vector<IoOp*> idle, done(depth);
  for (uint32_t i = 0; i < depth; ++i) {
    ops[i].file = FileIndex(0);
    ops[i].memory = memory.values().subspan(i * block.size(), block.size());
    idle.push_back(&ops[i]);
  }
  uint64_t started = 0, ended = 0, random = 1;
  std::vector<bool> busy(kBlocks);  // by block
  const auto turn = [&](bool fill) -> absl::Status {
    while (!idle.empty() && (!fill || started < kBlocks)) {
      uint64_t at = started % kBlocks;
      while (!fill && busy[at = NextRandom(&random) % kBlocks]) {
      }
      IoOp* const op = idle.back();
      op->kind = fill || started % 2 == 1 ? IoKind::kWrite : IoKind::kRead;
      op->offset = FileOffset(static_cast<int64_t>(at) * block.value());
      if (engine->Submit(std::span(&op, 1)) == 0) break;
      busy[at] = true;
      idle.pop_back();
      ++started;
    }
    const size_t n = engine->Poll(done, kForever);
    for (IoOp* const op : std::span(done).first(n)) {
      SLUICE_RETURN_IF_ERROR(op->status);
      busy[static_cast<size_t>(op->offset.value() / block.value())] = false;
      idle.push_back(op);
      ++ended;
    }
    return absl::OkStatus();
  };
  while (ended < kBlocks) SLUICE_RETURN_IF_ERROR(turn(true));
  const TimePoint begin = kClock.Now();
  const uint64_t before = ended;
  while (Seconds(kClock.Now() - begin) < seconds) SLUICE_RETURN_IF_ERROR(turn(false));
  const double rate = static_cast<double>((block * static_cast<int64_t>(ended - before)).value()) /
                      Seconds(kClock.Now() - begin);
  SLUICE_RETURN_IF_ERROR(engine->Close());
  return rate;
}

absl::StatusOr<std::vector<TrainingTimes>> TrainReally(const ModelSpec& spec,
                                                       const RuntimeConfig& config, uint32_t ranks,
                                                       const TrainingScript& script) {
  std::vector<RankLinks> links = LinksOf(ranks);
  std::vector<TrainingTimes> times(ranks);
  std::vector<absl::Status> statuses(ranks);
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      RuntimeConfig of_rank = config;
      of_rank.sharding.rank = Rank(r);
      of_rank.sharding.ranks = ranks;
      auto runtime = MakeRuntime(spec, of_rank, std::move(links[r]));
      if (!runtime.ok()) {
        statuses[r] = runtime.status();
        return;
      }
      RealHost host(runtime->get());
      Script program = Train(runtime->get(), script, &host, &times[r]);
      program.Resume();
      SLUICE_CHECK(program.done());
      statuses[r] = program.status();
      const absl::Status closed = OffloadRuntime::Close(*std::move(runtime));
      if (statuses[r].ok()) statuses[r] = closed;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) SLUICE_RETURN_IF_ERROR(status);
  return times;
}

}  // namespace sluice
