// `sluice bench io`: a drive, as the runtime uses it, beside fio on the same bytes of the same
// file.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/config.h"
#include "core/histogram.h"
#include "core/memory_resource.h"
#include "core/metrics.h"
#include "core/status.h"
#include "core/trace_events.h"
#include "fmt/format.h"
#include "nvme/block_store.h"
#include "nvme/io_load.h"
#include "nvme/segments.h"
#include "offload/run/factory.h"
#include "tools/bench_cases.h"
#include "tools/fio.h"
#include "tools/output.h"
#include "tools/store_load.h"

namespace sluice::tools {
namespace {

// A chunk of states, as they are by default, is a transfer.
constexpr Bytes kBlock = Bytes(12 * kChunkElementsDefault);
constexpr Bytes kStretch = kBlock * 16;
constexpr uint32_t kStoreBuffers = 24;
constexpr Bytes kSizeStep = kStretch * 4;  // of the file: whole stretches, and whole MiB fourfold
constexpr Bytes kSizeMin = kSizeStep * 4;
constexpr int kRounds = 5;
constexpr double kSlotMin = 0.02;     // seconds of one measurement
constexpr double kFioSlotMin = 0.05;  // likewise, where fio takes part
constexpr double kFioStart = 0.4;     // seconds that a job of fio's takes beside its own

// What is compared with what in one mode, by round.
struct ModeRounds {
  std::vector<double> engine, store, plain, best;                     // GB/s
  double engine_cpu = 0, store_cpu = 0, plain_cpu = 0, best_cpu = 0;  // seconds
  double engine_bytes = 0, store_bytes = 0;
  Histogram engine_ns, store_ns;
  std::optional<FioShape> best_shape;
  bool plain_runs = false;
};

// The file, and all that moves bytes of it.
class IoBench {
 public:
  absl::Status Open(const std::string& path, Bytes size, IoEngineKind kind) {
    const Drive drive{.path = path};
    const std::vector<BlockShape> blocks(static_cast<size_t>(size / kBlock),
                                         {.size = kBlock, .kind = 0, .columns = 3});
    SegmentTable table = PlanSegments(
        blocks, {&drive, 1},
        {.segment_bytes = size, .alignment = ExtentAlignmentOf(std::span(&drive.path, 1))});
    SLUICE_ASSIGN_OR_RETURN(files_, CreateSegments(table));
    const IoEngine::Limits limits;
    const Bytes own = kBlock * limits.in_flight_max;
    const Bytes extent = table.extents.front().length;
    SLUICE_ASSIGN_OR_RETURN(memory_, Arena::Create(&resource_, own + extent * kStoreBuffers));
    const MemoryView all = memory_.memory();
    SLUICE_ASSIGN_OR_RETURN(engine_, MakeIoEngine(kind, files_, {&all, 1}, limits, &clock_));
    load_ = std::make_unique<IoLoad>(table.file_sizes, all.first(own.size()), &clock_,
                                     IoLoad::Options{.stretch = kStretch});
    std::vector<MemoryView> buffers;
    for (uint32_t b = 0; b < kStoreBuffers; ++b)
      buffers.push_back(all.subspan((own + extent * b).size(), extent.size()));
    store_ = std::make_unique<BlockStore>(std::move(table), engine_.get(), limits, &clock_,
                                          &metrics_, &trace_);
    SLUICE_ASSIGN_OR_RETURN(store_load_,
                            StoreLoad::Create(store_.get(), engine_.get(), buffers, &clock_));
    return absl::OkStatus();
  }

  // Every block is written once, so that reads come from the drive.
  absl::Status Fill() {
    Histogram latency;
    SLUICE_ASSIGN_OR_RETURN(const StoreLoadResult filled,
                            store_load_->Run(IoMode::kWrite, std::nullopt, &latency));
    written_ += filled.bytes;
    return absl::OkStatus();
  }

