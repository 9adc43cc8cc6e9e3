// Communicators: what large collectives in one process move against a plain loop of memcpy, with a
// thread for each rank too and interleaved in the same run; how long a tiny all-gather takes, from
// each rank's call to its own thread's having handled the end, again and again; and what simulated
// ranks cost. Medians. Prints a table and, with --json FILE, the figures.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "comm/communicator.h"
#include "comm/in_process.h"
#include "comm/sim_ranks.h"
#include "core/bell.h"
#include "core/config.h"
#include "core/memory_resource.h"
#include "core/sim_world.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {
namespace {

// One rank's operation and the thread that calls it.
class Caller final : public Event {
 public:
  explicit Caller(uint32_t ranks) : ends_(ranks) {
    inbox_.SetWaker(&bell_);
    for (uint32_t r = 0; r < ranks; ++r) ends_[r] = r + 1;
    op.inbox = &inbox_;
    op.event = this;
  }

  // `send` and `receive` are one for each rank, or one.
  void Set(CommKind kind, std::vector<ConstMemoryView> send, std::vector<MemoryView> receive) {
    send_ = std::move(send);
    receive_ = std::move(receive);
    op.kind = kind;
    op.send = {send_, SendsOnePerRank(kind) ? std::span<const uint32_t>(ends_)
                                            : std::span<const uint32_t>()};
    op.receive = {receive_, ReceivesOnePerRank(kind) ? std::span<const uint32_t>(ends_)
                                                     : std::span<const uint32_t>()};
  }

  void Call(Communicator* communicator) {
    ended_ = false;
    communicator->Enqueue(&op);
    while (!ended_) {
      const int seen = bell_.rings();
      if (!inbox_.HandleAll()) bell_.Wait(seen);
    }
    SLUICE_CHECK_MSG(op.status.ok(), Message(op.status));
  }
  void Handle() override { ended_ = true; }

  CommOp op;

