#include "tools/tune_drives.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "core/arena.h"
#include "core/cgroup.h"
#include "core/config.h"
#include "core/memory_resource.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nvme/direct_file.h"
#include "nvme/drive_info.h"
#include "nvme/drive_tuner.h"
#include "nvme/file_system.h"
#include "nvme/tuned_use.h"

namespace sluice::tools {

namespace {

constexpr Bytes kFileMax = GiB(2);
constexpr Bytes kFileStep = MiB(4);
constexpr int kFilePart = 8;          // of what may be written
constexpr double kMargin = 0.97;      // of the time; the rest is for what isn't measured
constexpr double kSetWrites = 0.25;   // of what each path may be written, for all together
constexpr uint32_t kDepthMax = 1024;  // what a run takes
constexpr IoEngineKind kKinds[] = {IoEngineKind::kIoUring, IoEngineKind::kLibaio,
                                   IoEngineKind::kThreads};

double Value(Bytes bytes) { return static_cast<double>(bytes.value()); }

// Before anything is written: what will hurt.
std::vector<std::string> WarningsOf(const std::string& path, const DirectFile& file) {
  std::vector<std::string> warnings;
  const FileSystem fs = FileSystemOf(path);
  const auto warn = [&](const std::string& text) {
    warnings.push_back(fmt::format("{}: {}", path, text));
  };
  if (file.in_ram())
    warn(fs.name + " lies in RAM, so no drive is measured: choose a directory on a drive");
  for (const char* network : {"nfs", "cifs", "smb3", "ceph", "9p", "lustre"}) {
    if (fs.name == network)
      warn(fs.name + " is a network's file system, whose rate is others' too");
  }
  if (fs.kind == FileSystemKind::kLayered)
    warn(fs.name + " stores nothing itself, and doesn't say what does");
  if (fs.kind == FileSystemKind::kCopyOnWrite)
    warn(fs.name + " copies on write, which is slower and may compress what is measured");
  if (file.may_run_out()) warn("copy on write can't be turned off here, so space may run out");
  if (!file.direct() && !file.in_ram())
    warn("no direct I/O here, so the page cache is measured too: use ext4 or xfs on a local drive");
  struct statvfs space {};
  if (statvfs(path.c_str(), &space) == 0 && space.f_blocks > 0 &&
      static_cast<double>(space.f_bavail) < 0.1 * static_cast<double>(space.f_blocks))
    warn("less than a tenth of it is free, and drives that are nearly full are slower");
  if (const auto drive = FindDriveOf(FilesBelow(""), path)) {
    if (drive->name.starts_with("ram") || drive->name.starts_with("zram"))
      warn(drive->name + " is a RAM disk, so no drive is measured");
    for (const std::string& held : drive->held_back) warn(held);
  }
  return warnings;
}

absl::StatusOr<TunePlan::Path> PlanPath(const TuneOptions& options, const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(path));
  const Bytes wanted = std::min({kFileMax, options.write_max / kFilePart, free / 2});
  const Bytes size = kFileStep * (wanted / kFileStep);
  if (size < kTuneFileMin) {
    return absl::ResourceExhaustedError(
        fmt::format("{} has {} free, and half of it is too little: at least {}", path,
                    FormatBytesDown(free), FormatBytesUp(kTuneFileMin)));
  }
  SLUICE_ASSIGN_OR_RETURN(const DirectFile file, DirectFile::CreateUnnamed(path, kFileStep));
  return TunePlan::Path{.path = path, .file = size, .warnings = WarningsOf(path, file)};
}

// Of one or more files: the engines that can be had, in the order of choice, and their tuner.
class Bench {
 public:
  Bench(std::span<const DirectFile> files, MemoryView memory, const Clock* clock)
      : files_(files), memory_(memory), clock_(clock) {}