  absl::Status Engine(IoMode mode, double seconds, ModeRounds* rounds) {
    IoPattern pattern{.request = kBlock};
    pattern.read_share = mode == IoMode::kRead ? 1 : mode == IoMode::kWrite ? 0 : 0.5;
    pattern.deadline = clock_.Now() + Nanos(static_cast<int64_t>(seconds * 1e9));
    SLUICE_ASSIGN_OR_RETURN(const IoLoadResult result, load_->Run(pattern, engine_.get()));
    rounds->engine.push_back(result.bytes_per_second() / 1e9);
    rounds->engine_cpu += result.cpu_seconds;
    rounds->engine_bytes += static_cast<double>(result.bytes().value());
    for (const auto& of_kind : result.kinds) rounds->engine_ns.Merge(of_kind.latency_ns);
    written_ += result.writes().bytes;
    if (mode != IoMode::kRead) store_load_->Spoil();
    return absl::OkStatus();
  }

  absl::Status Store(IoMode mode, double seconds, ModeRounds* rounds) {
    SLUICE_ASSIGN_OR_RETURN(const StoreLoadResult result,
                            store_load_->Run(mode, seconds, &rounds->store_ns));
    const auto bytes = static_cast<double>(result.bytes.value());
    rounds->store.push_back(bytes / result.seconds / 1e9);
    rounds->store_cpu += result.cpu_seconds;
    rounds->store_bytes += bytes;
    CountWritten(mode, result.bytes);
    return absl::OkStatus();
  }

  absl::StatusOr<FioResult> RunFio(const Fio& fio, const FioShape& shape, IoMode mode,
                                   double seconds) {
    const DirectFile& file = files_.front();
    // From another place each time, as the others go on from where they were.
    const Bytes begin =
        kSizeStep * (fio_runs_++ % std::max<int64_t>(1, file.size() / kSizeStep / 2));
    if (mode != IoMode::kRead) store_load_->Spoil();
    SLUICE_ASSIGN_OR_RETURN(const FioResult result,
                            fio.Run(shape, mode, file, begin, file.size(), seconds));
    CountWritten(mode, Bytes(static_cast<int64_t>(result.bytes_per_second * seconds)));
    return result;
  }

  absl::Status Close() { return engine_->Close(); }
  std::string engine() const { return engine_->description(); }
  const DirectFile& file() const { return files_.front(); }
  Bytes written() const { return written_; }
  std::string buffers() const { return resource_.description(); }

 private:
  void CountWritten(IoMode mode, Bytes moved) {
    if (mode != IoMode::kRead) written_ += mode == IoMode::kMixed ? moved / 2 : moved;
  }