 private:
  Bell bell_;
  Inbox inbox_;
  bool ended_ = false;
  std::vector<uint32_t> ends_;
  std::vector<ConstMemoryView> send_;
  std::vector<MemoryView> receive_;
};

// f(rank) on a thread for each; how long from when all are there to when all are done.
template <typename F>
double SecondsOfAll(uint32_t ranks, const F& f) {
  const SteadyClock clock;
  std::atomic<uint32_t> there{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  for (uint32_t r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      there.fetch_add(1);
      go.wait(false);
      f(r);
    });
  }
  while (there.load() < ranks) std::this_thread::yield();
  const TimePoint begin = clock.Now();
  go.store(true);
  go.notify_all();
  for (std::thread& thread : threads) thread.join();
  return Seconds(clock.Now() - begin);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

nlohmann::ordered_json Bandwidth(CommKind kind, uint32_t ranks, Bytes each, int repetitions) {
  SteadyClock clock;
  auto group = MakeInProcessRanks(ranks, {}, &clock).value();
  // A rank sends `each` in all, and receives a part of it, or all, from each.
  const Bytes part = kind == CommKind::kAllGather ? each : each / ranks;
  HugePageResource resource;
  Arena arena = Arena::Create(&resource, (each + part * ranks) * ranks).value();
  std::memset(arena.memory().data(), 1, arena.memory().size());
  const auto sends = [&](uint32_t rank) {
    return arena.memory().subspan((each * rank).size(), each.size());
  };
  const auto receives = [&](uint32_t rank, uint32_t from) {
    return arena.memory().subspan((each * ranks + part * (rank * ranks + from)).size(),
                                  part.size());
  };
  const auto sent = [&](uint32_t from, uint32_t to) {
    return kind == CommKind::kAllGather ? sends(from)
                                        : sends(from).subspan((part * to).size(), part.size());
  };
  std::deque<Caller> callers;
  for (uint32_t r = 0; r < ranks; ++r) {
    std::vector<ConstMemoryView> send;
    std::vector<MemoryView> receive;
    for (uint32_t to = 0; to < (SendsOnePerRank(kind) ? ranks : 1); ++to)
      send.emplace_back(sent(r, to));
    for (uint32_t from = 0; from < ranks; ++from) receive.push_back(receives(r, from));
    callers.emplace_back(ranks).Set(kind, std::move(send), std::move(receive));
  }
  std::vector<double> plain, ours;
  for (int i = 0; i <= repetitions; ++i) {  // the first warms up
    const double p = SecondsOfAll(ranks, [&](uint32_t rank) {
      for (uint32_t from = 0; from < ranks; ++from)
        std::memcpy(receives(rank, from).data(), sent(from, rank).data(), part.size());
    });
    const double o =
        SecondsOfAll(ranks, [&](uint32_t rank) { callers[rank].Call(group[rank].get()); });
    if (i > 0) plain.push_back(p), ours.push_back(o);
  }
  const double bytes = static_cast<double>((part * ranks * ranks).value());
  const double ratio = Median(plain) / Median(ours);
  fmt::print("{:>12} of {} {:>4} ranks {:>8.2f} GB/s plain {:>8.2f} GB/s {:>7.3f} of it\n",
             Name(kind), FormatBytes(each), ranks, bytes / Median(plain) / 1e9,
             bytes / Median(ours) / 1e9, ratio);
  return {{"kind", Name(kind)},     {"ranks", ranks},       {"bytes_per_rank", each.value()},
          {"plain_seconds", plain}, {"comm_seconds", ours}, {"ratio", ratio}};
}

nlohmann::ordered_json Latency(uint32_t ranks, Bytes each, int rounds) {
  SteadyClock clock;
  auto group = MakeInProcessRanks(ranks, {}, &clock).value();
  std::vector<std::byte> memory(each.size() * ranks * (ranks + 1));
  std::vector<double> seconds;  // of rank 0
  SecondsOfAll(ranks, [&](uint32_t rank) {
    const MemoryView own = MemoryView(memory).subspan(each.size() * rank * (ranks + 1));
    Caller caller(ranks);
    std::vector<MemoryView> receive;
    for (uint32_t r = 0; r < ranks; ++r)
      receive.push_back(own.subspan(each.size() * (r + 1), each.size()));
    caller.Set(CommKind::kAllGather, {own.first(each.size())}, std::move(receive));
    for (int i = 0; i < rounds; ++i) {
      const TimePoint begin = clock.Now();
      caller.Call(group[rank].get());
      if (rank == 0 && i >= rounds / 10) seconds.push_back(Seconds(clock.Now() - begin));
    }
  });
  const double median = Median(seconds);
  fmt::print("{:>12} of {} {:>4} ranks {:>8.2f} us\n", Name(CommKind::kAllGather),
             FormatBytes(each), ranks, median * 1e6);
  return {{"kind", Name(CommKind::kAllGather)},
          {"ranks", ranks},
          {"bytes_per_rank", each.value()},
          {"seconds", median}};
}

// `calls` all-gathers that move nothing but virtual time.
nlohmann::ordered_json Simulated(uint32_t ranks, int calls) {
  SimWorld world(1);
  SimNetwork network({.moves_data = false}, ranks, &world);
  const auto group = network.MakeGroup({});
  struct Op final : Event {
    void Handle() override { --*left; }
    CommOp op;
    uint32_t* left = nullptr;
  };
  std::vector<std::byte> unit(4096);
  const std::vector<ConstMemoryView> send(1, unit);
  const std::vector<MemoryView> receive(ranks, unit);
  std::vector<uint32_t> ends(ranks);
  for (uint32_t r = 0; r < ranks; ++r) ends[r] = r + 1;
  Inbox inbox;
  std::vector<Op> ops(ranks);
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  for (int call = 0; call < calls; ++call) {
    uint32_t left = ranks;
    for (uint32_t r = 0; r < ranks; ++r) {
      ops[r].left = &left;
      ops[r].op.kind = CommKind::kAllGather;
      ops[r].op.send = {send, {}};
      ops[r].op.receive = {receive, ends};
      ops[r].op.inbox = &inbox;
      ops[r].op.event = &ops[r];
      group[r]->Enqueue(&ops[r].op);
    }
    while (left > 0) {
      if (!inbox.HandleAll()) SLUICE_CHECK(world.RunNext(kForever));
    }
  }
  const double seconds = Seconds(clock.Now() - begin);
  fmt::print("{} all-gathers of {} simulated ranks: {:.2f} s\n", calls, ranks, seconds);
  return {{"calls", calls}, {"ranks", ranks}, {"seconds", seconds}};
}

void Run(const std::string& json_path, int repetitions, Bytes large) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const CommKind kind : {CommKind::kAllGather, CommKind::kAllToAll}) {
    for (const uint32_t ranks : {2u, 4u})
      rows.push_back(Bandwidth(kind, ranks, large, repetitions));
  }
  for (const Bytes small : {Bytes(64), Bytes(512)}) {
    for (const uint32_t ranks : {2u, 4u}) rows.push_back(Latency(ranks, small, 2000 * repetitions));
  }
  rows.push_back(Simulated(512, 2000 * repetitions));
  if (json_path.empty()) return;
  std::ofstream(json_path) << nlohmann::ordered_json{{"rows", rows}}.dump(2) << "\n";
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  CLI::App app("Collectives in one process against plain copies, and their latency");
  std::string json;
  int repetitions = 5;
  int64_t mib = 64;
  app.add_option("--json", json, "write the figures here");
  app.add_option("--repetitions", repetitions, "of each measurement");
  app.add_option("--mib", mib, "what a rank sends in large ones");
  CLI11_PARSE(app, argc, argv);
  sluice::Run(json, repetitions, sluice::MiB(mib));
  return 0;
}
