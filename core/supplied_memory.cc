#include "core/supplied_memory.h"

#include "core/config.h"
#include "fmt/format.h"

namespace sluice {

namespace {
constexpr size_t kAlignment = 256;
}

MemoryView SuppliedMemory::memory() const {
  const DlTensor& t = tensor_->dl_tensor;
  size_t bytes = static_cast<size_t>(t.dtype.bits) * t.dtype.lanes / 8;
  for (int32_t i = 0; i < t.ndim; ++i) bytes *= static_cast<size_t>(t.shape[i]);
  return {static_cast<std::byte*>(t.data) + t.byte_offset, bytes};
}

absl::StatusOr<Arena> SuppliedMemory::MakeArena(const std::shared_ptr<SuppliedMemory>& supplied,
                                                Bytes size, DlDevice device) {
  const DlDevice is = supplied->tensor_->dl_tensor.device;
  if (is.device_type != device.device_type || is.device_id != device.device_id) {
    return absl::InvalidArgumentError(fmt::format(
        "the memory supplied for HBM is on DLPack device ({}, {}), but ({}, {}) is used",
        is.device_type, is.device_id, device.device_type, device.device_id));
  }
  const MemoryView memory = supplied->memory();
  if (memory.size() < size.size()) {
    return absl::ResourceExhaustedError(
        fmt::format("the memory supplied for HBM has {} bytes, but the plan needs {}",
                    memory.size(), size.value()));
  }
  if (reinterpret_cast<uintptr_t>(memory.data()) % kAlignment != 0) {
    return absl::InvalidArgumentError(
        fmt::format("the memory supplied for HBM must be aligned to {} bytes", kAlignment));
  }
  return Arena::Over(memory.first(size.size()), supplied);
}

}  // namespace sluice
