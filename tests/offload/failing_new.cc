#include "tests/offload/failing_new.h"

#include <cstdlib>
#include <new>

// The other forms come to these.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return sluice::testing::NextNewFails() ? nullptr : std::malloc(size);
}
void* operator new(size_t size) {
  void* const memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, std::align_val_t alignment) {
  void* memory = nullptr;
  if (sluice::testing::NextNewFails() ||
      posix_memalign(&memory, static_cast<size_t>(alignment), size) != 0)
    throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
