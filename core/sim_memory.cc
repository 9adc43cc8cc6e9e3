#include "core/sim_memory.h"

#include <cstdlib>
#include <cstring>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

absl::StatusOr<MemoryView> SimMemory::Allocate(Bytes size, Bytes alignment) {
  SLUICE_RETURN_IF_ERROR(CheckAllocation(size, alignment));
  void* at = nullptr;
  const size_t least = std::max(alignment.size(), sizeof(void*));  // what posix_memalign takes
  if (posix_memalign(&at, least, size.size()) != 0) {
    return absl::ResourceExhaustedError(
        fmt::format("{} ({} bytes) can't be had from the heap", FormatBytes(size), size.value()));
  }
  std::memset(at, 0, size.size());
  return MemoryView(static_cast<std::byte*>(at), size.size());
}

void SimMemory::Deallocate(MemoryView memory) { std::free(memory.data()); }

std::string SimMemory::description() const { return "heap memory of a simulation"; }

}  // namespace sluice
