// What /proc and /sys may say of memory and of CPU quotas: every file that is read, with any
// content.

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <map>
#include <string>

#include "core/budget.h"
#include "core/status.h"

using namespace sluice;  // NOLINT: the fuzzer's entry is outside the namespace

namespace {

// Often as the kernel would say it, so that the rest is reached.
std::string Number(FuzzedDataProvider* input) {
  return input->ConsumeBool() ? std::to_string(input->ConsumeIntegral<int64_t>())
                              : input->ConsumeRandomLengthString(24);
}

std::string Meminfo(FuzzedDataProvider* input) {
  if (input->ConsumeBool()) return input->ConsumeRandomLengthString(200);
  return "MemTotal: " + Number(input) + " kB\nMemAvailable: " + Number(input) + " kB\n";
}

std::string Cgroup(FuzzedDataProvider* input) {
  static const char* const kLines[] = {"0::/\n", "0::/a/b\n", "7:memory:/a/b\n1:cpu:/\n",
                                       "0::/../a\n"};
  return input->ConsumeBool() ? input->ConsumeRandomLengthString(200)
                              : input->PickValueInArray(kLines);
}

std::string Mountinfo(FuzzedDataProvider* input) {
  static const char* const kLines[] = {"", "30 23 0:26 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
                                       "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup cpu\n"};
  return input->ConsumeBool() ? input->ConsumeRandomLengthString(200)
                              : input->PickValueInArray(kLines);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  std::map<std::string, std::string> files;
  files["/proc/meminfo"] = Meminfo(&input);
  files["/proc/self/cgroup"] = Cgroup(&input);
  files["/proc/self/mountinfo"] = Mountinfo(&input);
  for (const char* path : {"", "/a", "/a/b"}) {
    const std::string v2 = std::string("/sys/fs/cgroup") + path;
    files[v2 + "/memory.max"] = Number(&input);
    files[v2 + "/memory.current"] = Number(&input);
    files[v2 + "/memory.stat"] = "inactive_file " + Number(&input) + "\n";
    const std::string v1 = std::string("/sys/fs/cgroup/memory") + path;
    files[v1 + "/memory.limit_in_bytes"] = Number(&input);
    files[v1 + "/memory.usage_in_bytes"] = Number(&input);
    files[v2 + "/memory.high"] = Number(&input);
    files[v2 + "/cpu.max"] = Number(&input) + " " + Number(&input);
  }
  const FileReader read = [&files](const std::string& path) -> absl::StatusOr<std::string> {
    const auto it = files.find(path);
    if (it == files.end()) return absl::NotFoundError(path);
    return it->second;
  };
  if (const auto quota = FindCpuQuota(read); quota) SLUICE_CHECK(quota->cores > 0);
  const absl::StatusOr<MemoryLimits> limits = MemoryLimitsOf(read);
  if (!limits.ok()) return 0;
  SLUICE_CHECK(limits->machine_total >= Bytes(0) && limits->cgroup_used >= Bytes(0));
  SLUICE_CHECK(limits->available() >= Bytes(0));
  SLUICE_CHECK(limits->available() <= limits->machine_available);
  SLUICE_CHECK(!limits->cgroup_limit || limits->available() <= *limits->cgroup_limit);
  return 0;
}
