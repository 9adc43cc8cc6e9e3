// nvme/uring_engine.h
//
// The io_uring engine: one ring, files and buffers registered where the kernel lets us.

#ifndef SLUICE_NVME_URING_ENGINE_H_
#define SLUICE_NVME_URING_ENGINE_H_

#include <memory>
#include <span>

#include "nvme/io_engine.h"

namespace sluice {

// Errors: Unavailable or PermissionDenied if the kernel has no io_uring for us, with what would
// change that.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(std::span<const DirectFile> files,
                                                          std::span<const MemoryView> arenas,
                                                          const IoEngine::Limits& limits,
                                                          Clock* clock);

}  // namespace sluice

#endif  // SLUICE_NVME_URING_ENGINE_H_
