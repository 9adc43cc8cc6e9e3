// core/arena.h
//
// An Arena is one exact-size allocation, taken at start and given back at the end. Regions are
// carved off it once, in order, and never returned singly: what is carved is the plan of a tier, so
// its peak is known before the first step.
//
// Threads: one at a time.

#ifndef SLUICE_CORE_ARENA_H_
#define SLUICE_CORE_ARENA_H_

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "core/memory_resource.h"
#include "core/types.h"

namespace sluice {

class Arena {
 public:
  // Takes `size` bytes from `resource` (not owned, outlives the arena). Size 0 gives an empty
  // arena.
  static absl::StatusOr<Arena> Create(MemoryResource* resource, Bytes size);

  // An arena over `memory`, which `owner` keeps until it is destroyed.
  static Arena Over(MemoryView memory, std::shared_ptr<void> owner);

  Arena() = default;
  Arena(Arena&& other) noexcept { *this = std::move(other); }
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();

  // The next `size` bytes at a multiple of `alignment`, which divides 2 MiB. Errors:
  // ResourceExhausted with what is left.
  absl::StatusOr<MemoryView> Carve(Bytes size, Bytes alignment);

  MemoryView memory() const { return memory_; }
  Bytes size() const { return Bytes(static_cast<int64_t>(memory_.size())); }
  Bytes carved() const { return carved_; }
  bool Contains(const void* p) const {
    const auto* b = static_cast<const std::byte*>(p);
    return !memory_.empty() && b >= memory_.data() && b < memory_.data() + memory_.size();
  }

 private:
  MemoryResource* resource_ = nullptr;  // gives memory_ back, unless owner_ does
  std::shared_ptr<void> owner_;
  MemoryView memory_;
  Bytes carved_;
};

}  // namespace sluice

#endif  // SLUICE_CORE_ARENA_H_
