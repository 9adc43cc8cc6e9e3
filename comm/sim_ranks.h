// comm/sim_ranks.h
//
// Ranks in virtual time: hosts with some ranks each, links with rates, and groups of communicators
// over them. Every rank has a link to the ranks of its host and one to other hosts, each of which
// carries both directions at its rate, one operation after the other: so groups that share ranks
// compete. An operation begins when all ranks that it needs have come to it and their links are
// free, and takes as long as the busiest link; its bytes move at a moment drawn in between, so
// memory that is touched while the communicator has it shows as wrong data. All ranks of an
// operation end it at one time.
//
// What goes wrong, SimFaults says (SimSeam::kRank): a rank's library reports an error (kError), or
// the rank comes late or not before everybody has given up. Whoever closes or aborts a communicator
// is a rank that goes away. For tests; not linked into the library.
//
// Threads: one. Allocates freely.

#ifndef SLUICE_COMM_SIM_RANKS_H_
#define SLUICE_COMM_SIM_RANKS_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/attendance.h"
#include "comm/communicator.h"
#include "core/sim_world.h"

namespace sluice {

struct SimNetworkOptions {
  uint32_t ranks_per_host = 8;
  double local_bytes_per_second = 200e9;               // of a rank, to and from its host's others
  double network_bytes_per_second = 50e9;              // of a rank, to and from other hosts
  Nanos local_latency = std::chrono::microseconds(5);  // of a step among 2, 4, 8, ... ranks
  Nanos network_latency = std::chrono::microseconds(20);  // of a step among 2, 4, 8, ... hosts
  // If not, operations only take their time: memory isn't touched, and views may lie anywhere.
  bool moves_data = true;
  // Of gathers and reductions: among n, that many steps as a tree has, or n - 1, as a ring.
  enum class Steps : uint8_t { kTree, kRing } steps = Steps::kTree;
  Nanos message_gap{0};  // of an all-to-all, for each rank that a rank sends to
  // Operations of which a rank sends no more than this go beside what the links are busy with.
  Bytes small;
  // What a rank sends to itself, if not in place, takes as long as what others send it: its host
  // copies both.
  bool own_takes_time = false;
};

// What an operation moves over a rank's links, in the direction in which it is more. Gathers and
// reductions go over the network once per host, shared by the host's links (as rings and trees do);
// an all-to-all moves what each rank has for each.
struct SimTraffic {
  Bytes local;
  Bytes network;
};
// Since Enqueue.
SimTraffic TrafficOf(const CommOp& op, Rank self, uint32_t ranks, uint32_t ranks_per_host);

class SimNetwork {
 public:
  // `world` is not owned and outlives the network and its groups.
  SimNetwork(const SimNetworkOptions& options, uint32_t ranks, SimWorld* world)
      : options_(options), world_(world), links_(ranks) {}

  // A group of all ranks; it shares the network, which outlives it, with the other groups. For each
  // byte of its operations `scale` are meant.
  std::vector<std::unique_ptr<Communicator>> MakeGroup(const CommOptions& options,
                                                       double scale = 1);

  // How long the links are busy with an operation that all of `party` have come to (`ops` by rank),
  // and from when: the caller's from then on.
  struct Span {
    TimePoint begin;
    TimePoint end;
  };
  Span Occupy(const Party& party, std::span<CommOp* const> ops, double scale = 1);
  // How long an operation takes beyond what its bytes take.
  Nanos LatencyOf(const CommOp& op) const;

  uint32_t ranks() const { return static_cast<uint32_t>(links_.size()); }
  const SimNetworkOptions& options() const { return options_; }
  SimWorld* world() { return world_; }

 private:
  struct Links {
    TimePoint local_free{0};
    TimePoint network_free{0};
  };

  const SimNetworkOptions options_;
  SimWorld* const world_;
  std::vector<Links> links_;  // by rank
};

}  // namespace sluice

#endif  // SLUICE_COMM_SIM_RANKS_H_
