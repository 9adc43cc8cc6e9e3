// offload/checkpoint/summary_json.h
//
// What is said of a checkpoint, as JSON: tag, id (16 hexadecimal digits), ranks, steps, bytes,
// saved_at (seconds since 1970), problem (why it can't be loaded, or null).
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_SUMMARY_JSON_H_
#define SLUICE_OFFLOAD_CHECKPOINT_SUMMARY_JSON_H_

#include "nlohmann/json_fwd.hpp"
#include "offload/checkpoint/reader.h"

namespace sluice {

nlohmann::ordered_json SummaryObject(const CheckpointSummary& summary);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_SUMMARY_JSON_H_
