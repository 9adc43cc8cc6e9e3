#include "nvme/io_engine.h"

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/thread_engine.h"
#include "nvme/uring_engine.h"

namespace sluice {

absl::StatusOr<std::unique_ptr<IoEngine>> MakeIoEngine(IoEngineKind kind,
                                                       std::span<const DirectFile> files,
                                                       std::span<const MemoryView> arenas,
                                                       const IoEngine::Limits& limits,
                                                       Clock* clock) {
  if (limits.in_flight_max == 0 || limits.submit_batch_max == 0) {
    return absl::InvalidArgumentError(
        "an I/O engine needs room for at least one operation in flight and per submission");
  }
  if (kind == IoEngineKind::kThreads) return MakeThreadEngine(files, limits, clock, "asked for");
  absl::StatusOr<std::unique_ptr<IoEngine>> uring = MakeUringEngine(files, arenas, limits, clock);
  if (uring.ok() || kind == IoEngineKind::kIoUring) return uring;
  return MakeThreadEngine(files, limits, clock,
                          fmt::format("no io_uring: {}", Message(uring.status())));
}

}  // namespace sluice
