// tools/replay_report.h
//
// What `sluice trace` has to say: a recorded step as it was measured, replayed as it was recorded,
// and as it would be with what was given. Keys of its --json, where a.TIER stands for a.hbm,
// a.pinned and a.nvme, and a.WAIT for what is waited for, as in a report.
//
// Keys of a replay:
//   parameters                   of the model
//   units                        of it
//   calls                        that the recorded step made
//   measured_step_seconds        the median of the run; null: none was timed
//   replays[].name               as recorded, or as given
//   replays[].step_seconds       what the step takes
//   replays[].own_seconds        of it, in which the program was on its own: its compute
//   replays[].waited_seconds.WAIT  of it, in which it waited
//   replays[].floor_seconds      the shortest that the step can take by these rates and own_seconds
//   replays[].budgets_bytes.TIER null: no limit
//   replays[].planned_bytes.TIER what is taken of them
//   replays[].nvme_read_bytes    in the step
//   replays[].nvme_write_bytes
//   replays[].to_hbm_bytes
//   replays[].nvme_bytes_per_second  of all drives, of reads and writes together; null: unlimited
//   replays[].link_bytes_per_second  into and out of HBM, likewise
//   replays[].update_elements_per_second  likewise
//   replays[].scale              so many elements were simulated as one

#ifndef SLUICE_TOOLS_REPLAY_REPORT_H_
#define SLUICE_TOOLS_REPLAY_REPORT_H_

#include <string>
#include <vector>

#include "offload/sim/recording.h"
#include "offload/sim/replay.h"
#include "tools/json_file.h"

namespace sluice::tools {

struct NamedReplay {
  std::string name;
  ReplayOptions options;
  Replay replay;
};

Json ReplayJson(const Recording& recording, const std::vector<NamedReplay>& replays);
std::string ReplayPage(const Recording& recording, const std::vector<NamedReplay>& replays);

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_REPLAY_REPORT_H_
