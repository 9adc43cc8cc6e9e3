// offload/run/rank_links.h
//
// How a runtime reaches the other ranks: a communicator for each kind of traffic, so that none
// waits for another's. All are of the same ranks. And what may be waited for there.

#ifndef SLUICE_OFFLOAD_RUN_RANK_LINKS_H_
#define SLUICE_OFFLOAD_RUN_RANK_LINKS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "comm/communicator.h"

namespace sluice {

// What a rank waits for that others come to when their callers do.
struct RankWait {
  std::string what = {};               // that it does: "takes a step"
  std::vector<uint32_t> missing = {};  // ranks; none: it waits for nobody
};

struct RankLinks {  // all null: one rank
  std::unique_ptr<Communicator> agreement;
  std::unique_ptr<Communicator> gradients;
  std::unique_ptr<Communicator> gathers;

  explicit operator bool() const { return agreement != nullptr; }
  // This rank can't begin: the others, who wait for it, hear why.
  void GiveUp(const absl::Status& why);
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANK_LINKS_H_
