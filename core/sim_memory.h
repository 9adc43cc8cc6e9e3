// core/sim_memory.h
//
// The simulated memory resource: ordinary memory from the heap, which costs a simulation less than
// huge pages fresh from the kernel. Knows what is out, and refuses when told to. For tests; not
// linked into the library.
//
// Threads: one, where faults are scripted. A resource outlives what it gave out.

#ifndef SLUICE_CORE_SIM_MEMORY_H_
#define SLUICE_CORE_SIM_MEMORY_H_

#include <string>

#include "core/memory_resource.h"
#include "core/sim_faults.h"

namespace sluice {

class SimMemory final : public MemoryResource {
 public:
  static constexpr Bytes kSizeMax = GiB(16);  // what one allocation may be of

  // `faults` (not owned) may be null: nothing goes wrong then.
  explicit SimMemory(SimFaults* faults = nullptr) : faults_(faults) {}
  ~SimMemory() override;  // checks that all was given back
  absl::StatusOr<MemoryView> Allocate(Bytes size, Bytes alignment) override;
  void Deallocate(MemoryView memory) override;
  std::string description() const override;
  Bytes in_use() const { return in_use_; }

 private:
  SimFaults* const faults_;
  Bytes in_use_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_SIM_MEMORY_H_
