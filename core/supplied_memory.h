// core/supplied_memory.h
//
// Memory of the HBM tier that the embedding framework made, with its own allocator, and handed over
// as a DLPack tensor, so that both share one pool. The tensor's deleter gives it back when the last
// view of it is gone, which may be after the runtime's end.
//
// Threads: one at a time until Own; whoever drops the last reference calls the tensor's deleter.

#ifndef SLUICE_CORE_SUPPLIED_MEMORY_H_
#define SLUICE_CORE_SUPPLIED_MEMORY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "core/arena.h"
#include "core/dlpack.h"
#include "core/types.h"

namespace sluice {

class SuppliedMemory {
 public:
  // The caller's until Own. `tensor` is contiguous.
  explicit SuppliedMemory(DlManagedTensor* tensor) : tensor_(tensor) {}
  SuppliedMemory(const SuppliedMemory&) = delete;
  SuppliedMemory& operator=(const SuppliedMemory&) = delete;
  ~SuppliedMemory() {
    if (owned_ && tensor_->deleter != nullptr) tensor_->deleter(tensor_);
  }

  // From now on the tensor is given back by the destructor.
  void Own() { owned_ = true; }

  MemoryView memory() const;

  // An arena of `size` bytes over `supplied`. Errors: InvalidArgument if the memory is not on
  // `device` or not aligned to 256 bytes; ResourceExhausted if it is smaller.
  static absl::StatusOr<Arena> MakeArena(const std::shared_ptr<SuppliedMemory>& supplied,
                                         Bytes size, DlDevice device);

 private:
  DlManagedTensor* const tensor_;
  bool owned_ = false;
};

}  // namespace sluice

#endif  // SLUICE_CORE_SUPPLIED_MEMORY_H_
