// offload/run/rank_links.h
//
// How a runtime reaches the other ranks: a communicator for each kind of traffic, so that none
// waits for another's. All are of the same ranks.

#ifndef SLUICE_OFFLOAD_RUN_RANK_LINKS_H_
#define SLUICE_OFFLOAD_RUN_RANK_LINKS_H_

#include <memory>

#include "comm/communicator.h"

namespace sluice {

struct RankLinks {  // all null: one rank
  std::unique_ptr<Communicator> agreement;
  std::unique_ptr<Communicator> gradients;
  std::unique_ptr<Communicator> gathers;

  explicit operator bool() const { return agreement != nullptr; }
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANK_LINKS_H_