  absl::Status FindEngines() {
    absl::Status status;
    for (const IoEngineKind kind : kKinds) {
      auto engine = Make(kind, {});
      if (!engine.ok()) {
        status.Update(engine.status());
        continue;
      }
      kinds_.push_back(kind);
      SLUICE_RETURN_IF_ERROR((*engine)->Close());
    }
    return kinds_.empty() ? status : absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<IoEngine>> Make(IoEngineKind kind,
                                                 const IoEngine::Limits& limits) {
    return MakeIoEngine(kind, files_, {&memory_, 1}, limits, &engine_clock_);
  }

  // `candidates`: none: all are searched. `sizes`: of each file, what is used.
  absl::StatusOr<TunedDrives> Tune(std::vector<Bytes> sizes, DriveTuner::Options options,
                                   const std::vector<TunePoint>& candidates) {
    const auto make = [this](IoEngineKind kind, const IoEngine::Limits& limits) {
      return Make(kind, limits);
    };
    DriveTuner tuner(std::move(sizes), make, memory_, clock_, std::move(options));
    TunePoint untuned = UntunedPoint(kinds_.front());
    SLUICE_RETURN_IF_ERROR(tuner.Fill(untuned));
    absl::StatusOr<Tuning> tuning =
        candidates.empty() ? tuner.Search(kinds_, untuned) : tuner.BestOf(candidates);
    if (!tuning.ok()) return tuning.status();
    SLUICE_ASSIGN_OR_RETURN(const auto settled, tuner.Settle(untuned, &*tuning));
    if (settled.checked == Bytes(0)) {
      return absl::DeadlineExceededError(
          "the time was too short to read back what was written: give more --seconds");
    }
    TunedDrives found{.settings = settled.settings,
                      .untuned_rate = settled.untuned_rate,
                      .tuning = *std::move(tuning),
                      .written = tuner.written(),
                      .checked = settled.checked,
                      .cut_short = tuner.cut_short(),
                      .engine = ""};
    SLUICE_ASSIGN_OR_RETURN(const auto engine,
                            Make(found.settings.engine, {.in_flight_max = found.settings.depth}));
    found.engine = engine->description();
    SLUICE_RETURN_IF_ERROR(engine->Close());
    return found;
  }

 private:
  const std::span<const DirectFile> files_;
  const MemoryView memory_;
  const Clock* const clock_;
  SteadyClock engine_clock_;
  std::vector<IoEngineKind> kinds_;
};

// For all drives together: what each of them wants, with as much in flight as they want together.
std::vector<TunePoint> CandidatesOf(const std::vector<TuneResult::Path>& paths) {
  Bytes in_flight;
  for (const TuneResult::Path& path : paths) in_flight += path.found.tuning.best.in_flight;
  std::vector<TunePoint> candidates;
  for (const TuneResult::Path& path : paths) {
    TunePoint point = path.found.tuning.best;
    point.in_flight = point.request * std::min<int64_t>(kDepthMax, in_flight / point.request);
    if (std::ranges::find(candidates, point) == candidates.end()) candidates.push_back(point);
  }
  return candidates;
}

// Of the files, so much that each drive is busy for as long as the others.
std::vector<Bytes> SharesOfFiles(const std::vector<TuneResult::Path>& paths, Bytes stretch) {
  std::vector<double> rates;
  double most = 0;
  for (const TuneResult::Path& path : paths) {
    rates.push_back(path.found.settings.mixed_rate);
    most = std::max(most, rates.back() / Value(path.plan.file));
  }
  std::vector<Bytes> sizes;
  sizes.reserve(rates.size());
  for (const double rate : rates)
    sizes.push_back(stretch *
                    std::max<int64_t>(1, Bytes(static_cast<int64_t>(rate / most)) / stretch));
  return sizes;
}

absl::StatusOr<TunedDrives> TuneTogether(const std::vector<TuneResult::Path>& paths,
                                         std::span<const DirectFile> files,
                                         DriveTuner::Options options, const Clock* clock) {
  const std::vector<TunePoint> candidates = CandidatesOf(paths);
  Bytes memory_size = kTuneInFlightMax;
  Bytes stretch = UntunedPoint(IoEngineKind::kAuto).request;
  for (const TunePoint& point : candidates) {
    memory_size = std::max(memory_size, point.in_flight);
    stretch = std::max(stretch, point.request);
  }
  HugePageResource resource;
  SLUICE_ASSIGN_OR_RETURN(const Arena memory, Arena::Create(&resource, memory_size));
  Bench bench(files, memory.memory(), clock);
  SLUICE_RETURN_IF_ERROR(bench.FindEngines());
  const std::vector<Bytes> sizes = SharesOfFiles(paths, stretch);
  // The drive with the largest share gets no more than it may.
  Bytes sum;
  for (const Bytes size : sizes) sum += size;
  const double shares = Value(sum) / Value(*std::ranges::max_element(sizes));
  options.write_max = Bytes(static_cast<int64_t>(0.9 * shares * Value(options.write_max)));
  options.stretch = stretch;  // one after another, in turn, as a run deals them out
  return bench.Tune(sizes, std::move(options), candidates);
}

}  // namespace

absl::StatusOr<TunePlan> PlanTune(const TuneOptions& options) {
  const bool several = options.paths.size() > 1;
  // All together take a part, whose share of the fastest drive may be nearly all of it.
  const Bytes least = several ? kTuneWriteMin * 5 : kTuneWriteMin;
  if (options.write_max < least) {
    return absl::InvalidArgumentError(fmt::format(
        "--max-write {} is too little to measure anything{}: at least {}",
        FormatBytes(options.write_max), several ? " on several drives" : "", FormatBytes(least)));
  }
  TunePlan plan;
  std::set<std::string> seen;
  std::set<std::string> storages;
  for (const std::string& path : options.paths) {
    SLUICE_ASSIGN_OR_RETURN(TunePlan::Path one, PlanPath(options, path));
    if (!seen.insert(IdentityOf(FilesBelow(""), path).path).second)
      return absl::InvalidArgumentError(fmt::format("{} is given twice", path));
    if (!storages.insert(StorageOf(path)).second) {
      one.warnings.push_back(fmt::format(
          "{}: on the same file system as a path before it: a run gains nothing by both", path));
    }
    plan.paths.push_back(std::move(one));
  }
  return plan;
}

absl::StatusOr<TuneResult> TuneDrives(const TuneOptions& options, const TunePlan& plan,
                                      const Progress& progress, const std::atomic<bool>* stop) {
  const SteadyClock clock;
  const TimePoint begin = clock.Now();
  const size_t count = plan.paths.size();
  const size_t turns = count > 1 ? count + 1 : 1;
  const double turn = kMargin * options.seconds * static_cast<double>(count) /
                      static_cast<double>(turns);  // seconds
  size_t turns_done = 0;
  // What the next turn has: time is what is left of it, since the beginning.
  const auto next = [&](const std::string& name, double write_part) {
    DriveTuner::Options how{.stop = stop};
    how.write_max = Bytes(static_cast<int64_t>(write_part * Value(options.write_max)));
    how.seconds =
        std::max(0.1, turn * static_cast<double>(turns_done + 1) - Seconds(clock.Now() - begin));
    how.progress = [&progress, turns, done = turns_done, name](double part, std::string_view what) {
      progress.Show((static_cast<double>(done) + part) / static_cast<double>(turns),
                    fmt::format("{}: {}", name, what));
    };
    ++turns_done;
    return how;
  };
  TuneResult result;
  std::vector<DirectFile> files;
  HugePageResource resource;
  {
    SLUICE_ASSIGN_OR_RETURN(const Arena memory, Arena::Create(&resource, kTuneInFlightMax));
    for (const TunePlan::Path& path : plan.paths) {
      auto file = DirectFile::CreateUnnamed(path.path, path.file);
      if (!file.ok()) return file.status();
      files.push_back(*std::move(file));
      Bench bench({&files.back(), 1}, memory.memory(), &clock);
      absl::Status status = bench.FindEngines();
      if (status.ok()) {
        auto found = bench.Tune({path.file}, next(path.path, count > 1 ? 1 - kSetWrites : 1), {});
        status = found.status();
        if (found.ok()) result.paths.push_back({path, *std::move(found)});
      }
      if (!status.ok()) return Annotate(status, path.path);
    }
  }
  if (count > 1) {
    SLUICE_ASSIGN_OR_RETURN(
        result.together,
        TuneTogether(result.paths, files, next("all drives together", kSetWrites), &clock));
  }
  result.seconds = Seconds(clock.Now() - begin);
  return result;
}

Tuned TuneResult::ForFile() const {
  Tuned tuned{.machine = ThisMachine(), .paths = {}, .set = set().settings};
  for (const Path& path : paths)
    tuned.paths.push_back({IdentityOf(FilesBelow(""), path.plan.path), path.found.settings});
  return tuned;
}

}  // namespace sluice::tools
