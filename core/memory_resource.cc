#include "core/memory_resource.h"

#include <sys/mman.h>

#include <bit>
#include <cerrno>
#include <cstdint>
#include <fstream>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr Bytes kPage = KiB(4);
constexpr Bytes kHugePage = MiB(2);

// There and writable now, rather than at the first touch in a step.
bool Populate(std::byte* at, size_t size) {
#ifdef MADV_POPULATE_WRITE
  if (madvise(at, size, MADV_POPULATE_WRITE) == 0) return true;
  if (errno == ENOMEM || errno == EFAULT) return false;
#endif
  for (size_t i = 0; i < size; i += kPage.size()) at[i] = std::byte{0};
  return true;
}

}  // namespace

absl::Status CheckAllocation(Bytes size, Bytes alignment) {
  if (size > Bytes(0) && alignment > Bytes(0) && std::has_single_bit(alignment.size()))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} bytes at alignment {} were asked for; the size must be positive, the "
                  "alignment a power of two",
                  size.value(), alignment.value()));
}

absl::StatusOr<MemoryView> HugePageResource::Allocate(Bytes size, Bytes alignment) {
  SLUICE_RETURN_IF_ERROR(CheckAllocation(size, alignment));
  const Bytes mapped = RoundUp(size, kPage);
  const Bytes aligned = std::max(alignment, kHugePage);
  const size_t reserved = (mapped + aligned).size();
  void* base = mmap(nullptr, reserved, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return ErrnoStatus(errno, fmt::format("mapping {} of memory", FormatBytes(size)));
  const auto begin = reinterpret_cast<uintptr_t>(base);
  const uintptr_t start = (begin + aligned.size() - 1) / aligned.size() * aligned.size();
  if (start > begin) munmap(base, start - begin);
  const uintptr_t end = start + mapped.size();
  if (begin + reserved > end) munmap(reinterpret_cast<void*>(end), begin + reserved - end);

  auto* at = reinterpret_cast<std::byte*>(start);
  madvise(at, mapped.size(), MADV_HUGEPAGE);
  madvise(at, mapped.size(), MADV_DONTFORK);
  madvise(at, mapped.size(), MADV_DONTDUMP);
  if (!Populate(at, mapped.size())) {
    munmap(at, mapped.size());
    return absl::ResourceExhaustedError(fmt::format(
        "{} ({} bytes) of memory can't be had from this machine: lower the budgets or free memory",
        FormatBytes(size), size.value()));
  }
  return MemoryView(at, size.size());
}

void HugePageResource::Deallocate(MemoryView memory) {
  SLUICE_CHECK(munmap(memory.data(),
                      RoundUp(Bytes(static_cast<int64_t>(memory.size())), kPage).size()) == 0);
}

std::string HugePageResource::description() const {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  std::getline(file, text);
  const size_t open = text.find('[');
  const size_t close = text.find(']');
  if (open == std::string::npos || close == std::string::npos) {
    return "4 KiB pages: the kernel has no transparent huge pages";
  }
  const std::string mode = text.substr(open + 1, close - open - 1);
  if (mode == "never") {
    return "4 KiB pages: transparent huge pages are off; as root: echo madvise > "
           "/sys/kernel/mm/transparent_hugepage/enabled";
  }
  return fmt::format("huge pages (transparent, mode {})", mode);
}

absl::StatusOr<MemoryView> LimitingResource::Allocate(Bytes size, Bytes alignment) {
  const int64_t used = used_.fetch_add(size.value()) + size.value();
  if (used > limit_.value()) {
    used_.fetch_sub(size.value());
    return absl::ResourceExhaustedError(
        fmt::format("{} more would exceed the limit of {}: {} are in use", FormatBytesUp(size),
                    FormatBytesDown(limit_), FormatBytesUp(Bytes(used) - size)));
  }
  absl::StatusOr<MemoryView> memory = upstream_->Allocate(size, alignment);
  if (!memory.ok()) {
    used_.fetch_sub(size.value());
    return memory;
  }
  int64_t peak = peak_.load();
  while (peak < used && !peak_.compare_exchange_weak(peak, used)) {
  }
  return memory;
}

void LimitingResource::Deallocate(MemoryView memory) {
  upstream_->Deallocate(memory);
  used_.fetch_sub(static_cast<int64_t>(memory.size()));
}

std::string LimitingResource::description() const {
  return fmt::format("{}, at most {}", upstream_->description(), FormatBytes(limit_));
}

}  // namespace sluice
