#include "nvme/drive_tuner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

// When each step is over, as a part of the time.
constexpr double kFilled = 0.12;
constexpr double kSearched = 0.62;
constexpr double kChecked = 0.80;
constexpr double kSettled = 0.95;  // the rest is for what has begun
// What each may write, as a part of the bytes. Filling and checking have an eighth each.
constexpr double kSearchWrites = 0.4;
constexpr double kSettleWrites = 0.2;
constexpr int kAreaPart = 8;
constexpr Bytes kAreaMax = GiB(2);
constexpr Bytes kMeasuredMin = MiB(32);  // moved by a measurement, to be worth it
constexpr int kRounds = 5;
constexpr double kSlotMax = 0.5;  // seconds

double Value(Bytes bytes) { return static_cast<double>(bytes.value()); }
Bytes Times(Bytes bytes, double factor) {
  return Bytes(static_cast<int64_t>(Value(bytes) * factor));
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// `point` is the best, and what was it gives so much of that.
void TakeInstead(const TunePoint& point, double share, Tuning* tuning) {
  tuning->best = point;
  for (Tuning::Tried& tried : tuning->tried) tried.share *= share;
  const auto at = std::ranges::find(tuning->tried, point, &Tuning::Tried::point);
  if (at == tuning->tried.end())
    tuning->tried.push_back({point, 1});
  else
    at->share = 1;
}

}  // namespace

TuneGrid TuneGridOf(std::vector<IoEngineKind> engines) {
  TuneGrid grid{.engines = std::move(engines)};
  grid.runs = {grid.requests.back()};
  grid.depth_min = 4;
  return grid;
}

TunePoint UntunedPoint(IoEngineKind engine) {
  return {.engine = engine, .run = TuneGrid().requests.back()};
}

DriveTuner::DriveTuner(std::vector<Bytes> file_sizes, MakeEngine make_engine, MemoryView memory,
                       const Clock* clock, Options options)
    : file_sizes_(std::move(file_sizes)),
      make_engine_(std::move(make_engine)),
      memory_(memory),
      clock_(clock),
      options_(std::move(options)),
      begin_(clock->Now()) {
  SLUICE_CHECK(options_.write_max >= kTuneWriteMin);
  MakeLoad(kTuneFileMin);
}

double DriveTuner::Left(double part) const {
  return std::max(0.0, part * options_.seconds - Seconds(clock_->Now() - begin_));
}

// Over `area` of the files, from the beginning of each, in proportion to their sizes.
void DriveTuner::MakeLoad(Bytes area) {
  Bytes all;
  for (const Bytes size : file_sizes_) all += size;
  std::vector<Bytes> sizes;
  for (const Bytes size : file_sizes_) {
    const int64_t stretches =
        Times(size, std::min(1.0, Value(area) / Value(all))) / options_.stretch;
    sizes.push_back(options_.stretch * std::max<int64_t>(1, stretches));
  }
  load_ = std::make_unique<IoLoad>(sizes, memory_, clock_,
                                   IoLoad::Options{.stretch = options_.stretch});
}

absl::StatusOr<IoLoadResult> DriveTuner::Run(const TunePoint& point, double read_share,
                                             IoCheck check, const Slot& slot) {
  const IoEngine::Limits limits{.in_flight_max = point.depth(), .submit_batch_max = point.batch};
  absl::StatusOr<std::unique_ptr<IoEngine>> made = make_engine_(point.engine, limits);
  no_engine_ = !made.ok();
  if (!made.ok()) return made.status();
  const std::unique_ptr<IoEngine> engine = *std::move(made);
  // Whatever was meant: of a mix, writes are half, and at most one run more.
  const Bytes may_write = std::max(Bytes(0), options_.write_max - written_);
  Bytes bytes = slot.bytes;
  if (read_share == 0) bytes = std::min(bytes, may_write);
  if (read_share > 0 && read_share < 1)
    bytes = std::min(bytes, std::max(Bytes(0), may_write - point.run) * 2);
  IoPattern pattern{.request = point.request,
                    .in_flight = point.depth(),
                    .read_share = read_share,
                    .run = point.run,
                    .check = check,
                    .bytes_max = bytes,
                    .stop = options_.stop};
  pattern.deadline = clock_->Now() + Nanos(static_cast<int64_t>(slot.seconds * 1e9));
  absl::StatusOr<IoLoadResult> result = load_->Run(pattern, engine.get());
  const absl::Status closed = engine->Close();
  if (!result.ok()) return result.status();
  if (!closed.ok()) return closed;
  written_ += result->writes().bytes;
  return result;
}