  SteadyClock clock_;
  HugePageResource resource_;
  Metrics metrics_;
  TraceEvents trace_{0};
  std::vector<DirectFile> files_;
  Arena memory_;
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<IoLoad> load_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<StoreLoad> store_load_;
  Bytes written_;
  int64_t fio_runs_ = 0;
};

absl::StatusOr<Bytes> SizeOf(const IoBenchOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(options.path));
  const Bytes wanted = options.size.value_or(std::min(GiB(2), free / 2));
  const Bytes size = kSizeStep * (wanted / kSizeStep);
  if (size > free) {
    return absl::ResourceExhaustedError(fmt::format("{} has {} free, not {}", options.path,
                                                    FormatBytesDown(free), FormatBytesUp(size)));
  }
  if (size >= kSizeMin) return size;
  return absl::InvalidArgumentError(
      options.size ? fmt::format("--size {} is too small: at least {}", FormatBytes(wanted),
                                 FormatBytesUp(kSizeMin))
                   : fmt::format("{} has {} free, and half of it is too little: at least {}",
                                 options.path, FormatBytesDown(free), FormatBytesUp(kSizeMin)));
}

void Keep(std::vector<std::string>* said, const absl::Status& status) {
  std::string words(Message(status));
  if (std::ranges::find(*said, words) == said->end()) said->push_back(std::move(words));
}

// fio's shapes in `mode`, the best and the plain one, by one look at each. Those that fail here are
// left out, and said.
absl::Status FindBest(const Fio& fio, IoMode mode, double seconds, IoBench* bench,
                      ModeRounds* rounds, std::vector<std::string>* failed) {
  double best = 0;
  for (const FioShape& shape : TunedFioShapes()) {
    const auto result = bench->RunFio(fio, shape, mode, seconds);
    if (!result.ok()) {
      Keep(failed, result.status());
    } else if (result->bytes_per_second > best) {
      best = result->bytes_per_second;
      rounds->best_shape = shape;
    }
  }
  if (!rounds->best_shape) return absl::UnavailableError("no job of fio's runs here");
  const auto plain = bench->RunFio(fio, kPlainFio, mode, seconds);
  rounds->plain_runs = plain.ok();
  if (!plain.ok()) Keep(failed, plain.status());
  return absl::OkStatus();
}

// Each round begins with another, so that what a drive does after it was busy, or has rested, falls
// on all of them. A job of fio's that fails now ends its comparison in this mode.
absl::Status OneRound(const std::optional<Fio>& fio, IoMode mode, double seconds, int round,
                      IoBench* bench, ModeRounds* rounds, std::vector<std::string>* failed) {
  const auto beside = [&](const FioShape& shape, std::vector<double>* rates, double* cpu) {
    const auto result = bench->RunFio(*fio, shape, mode, seconds);
    if (result.ok()) {
      rates->push_back(result->bytes_per_second / 1e9);
      *cpu += result->cpu_seconds_per_byte * 1e9;
      return true;
    }
    Keep(failed, result.status());
    rates->clear();
    return false;
  };
  constexpr int kJobs = 4;
  for (int job = 0; job < kJobs; ++job) {
    switch ((round + job) % kJobs) {
      case 0:
        SLUICE_RETURN_IF_ERROR(bench->Engine(mode, seconds, rounds));
        break;
      case 1:
        if (rounds->best_shape && !beside(*rounds->best_shape, &rounds->best, &rounds->best_cpu))
          rounds->best_shape.reset();
        break;
      case 2:
        SLUICE_RETURN_IF_ERROR(bench->Store(mode, seconds, rounds));
        break;
      default:
        if (rounds->plain_runs && !beside(kPlainFio, &rounds->plain, &rounds->plain_cpu))
          rounds->plain_runs = false;
    }
  }
  return absl::OkStatus();
}

void AddCases(const std::string& fio, IoMode mode, const ModeRounds& rounds, BenchReport* report) {
  const auto with_own = [](BenchCase one, double cpu, double bytes, const Histogram& ns) {
    one.cpu_s_per_gb = cpu / (bytes / 1e9);
    one.p50_us = static_cast<double>(ns.Percentile(0.5)) / 1e3;
    one.p99_us = static_cast<double>(ns.Percentile(0.99)) / 1e3;
    return one;
  };
  const auto engine = [&](const char* name, const std::vector<double>& peer, double peer_cpu) {
    BenchCase one = MakeCase(fmt::format("{}, {}", Name(mode), name), "GB/s",
                             {.own = rounds.engine, .limit = {}, .peer = peer});
    if (!peer.empty()) one.peer_cpu_s_per_gb = peer_cpu / static_cast<double>(peer.size());
    return with_own(std::move(one), rounds.engine_cpu, rounds.engine_bytes, rounds.engine_ns);
  };
  BenchCase best = engine("engine", rounds.best, rounds.best_cpu);
  if (best.peer) best.peer_is = fmt::format("the best of {}: {}", fio, rounds.best_shape->Text());
  report->cases.push_back(std::move(best));
  if (!rounds.plain.empty()) {
    BenchCase plain = engine("engine, beside plain fio", rounds.plain, rounds.plain_cpu);
    plain.p50_us.reset();  // as above
    plain.p99_us.reset();
    plain.peer_is = fmt::format("{}: {}", fio, kPlainFio.Text());
    report->cases.push_back(std::move(plain));
  }
  BenchCase store = with_own(MakeCase(fmt::format("{}, store with checksums", Name(mode)), "GB/s",
                                      {.own = rounds.store, .limit = rounds.engine, .peer = {}}),
                             rounds.store_cpu, rounds.store_bytes, rounds.store_ns);
  store.limit_is = "the engine without store and checksums";
  report->cases.push_back(std::move(store));
}

}  // namespace

