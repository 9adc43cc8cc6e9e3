// The C ABI's options of drives: where files are, and how transfers to them are made.

#include <string>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"
#include "offload/run/tuned_config.h"

namespace sluice::c_api {

namespace {

absl::Status ToPaths(const sluice_options& o, RuntimeConfig* config) {
  SLUICE_RETURN_IF_ERROR(CheckRange(o.nvme_path_count, 0, 256, "nvme_path_count"));
  for (uint32_t i = 0; i < o.nvme_path_count; ++i) {
    SLUICE_RETURN_IF_ERROR(NotNull(o.nvme_paths, "nvme_paths"));
    SLUICE_RETURN_IF_ERROR(NotNull(o.nvme_paths[i], "nvme_paths[i]"));
    config->nvme_paths.emplace_back(o.nvme_paths[i]);
  }
  return absl::OkStatus();
}

SettingFrom FromOf(bool given) { return given ? SettingFrom::kGiven : SettingFrom::kDefault; }

}  // namespace

absl::Status ToIo(const sluice_options& o, RuntimeConfig* config) {
  SLUICE_RETURN_IF_ERROR(ToPaths(o, config));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_engine, SLUICE_IO_AUTO, SLUICE_IO_LIBAIO, "io_engine"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_depth, 0, 1024, "io_depth"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.io_batch, 0, 1024, "io_batch"));
  SLUICE_RETURN_IF_ERROR(CheckRange(o.chunk_elements, 0, int64_t{1} << 30, "chunk_elements"));
  constexpr IoEngineKind kEngines[] = {IoEngineKind::kAuto, IoEngineKind::kIoUring,
                                       IoEngineKind::kThreads, IoEngineKind::kLibaio};
  config->engine = kEngines[o.io_engine];
  if (o.io_depth > 0) config->io.in_flight_max = o.io_depth;
  if (o.io_batch > 0) config->io.submit_batch_max = o.io_batch;
  config->chunk_elements = o.chunk_elements;
  config->io_settings.chunk_elements = FromOf(o.chunk_elements > 0);
  config->io_settings.depth = FromOf(o.io_depth > 0);
  config->io_settings.batch = FromOf(o.io_batch > 0);
  config->io_settings.engine = FromOf(o.io_engine != SLUICE_IO_AUTO);
  if (o.tuned == nullptr) return absl::OkStatus();
  return Annotate(ApplyTuned(o.tuned, config), "tuned");
}

}  // namespace sluice::c_api
