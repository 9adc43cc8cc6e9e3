#include <sys/utsname.h>

#include "core/topology.h"
#include "fmt/format.h"
#include "sluice_commit.h"
#include "tools/bench_report.h"

namespace sluice::tools {

BenchSetup DetectBenchSetup() {
  BenchSetup setup;
  setup.commit = SLUICE_COMMIT;
  setup.version = SLUICE_VERSION;
  if (const auto topology = DetectTopology(); topology.ok()) {
    setup.cpu = topology->cpu_model;
    setup.cores = topology->cores_allowed;
  }
  utsname name{};
  if (uname(&name) == 0) setup.kernel = fmt::format("{} {}", name.sysname, name.release);
  return setup;
}

}  // namespace sluice::tools