absl::StatusOr<double> DriveTuner::Mixed(const TunePoint& point, const Slot& slot) {
  SLUICE_ASSIGN_OR_RETURN(const IoLoadResult result, Run(point, 0.5, IoCheck::kNone, slot));
  return result.bytes_per_second();
}

absl::Status DriveTuner::Fill(const TunePoint& with) {
  Say(0, "writing the file");
  const Slot first{.seconds = options_.seconds * kFilled / 4, .bytes = load_->area()};
  SLUICE_ASSIGN_OR_RETURN(const IoLoadResult begun, Run(with, 0, IoCheck::kNone, first));
  rate_ = std::max(begun.bytes_per_second(), 1.0);
  const Bytes area = std::min({kAreaMax, options_.write_max / kAreaPart,
                               Bytes(static_cast<int64_t>(rate_ * std::min(Left(kFilled), 1e4)))});
  if (area > load_->area()) MakeLoad(area);
  const Slot all{.seconds = Left(kFilled), .bytes = load_->area()};
  return Run(with, 0, IoCheck::kData, all).status();
}

// What a measurement of a search gets that makes so many.
DriveTuner::Slot DriveTuner::SearchSlot(uint32_t measurements) const {
  const double bytes = 2 * kSearchWrites * Value(options_.write_max) / measurements;
  // The last run of a measurement may begin before its bytes are over, and goes on beyond.
  return {.seconds = std::min(kSlotMax, options_.seconds * (kSearched - kFilled) / measurements),
          .bytes = Bytes(static_cast<int64_t>(bytes)) - UntunedPoint(IoEngineKind::kAuto).run};
}

absl::StatusOr<Tuning> DriveTuner::Search(std::vector<IoEngineKind> engines,
                                          const TunePoint& start) {
  const double worth = 2 * kSearchWrites * Value(options_.write_max) / Value(kMeasuredMin);
  const auto most = static_cast<uint32_t>(std::min<double>(kTuneMeasurements, worth));
  const Slot slot = SearchSlot(most);
  // A queue that a measurement hardly fills tells nothing.
  const Bytes moved = std::min(slot.bytes, Bytes(static_cast<int64_t>(rate_ * slot.seconds)));
  TuneGrid grid = TuneGridOf(std::move(engines));
  std::erase_if(grid.in_flight, [&](Bytes bytes) {
    return bytes > start.in_flight && (bytes > moved / 4 || bytes.size() > memory_.size());
  });
  const TuneOptions how{
      .start = start, .measurements_max = most, .goes_on = [this] { return Left(kSearched) > 0; }};
  uint32_t made = 0;
  const auto measure = [&](const TunePoint& point) {
    const double part = std::max(static_cast<double>(made++) / most,
                                 1 - Left(kSearched) / (options_.seconds * (kSearched - kFilled)));
    Say(kFilled + (kSearched - kFilled) * std::clamp(part, 0.0, 1.0),
        fmt::format("searching, {} measured", made));
    absl::StatusOr<double> rate = Mixed(point, slot);
    if (!no_engine_) return rate;
    // No engine can be had like that here: a bad one, so that the search goes elsewhere.
    refused_ = std::string(Message(rate.status()));
    return absl::StatusOr<double>(rate_ / 4);
  };
  SLUICE_ASSIGN_OR_RETURN(Tuning tuning, Tune(grid, how, measure));
  cut_short_ = most < kTuneMeasurements || Left(kSearched) <= 0;
  return tuning;
}

