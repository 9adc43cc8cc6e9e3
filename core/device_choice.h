// core/device_choice.h
//
// Which device to compute on, and why: what the caller asked for against what this build and this
// machine have. Nothing falls back silently: a device that was asked for by name and can't be had
// is an error, and what kAuto chose says why it did not choose CUDA.
//
// Threads: any. Asking for kAuto or kCuda starts the CUDA driver if there is one.

#ifndef SLUICE_CORE_DEVICE_CHOICE_H_
#define SLUICE_CORE_DEVICE_CHOICE_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/types.h"

namespace sluice {

enum class DeviceKind : uint8_t { kAuto, kHost, kCuda };

struct DeviceChoice {
  DeviceKind kind = DeviceKind::kHost;  // never kAuto
  int index = 0;                        // of the GPU
  std::string reason = "asked for";
  std::optional<Bytes> memory_free;  // of the GPU
  std::string pci_address;           // likewise
};

// "host" or "cuda".
const char* Name(DeviceKind kind);

// Errors: as ProbeCuda, if kCuda is asked for and can't be had.
absl::StatusOr<DeviceChoice> ChooseDevice(DeviceKind wanted, int index);

}  // namespace sluice

#endif  // SLUICE_CORE_DEVICE_CHOICE_H_
