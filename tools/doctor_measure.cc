#include "tools/doctor_measure.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/budget.h"
#include "core/clock.h"
#include "core/cuda_device.h"
#include "core/memory_rates.h"
#include "core/status.h"
#include "core/topology.h"
#include "nvme/io_load.h"
#include "tools/bench_report.h"
#include "tools/gpu_copies.h"

namespace sluice::tools {
namespace {

constexpr Bytes kFile = MiB(256);
constexpr double kGiga = 1e9;

absl::Status MeasureMemory(Json* measured) {
  SLUICE_ASSIGN_OR_RETURN(const Topology topology, DetectTopology());
  SLUICE_ASSIGN_OR_RETURN(const MemoryLimits limits, ReadMemoryLimits());
  const int threads = std::max(1, topology.cores_allowed);
  SLUICE_ASSIGN_OR_RETURN(MemoryRates rates,
                          MemoryRates::Create({.cores = topology.cores,
                                               .threads = threads,
                                               .node = {},
                                               .bytes_of_thread = std::min(
                                                   MiB(64), limits.available() / 4 / threads)}));
  std::vector<double> reads, copies;
  for (int i = 0; i < 3; ++i) {
    reads.push_back(rates.Read() / kGiga);
    copies.push_back(rates.Copy() / kGiga);
  }
  (*measured)["memory_read_gb_per_s"] = Median(reads);
  (*measured)["memory_copy_gb_per_s"] = Median(copies);
  return absl::OkStatus();
}

// The file is written once, whole, and then read, each for a moment at most.
absl::Status MeasureDrive(const std::string& path, Json* measured) {
  constexpr auto kMoment = std::chrono::milliseconds(400);
  SLUICE_ASSIGN_OR_RETURN(const Bytes free, FreeSpace(path));
  const Bytes size = std::min(kFile, MiB(8) * (free / 4 / MiB(8)));
  if (size < MiB(16)) return absl::ResourceExhaustedError(path + " has too little free to measure");
  std::vector<DirectFile> files;
  SLUICE_ASSIGN_OR_RETURN(DirectFile file, DirectFile::CreateUnnamed(path, size));
  files.push_back(std::move(file));
  SteadyClock clock;
  HugePageResource resource;
  SLUICE_ASSIGN_OR_RETURN(const Arena arena, Arena::Create(&resource, MiB(8)));
  const MemoryView memory = arena.memory();
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<IoEngine> engine,
                          MakeIoEngine(IoEngineKind::kAuto, files, {&memory, 1}, {}, &clock));
  Bytes written;
  for (const bool write : {true, false}) {
    // What is read is the front of the file, in the order of its writes: it was written.
    IoLoad load({&size, 1}, memory, &clock);
    IoPattern pattern{.read_share = write ? 0.0 : 1.0, .bytes_max = write ? size : written};
    pattern.deadline = clock.Now() + kMoment;
    SLUICE_ASSIGN_OR_RETURN(const IoLoadResult result, load.Run(pattern, engine.get()));
    if (write) written = result.bytes();
    (*measured)[write ? "drive_write_gb_per_s" : "drive_read_gb_per_s"] =
        result.bytes_per_second() / kGiga;
  }
  (*measured)["drive_written_bytes"] = written.value();
  return engine->Close();
}

absl::Status MeasureGpu(Json* measured) {
  constexpr Bytes kSize = MiB(64);
  constexpr int64_t kCount = 8;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<GpuCopies> copies, MakeGpuCopies(0));
  for (const CopyWay way : {CopyWay::kToDevice, CopyWay::kToHost}) {
    copies->DeviceSeconds(way, kSize, 1);
    const double seconds = copies->DeviceSeconds(way, kSize, kCount);
    (*measured)[way == CopyWay::kToDevice ? "to_gpu_gb_per_s" : "from_gpu_gb_per_s"] =
        static_cast<double>(kSize.value() * kCount) / seconds / kGiga;
  }
  return absl::OkStatus();
}

}  // namespace

Json DoctorMeasure(const std::string& path) {
  Json measured;
  for (const char* key :
       {"memory_read_gb_per_s", "memory_copy_gb_per_s", "drive_read_gb_per_s",
        "drive_write_gb_per_s", "drive_written_bytes", "to_gpu_gb_per_s", "from_gpu_gb_per_s"})
    measured[key] = nullptr;
  Json errors = Json::array();
  const auto keep = [&errors](const absl::Status& status) {
    if (!status.ok()) errors.push_back(std::string(Message(status)));
  };
  keep(MeasureMemory(&measured));
  if (!path.empty()) {
    const absl::Status drive = MeasureDrive(path, &measured);
    if (!drive.ok()) measured["drive_error"] = std::string(Message(drive));
    keep(drive);
  }
  if (ProbeCuda(0).ok()) keep(MeasureGpu(&measured));
  measured["errors"] = std::move(errors);
  return measured;
}

}  // namespace sluice::tools
