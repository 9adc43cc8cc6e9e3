// tests/comm/group_makers.h
//
// What makes groups of ranks of each implementation, in real or virtual time. An implementation is
// a line of kCommImplementations: what Communicator promises is tested of all.

#ifndef SLUICE_TESTS_COMM_GROUP_MAKERS_H_
#define SLUICE_TESTS_COMM_GROUP_MAKERS_H_

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "comm/in_process.h"
#include "comm/local_group.h"
#include "comm/local_ranks.h"
#include "comm/sim_ranks.h"
#include "comm/supplied.h"
#include "core/clock.h"
#include "core/sim_world.h"
#include "tests/comm/fake_nccl/nccl_group.h"
#include "tests/comm/table_over_group.h"

namespace sluice {

// Makes groups over the same ranks, which outlive it.
class GroupMaker {
 public:
  virtual ~GroupMaker() = default;
  virtual Group Make(const CommOptions& options) = 0;
  virtual SimWorld* world() { return nullptr; }  // in which time passes; null: real time
  virtual void Pass(Nanos time) = 0;             // nobody sleeps for it
};

// Real time, and what was leapt over; or it stands still.
class LeapingClock final : public Clock {
 public:
  TimePoint Now() const override {
    const TimePoint held = held_.load();
    return held != TimePoint(0) ? held : steady_.Now() + leapt_.load();
  }
  void Leap(Nanos time) { leapt_ = leapt_.load() + time; }
  void Hold() { held_ = Now(); }
  void Release() {
    leapt_ = held_.load() - steady_.Now();
    held_ = TimePoint(0);
  }

 private:
  SteadyClock steady_;
  std::atomic<Nanos> leapt_{Nanos(0)};
  std::atomic<TimePoint> held_{TimePoint(0)};
};

class InProcessMaker final : public GroupMaker {
 public:
  explicit InProcessMaker(uint32_t ranks) : ranks_(ranks) {}
  Group Make(const CommOptions& options) override {
    return MakeInProcessRanks(ranks_, options, &clock_).value();
  }
  void Pass(Nanos time) override { clock_.Leap(time); }

 private:
  const uint32_t ranks_;
  LeapingClock clock_;
};

class SimMaker final : public GroupMaker {
 public:
  explicit SimMaker(uint32_t ranks) : network_({.ranks_per_host = 3}, ranks, &world_) {}
  Group Make(const CommOptions& options) override { return network_.MakeGroup(options); }
  SimWorld* world() override { return &world_; }
  void Pass(Nanos time) override {
    const TimePoint until = world_.Now() + time;
    while (world_.RunNext(until)) {
    }
  }

 private:
  SimWorld world_{1};
  SimNetwork network_;
};

class SuppliedMaker final : public GroupMaker {
 public:
  explicit SuppliedMaker(uint32_t ranks) : ranks_(ranks) {}
  Group Make(const CommOptions& options) override {
    Group inner = MakeInProcessRanks(ranks_, {}, &clock_).value();
    Group group;
    for (auto& communicator : inner) {
      tables_.push_back(
          std::make_unique<TableOverGroup>(std::move(communicator), options.in_flight));
      group.push_back(MakeSuppliedCommunicator(tables_.back()->table(), options, &clock_).value());
    }
    return group;
  }
  void Pass(Nanos time) override { clock_.Leap(time); }

 private:
  const uint32_t ranks_;
  LeapingClock clock_;
  std::vector<std::unique_ptr<TableOverGroup>> tables_;
};

// The tests' own library; the ranks meet as those of one process.
class NcclMaker final : public GroupMaker {
 public:
  explicit NcclMaker(uint32_t ranks) : ranks_(ranks) {}
  Group Make(const CommOptions& options) override {
    clock_.Hold();  // a deadline is of what the test does
    Group group =
        MakeNcclGroup(MakeInProcessRanks(ranks_, options, &clock_).value(), options, &clock_);
    clock_.Release();
    return group;
  }
  void Pass(Nanos time) override { clock_.Leap(time); }

