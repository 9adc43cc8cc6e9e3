// comm/sim_mirror.h
//
// Many hosts of which one is simulated. The ranks of the first host are there; those of every other
// host do, at every moment, what the rank of their place on the first host does. So a group of
// hosts that train in step needs one host's ranks, each of which sees all: communicators of as many
// ranks as there are, with what all of them send and receive, at the times of sim_ranks.h.
//
// What the others send is what the rank of their place sends to the same rank. Where its size is
// another than what is expected (uneven shards), the ends are laid over each other. Only
// collectives that have one view or list per rank, and barriers: all-gathers and all-to-alls. No
// faults. For simulations; not linked into the library.
//
// Threads: one. Allocates freely.

#ifndef SLUICE_COMM_SIM_MIRROR_H_
#define SLUICE_COMM_SIM_MIRROR_H_

#include <memory>
#include <vector>

#include "comm/sim_ranks.h"

namespace sluice {

// The communicators of the first host's ranks. `network` is not owned and outlives them. `scale` as
// in SimNetwork::MakeGroup.
std::vector<std::unique_ptr<Communicator>> MakeMirroredGroup(SimNetwork* network,
                                                             const CommOptions& options,
                                                             double scale = 1);

}  // namespace sluice

#endif  // SLUICE_COMM_SIM_MIRROR_H_
