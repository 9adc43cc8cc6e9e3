// nvme/thread_engine.h
//
// The engine that works everywhere: a few threads that call pread and pwrite.

#ifndef SLUICE_NVME_THREAD_ENGINE_H_
#define SLUICE_NVME_THREAD_ENGINE_H_

#include <memory>
#include <span>
#include <string>

#include "nvme/io_engine.h"

namespace sluice {

// `why` is said in the description: what was asked for, or why nothing better could be had.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeThreadEngine(std::span<const DirectFile> files,
                                                           const IoEngine::Limits& limits,
                                                           Clock* clock, std::string why);

}  // namespace sluice

#endif  // SLUICE_NVME_THREAD_ENGINE_H_