absl::StatusOr<Tuning> DriveTuner::BestOf(const std::vector<TunePoint>& points) {
  SLUICE_CHECK(!points.empty());
  const auto all = static_cast<uint32_t>(points.size()) * kRounds;
  const Slot slot = SearchSlot(all);
  std::vector<std::vector<double>> rates(points.size());
  Tuning tuning;
  for (int round = 0; round < kRounds && (round == 0 || Left(kSearched) > 0); ++round) {
    for (size_t i = 0; i < points.size(); ++i, ++tuning.measurements) {
      Say(kFilled + (kSearched - kFilled) * tuning.measurements / all, "all drives together");
      SLUICE_ASSIGN_OR_RETURN(const double rate, Mixed(points[i], slot));
      rates[i].push_back(rate);
    }
  }
  size_t best = 0;
  for (size_t i = 0; i < points.size(); ++i)
    if (Median(rates[i]) > Median(rates[best])) best = i;
  tuning.best = points[best];
  for (size_t i = 0; i < points.size(); ++i)
    tuning.tried.push_back({points[i], Median(rates[i]) / std::max(Median(rates[best]), 1.0)});
  return tuning;
}

absl::StatusOr<DriveTuner::Settled> DriveTuner::Settle(const TunePoint& untuned, Tuning* tuning) {
  const TunePoint best = tuning->best;
  Settled settled;
  Say(kSearched, "checking data");
  const double half = std::max(0.05, Left(kChecked) / 2);
  for (const double read_share : {0.0, 1.0}) {
    const Slot slot{.seconds = half, .bytes = load_->area()};
    SLUICE_ASSIGN_OR_RETURN(const IoLoadResult checked,
                            Run(best, read_share, IoCheck::kData, slot));
    settled.checked += checked.checked;
  }
  // Read, write and mixed; then the same untuned.
  std::vector<double> rates[6];
  const int jobs = best == untuned ? 3 : 6;
  // Of three jobs one writes a slot, and one half of that.
  const Slot slot{.seconds = std::clamp(Left(kSettled) / (jobs * kRounds), 0.02, kSlotMax),
                  .bytes = Times(options_.write_max, kSettleWrites / (0.5 * jobs * kRounds))};
  const auto another = [&] {
    return Left(kSettled) > 0 && options_.write_max - written_ > slot.bytes * (jobs / 2 + 1);
  };
  for (int round = 0; round < kRounds && (round == 0 || another()); ++round) {
    Say(kChecked + (kSettled - kChecked) * round / kRounds, "measuring what was found");
    for (int job = 0; job < jobs; ++job) {  // each is first in turn
      const int what = (round + job) % jobs;
      const double read_share = what % 3 == 0 ? 1 : what % 3 == 1 ? 0 : 0.5;
      SLUICE_ASSIGN_OR_RETURN(const IoLoadResult result,
                              Run(what < 3 ? best : untuned, read_share, IoCheck::kNone, slot));
      rates[what].push_back(std::max(result.bytes_per_second(), 1.0));
    }
  }
  settled.untuned_rate = Median(rates[jobs - 1]);
  // A search that was cut short, or noise, may have found what is none.
  const bool better = settled.untuned_rate <= Median(rates[2]);
  if (!better) TakeInstead(untuned, Median(rates[2]) / settled.untuned_rate, tuning);
  const TunePoint& taken = better ? best : untuned;
  const std::vector<double>* const its = better ? rates : rates + 3;
  settled.settings = {.request = taken.request,
                      .depth = taken.depth(),
                      .batch = taken.batch,
                      .engine = taken.engine,
                      .read_rate = Median(its[0]),
                      .write_rate = Median(its[1]),
                      .mixed_rate = Median(its[2])};
  return settled;
}

}  // namespace sluice
