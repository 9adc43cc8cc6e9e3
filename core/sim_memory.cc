#include "core/sim_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

SimMemory::~SimMemory() {
  SLUICE_CHECK_MSG(in_use_ == Bytes(0), "simulated memory was not given back");
}

absl::StatusOr<MemoryView> SimMemory::Allocate(Bytes size, Bytes alignment) {
  SLUICE_RETURN_IF_ERROR(CheckAllocation(size, alignment));
  if (faults_ != nullptr && faults_->Next(SimSeam::kMemory) == SimFault::kRefused) {
    return absl::ResourceExhaustedError(
        fmt::format("{} ({} bytes) can't be had: the simulation has run out of memory",
                    FormatBytes(size), size.value()));
  }
  if (size > kSizeMax) {
    return absl::ResourceExhaustedError(fmt::format("{} were asked for; a simulation gives {}",
                                                    FormatBytes(size), FormatBytes(kSizeMax)));
  }
  void* at = nullptr;
  const size_t least = std::max(alignment.size(), sizeof(void*));  // what posix_memalign takes
  if (posix_memalign(&at, least, size.size()) != 0) {
    return absl::ResourceExhaustedError(
        fmt::format("{} ({} bytes) can't be had from the heap", FormatBytes(size), size.value()));
  }
  std::memset(at, 0, size.size());
  in_use_ += size;
  return MemoryView(static_cast<std::byte*>(at), size.size());
}

void SimMemory::Deallocate(MemoryView memory) {
  in_use_ -= Bytes(static_cast<int64_t>(memory.size()));
  std::free(memory.data());
}

std::string SimMemory::description() const { return "heap memory of a simulation"; }

}  // namespace sluice
