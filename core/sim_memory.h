// core/sim_memory.h
//
// The simulated memory resource: ordinary memory from the heap, which costs a simulation less than
// huge pages fresh from the kernel. For tests; not linked into the library.
//
// Threads: all calls may come from any thread. A resource outlives what it gave out.

#ifndef SLUICE_CORE_SIM_MEMORY_H_
#define SLUICE_CORE_SIM_MEMORY_H_

#include <string>

#include "core/memory_resource.h"

namespace sluice {

class SimMemory final : public MemoryResource {
 public:
  absl::StatusOr<MemoryView> Allocate(Bytes size, Bytes alignment) override;
  void Deallocate(MemoryView memory) override;
  std::string description() const override;
};

}  // namespace sluice

#endif  // SLUICE_CORE_SIM_MEMORY_H_
