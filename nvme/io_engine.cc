#include "nvme/io_engine.h"

#include <algorithm>

#include "core/status.h"
#include "fmt/format.h"
#include "nvme/aio_engine.h"
#include "nvme/thread_engine.h"
#include "nvme/uring_engine.h"

namespace sluice {

namespace {

using Made = absl::StatusOr<std::unique_ptr<IoEngine>>;

Made ChooseEngine(std::span<const DirectFile> files, std::span<const MemoryView> arenas,
                  const IoEngine::Limits& limits, Clock* clock) {
  Made uring = MakeUringEngine(files, arenas, limits, clock);
  if (uring.ok()) return uring;
  std::string why = fmt::format("no io_uring: {}", Message(uring.status()));
  const auto plain =
      std::find_if(files.begin(), files.end(), [](const DirectFile& f) { return !f.direct(); });
  if (plain != files.end()) {
    why += fmt::format("; no libaio: it would block on plain files ({})", plain->description());
    return MakeThreadEngine(files, limits, clock, why);
  }
  Made aio = MakeAioEngine(files, limits, clock, why);
  if (aio.ok()) return aio;
  why += fmt::format("; no libaio: {}", Message(aio.status()));
  return MakeThreadEngine(files, limits, clock, why);
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoEngine>> MakeIoEngine(IoEngineKind kind,
                                                       std::span<const DirectFile> files,
                                                       std::span<const MemoryView> arenas,
                                                       const IoEngine::Limits& limits,
                                                       Clock* clock) {
  if (limits.in_flight_max == 0 || limits.submit_batch_max == 0) {
    return absl::InvalidArgumentError(
        "an I/O engine needs room for at least one operation in flight and per submission");
  }
  switch (kind) {
    case IoEngineKind::kIoUring:
      return MakeUringEngine(files, arenas, limits, clock);
    case IoEngineKind::kLibaio:
      return MakeAioEngine(files, limits, clock, "asked for");
    case IoEngineKind::kThreads:
      return MakeThreadEngine(files, limits, clock, "asked for");
    case IoEngineKind::kAuto:
      break;
  }
  return ChooseEngine(files, arenas, limits, clock);
}

}  // namespace sluice
