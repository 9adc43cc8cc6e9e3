// offload/run/rank_links.h
//
// How a runtime reaches the other ranks: a communicator for each kind of traffic, so that none
// waits for another's. All are of the same ranks. And what may be waited for there.
//
// Gradients and gathers are of memory that ranks exchange in: HBM. Agreement and values are of host
// memory: values, parameters that live there, and what norms are made of. Where HBM is in place
// there is nothing for values to do: gathers and gradients carry all that.

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
  std::unique_ptr<Communicator> values;  // may be null where HBM is in place

  explicit operator bool() const { return agreement != nullptr; }
  // Those that there are, with their names.
  struct Named {
    const char* name;
    Communicator* link;
  };
  std::vector<Named> all() const;
  // This rank can't begin: the others, who wait for it, hear why.
  void GiveUp(const absl::Status& why);
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_RANK_LINKS_H_
