// nvme/drive_tuner.h
//
// Tunes files: fills them, searches (tuner.h) over a load (io_load.h), proves that what was found
// gives back what was written, and measures its rates, beside those of what a run does untuned. For
// files of one drive, or of all drives that a run has. Time and bytes written are bounded whatever
// the search would like: a transfer that has begun is waited for, and nothing else.
//
// Threads: one. Allocates; memory of transfers is the caller's.

#ifndef SLUICE_NVME_DRIVE_TUNER_H_
#define SLUICE_NVME_DRIVE_TUNER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/clock.h"
#include "core/types.h"
#include "nvme/io_engine.h"
#include "nvme/io_load.h"
#include "nvme/tuned.h"
#include "nvme/tuner.h"

namespace sluice {

inline constexpr Bytes kTuneWriteMin = MiB(512);  // of files, to be worth it
inline constexpr Bytes kTuneFileMin = MiB(32);    // likewise
inline constexpr Bytes kTuneInFlightMax = MiB(64);
inline constexpr uint32_t kTuneMeasurements = 150;  // of a search, at most

// Every kind of engine that is in `engines`, every size of a request and so on that a run can be
// told. What a run mixes is not told to it, so `runs` has one value. And a run has other things to
// do between two transfers, which a load has not: fewer in flight than four would leave drives
// idle.
TuneGrid TuneGridOf(std::vector<IoEngineKind> engines);
// What a run does untuned, as near as the grid has it, with `engine`.
TunePoint UntunedPoint(IoEngineKind engine);

class DriveTuner {
 public:
  struct Options {
    double seconds = 40;                      // from now on
    Bytes write_max = GiB(16);                // at least kTuneWriteMin
    Bytes stretch = MiB(4);                   // of the load: at least the largest request
    const std::atomic<bool>* stop = nullptr;  // ends it, with Cancelled; not owned
    // How far it is, from 0 to 1, and what it does.
    std::function<void(double part, std::string_view what)> progress = {};
  };
  // Over all of the files that are tuned. Errors end the tuning.
  using MakeEngine = std::function<absl::StatusOr<std::unique_ptr<IoEngine>>(
      IoEngineKind kind, const IoEngine::Limits& limits)>;

  // Files are at least a stretch long and kTuneFileMin together. `memory`, at a multiple of 4096,
  // is for what is in flight. `clock` outlives this.
  DriveTuner(std::vector<Bytes> file_sizes, MakeEngine make_engine, MemoryView memory,
             const Clock* clock, Options options);

  // The steps, each once and in this order. Errors: those of transfers and of engines; DataLoss if
  // what is read is not what was written; Cancelled.

  // Writes as much of the files as the time and the bytes are good for: what is measured from then
  // on lies there.
  absl::Status Fill(const TunePoint& with);
  absl::StatusOr<Tuning> Search(std::vector<IoEngineKind> engines, const TunePoint& start);
  // Instead of a search: the best of a few.
  absl::StatusOr<Tuning> BestOf(const std::vector<TunePoint>& points);
  // Measures the best and `untuned` in turn: the better one is taken, and becomes the best.
  struct Settled {
    TunedSettings settings;
    double untuned_rate = 0;  // mixed
    Bytes checked;            // read, and found to be what was written
  };
  absl::StatusOr<Settled> Settle(const TunePoint& untuned, Tuning* tuning);

  Bytes written() const { return written_; }
  Bytes area() const { return load_->area(); }
  bool cut_short() const { return cut_short_; }  // the search would have gone on
  // Why the last engine that could not be had in the search could not; empty if all could.
  const std::string& refused() const { return refused_; }

 private:
  struct Slot {
    double seconds;
    Bytes bytes;
  };

  absl::StatusOr<IoLoadResult> Run(const TunePoint& point, double read_share, IoCheck check,
                                   const Slot& slot);
  absl::StatusOr<double> Mixed(const TunePoint& point, const Slot& slot);
  void MakeLoad(Bytes area);
  Slot SearchSlot(uint32_t measurements) const;
  double Left(double part) const;  // seconds until that part of the time is over; not below 0
  void Say(double part, std::string_view what) const {
    if (options_.progress) options_.progress(part, what);
  }

  const std::vector<Bytes> file_sizes_;
  const MakeEngine make_engine_;
  const MemoryView memory_;
  const Clock* const clock_;
  const Options options_;
  const TimePoint begin_;
  std::unique_ptr<IoLoad> load_;
  double rate_ = 1;  // of the first bytes: about what is to be expected
  Bytes written_;
  bool cut_short_ = false;
  bool no_engine_ = false;  // of the last run
  std::string refused_;
};

}  // namespace sluice

#endif  // SLUICE_NVME_DRIVE_TUNER_H_