absl::StatusOr<BenchReport> BenchIo(const IoBenchOptions& options) {
  BenchReport report{.benchmark = "io", .setup = DetectBenchSetup(), .cases = {}, .notes = {}};
  SLUICE_ASSIGN_OR_RETURN(const Bytes size, SizeOf(options));
  IoBench bench;
  SLUICE_RETURN_IF_ERROR(bench.Open(options.path, size, options.engine));
  const DirectFile& file = bench.file();
  report.setup.code_path = bench.engine();
  // Without the directory, which may be another each time.
  report.setup.file_system = file.description().substr(file.directory().size() + 2);
  const Progress progress;
  progress.Show(0, "writing the file");
  SLUICE_RETURN_IF_ERROR(bench.Fill());
  std::optional<Fio> fio = Fio::Find();
  const std::string fio_version = fio ? fio->version() : "";
  std::vector<std::string> failed;
  std::vector<std::unique_ptr<ModeRounds>> modes;
  constexpr double kModes = std::size(kIoModes);
  const auto shapes = static_cast<double>(TunedFioShapes().size());
  double look = 0;
  double slot_beside_fio = 0;
  const double slot_alone = std::max(kSlotMin, options.seconds / kModes / kRounds / 2);
  if (fio) {
    const double net = options.seconds - kModes * (shapes + 1 + 2 * kRounds) * kFioStart;
    look = std::max(kFioSlotMin, net * 0.4 / kModes / shapes);
    slot_beside_fio = std::max(kFioSlotMin, net * 0.6 / kModes / kRounds / 4);
  }
  double done = 0;
  const double all = kModes * (kRounds + 1);
  // Reads first: nothing has written over what the store knows by then.
  for (const IoMode mode : kIoModes) {
    modes.push_back(std::make_unique<ModeRounds>());
    if (fio) {
      progress.Show(done / all, fmt::format("{}: looking for fio's best", Name(mode)));
      const absl::Status found = FindBest(*fio, mode, look, &bench, modes.back().get(), &failed);
      if (!found.ok()) {
        report.notes.push_back(std::string(Message(found)));
        fio.reset();
      }
    }
    ++done;
    for (int round = 0; round < kRounds; ++round, ++done) {
      progress.Show(done / all, fmt::format("{}: round {} of {}", Name(mode), round + 1, kRounds));
      SLUICE_RETURN_IF_ERROR(OneRound(fio, mode, fio ? slot_beside_fio : slot_alone, round, &bench,
                                      modes.back().get(), &failed));
    }
  }
  SLUICE_RETURN_IF_ERROR(bench.Close());
  for (size_t m = 0; m < modes.size(); ++m) AddCases(fio_version, kIoModes[m], *modes[m], &report);
  if (fio_version.empty())
    report.notes.emplace_back("no fio here to compare with: apt-get install fio");
  for (std::string& said : failed) report.notes.push_back(std::move(said));
  if (file.in_ram()) report.notes.emplace_back("the file lay in RAM: no drive was measured");
  if (bench.buffers().starts_with("4 KiB")) report.notes.push_back(bench.buffers());
  report.notes.push_back(fmt::format("{} were written, to a file of {} that is gone",
                                     FormatBytes(bench.written()), FormatBytes(size)));
  return report;
}

}  // namespace sluice::tools
