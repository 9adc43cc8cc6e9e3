#include "core/device_choice.h"

#include "core/cuda_device.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

const char* Name(DeviceKind kind) {
  return kind == DeviceKind::kCuda ? "cuda" : kind == DeviceKind::kHost ? "host" : "auto";
}

absl::StatusOr<DeviceChoice> ChooseDevice(DeviceKind wanted, int index) {
  DeviceChoice choice;
  if (wanted == DeviceKind::kHost) return choice;
  const absl::StatusOr<CudaProbe> probe = ProbeCuda(index);
  if (!probe.ok()) {
    if (wanted == DeviceKind::kCuda) return Annotate(probe.status(), "device 'cuda' was asked for");
    choice.reason = fmt::format("no GPU can be used: {}", Message(probe.status()));
    return choice;
  }
  choice.kind = DeviceKind::kCuda;
  choice.index = index;
  if (wanted == DeviceKind::kAuto) choice.reason = fmt::format("found {}", probe->name);
  choice.memory_free = probe->memory_free;
  choice.pci_address = probe->pci_address;
  return choice;
}

}  // namespace sluice
