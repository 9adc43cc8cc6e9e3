// nvme/tuner.h
//
// Finds how to move bytes fastest: the engine, the size of a transfer, how many bytes are in
// flight, how many transfers a call submits, and how long a run of reads or writes is before the
// other has its turn. Pure policy: what a point gives, a callback measures.
//
// Drives are noisy, and wander over minutes, so no rate is compared with one of long ago: a
// candidate is measured beside the best point so far, one after the other, and only their ratio
// counts. What all comparisons together say of every point of the grid, a model keeps
// (rate_model.h); the next candidate is the one from which most is to be gained, so a point that
// lost is not tried again, and what is close is. At last the search looks for fewer bytes in flight
// that give as much: what waits in a queue is latency for whoever comes next.
//
// Threads: one. Allocates.

#ifndef SLUICE_NVME_TUNER_H_
#define SLUICE_NVME_TUNER_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/types.h"
#include "nvme/io_engine.h"

namespace sluice {

struct TunePoint {
  IoEngineKind engine = IoEngineKind::kIoUring;
  Bytes request = KiB(512);
  Bytes in_flight = MiB(8);
  uint32_t batch = 2;  // transfers submitted per call, at most
  Bytes run = MiB(2);  // of one kind, where reads and writes are mixed

  uint32_t depth() const { return static_cast<uint32_t>(in_flight / request); }
  friend bool operator==(const TunePoint&, const TunePoint&) = default;
};

// The values that are tried, each ascending. A point of the grid has from depth_min to depth_max
// transfers in flight, no larger batch than that, and no shorter run than a transfer.
struct TuneGrid {
  std::vector<IoEngineKind> engines = {IoEngineKind::kIoUring};
  std::vector<Bytes> requests = {KiB(128), KiB(256), KiB(512), MiB(1), MiB(2), MiB(4)};
  std::vector<Bytes> in_flight = {MiB(1), MiB(2), MiB(4), MiB(8), MiB(16), MiB(32), MiB(64)};
  std::vector<uint32_t> batches = {1, 2, 4, 8, 16, 32};
  std::vector<Bytes> runs = {KiB(512), MiB(1), MiB(2), MiB(4), MiB(8), MiB(16)};
  uint32_t depth_min = 1;
  uint32_t depth_max = 128;

  bool Has(const TunePoint& point) const;
  std::vector<TunePoint> Points() const;  // all of them
};

struct TuneOptions {
  TunePoint start;                  // a point of the grid
  uint32_t measurements_max = 238;  // the search ends when so many were made,
  std::function<bool()> goes_on;    // or when this, if set, says no
  double worth = 0.001;             // gain that is worth looking for
  double equal = 0.006;             // loss up to which fewer bytes in flight are as good
};

struct Tuning {
  TunePoint best;
  struct Tried {
    TunePoint point;
    double share = 0;  // of what `best` gives
  };
  std::vector<Tried> tried;  // each once, `best` among them, in the order they were tried
  uint32_t measurements = 0;
};

// Bytes per second at a point. An error ends the search with it.
using MeasurePoint = std::function<absl::StatusOr<double>(const TunePoint&)>;

// Errors: InvalidArgument if `start` is not in the grid; those of `measure`.
absl::StatusOr<Tuning> Tune(const TuneGrid& grid, const TuneOptions& options,
                            const MeasurePoint& measure);

}  // namespace sluice

#endif  // SLUICE_NVME_TUNER_H_