 private:
  const uint32_t ranks_;
  LeapingClock clock_;
};

// Ranks of one host, as threads of this process stand for them.
class LocalMaker final : public GroupMaker {
 public:
  explicit LocalMaker(uint32_t ranks) : ranks_(ranks) {}
  Group Make(const CommOptions& options) override {
    std::vector<LocalRanks> listening;
    std::vector<LocalRanks::Address> addresses;
    for (uint32_t r = 0; r < ranks_; ++r) {
      listening.push_back(LocalRanks::Listen(Rank(r), ranks_).value());
      addresses.push_back(listening.back().address());
    }
    std::vector<sluice_comm_table> tables(ranks_);
    std::vector<std::thread> threads;
    for (uint32_t r = 0; r < ranks_; ++r) {
      threads.emplace_back([&, r] {
        tables[r] = listening[r].Connect(addresses, 1, std::chrono::minutes(1)).value().front();
      });
    }
    Group group;
    for (uint32_t r = 0; r < ranks_; ++r) threads[r].join();
    for (const sluice_comm_table& table : tables)
      group.push_back(MakeSuppliedCommunicator(table, options, &clock_).value());
    return group;
  }
  void Pass(Nanos time) override { clock_.Leap(time); }

 private:
  const uint32_t ranks_;
  LeapingClock clock_;
};

// The same with little at a time, so that little is large; whether or not memory may be read.
template <bool kReads>
class PairedMaker final : public GroupMaker {
 public:
  explicit PairedMaker(uint32_t ranks) : ranks_(ranks) {}
  Group Make(const CommOptions& options) override {
    std::vector<std::vector<LocalGroup::Peer>> peers(ranks_);
    for (auto& of_one : peers) of_one.resize(ranks_);
    const auto peer = [](int fd) {
      return LocalGroup::Peer{
          .socket = Socket(fd), .process = getpid(), .readable = kReads, .reads = kReads};
    };
    for (uint32_t a = 0; a < ranks_; ++a) {
      for (uint32_t b = 0; b < a; ++b) {
        int ends[2];
        SLUICE_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0);
        peers[a][b] = peer(ends[0]);
        peers[b][a] = peer(ends[1]);
      }
    }
    Group group;
    for (uint32_t r = 0; r < ranks_; ++r) {
      const LocalGroup::Limits limits{.inline_max = 8, .piece_max = 24, .read_max = 40};
      auto* const made = new LocalGroup(Rank(r), std::move(peers[r]), limits);  // its table ends it
      group.push_back(MakeSuppliedCommunicator(made->table(), options, &clock_).value());
    }
    return group;
  }
  void Pass(Nanos time) override { clock_.Leap(time); }

 private:
  const uint32_t ranks_;
  LeapingClock clock_;
};

struct CommImplementation {
  const char* name;
  std::unique_ptr<GroupMaker> (*make)(uint32_t ranks);
  // One place sees all ranks: a failure breaks all of them at once and with the same status.
  // Elsewhere each has a status of its own, which names a rank, and learns of it when it waits.
  bool one_place;
};

inline void PrintTo(const CommImplementation& implementation, std::ostream* out) {
  *out << implementation.name;
}

template <typename Maker>
std::unique_ptr<GroupMaker> NewMaker(uint32_t ranks) {
  return std::make_unique<Maker>(ranks);
}

inline constexpr CommImplementation kCommImplementations[] = {
    {"InProcess", NewMaker<InProcessMaker>, true},
    {"Simulated", NewMaker<SimMaker>, true},
    {"Supplied", NewMaker<SuppliedMaker>, false},
    {"Local", NewMaker<LocalMaker>, false},
    {"LocalRead", NewMaker<PairedMaker<true>>, false},
    {"LocalInPieces", NewMaker<PairedMaker<false>>, false},
    {"Nccl", NewMaker<NcclMaker>, false},
};

inline std::string NameOf(const testing::TestParamInfo<CommImplementation>& info) {
  return info.param.name;
}

}  // namespace sluice

#endif  // SLUICE_TESTS_COMM_GROUP_MAKERS_H_
