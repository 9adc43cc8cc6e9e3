#include "core/arena.h"

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {
constexpr Bytes kArenaAlignment = MiB(2);
}

absl::StatusOr<Arena> Arena::Create(MemoryResource* resource, Bytes size) {
  Arena arena;
  if (size == Bytes(0)) return arena;
  SLUICE_ASSIGN_OR_RETURN(arena.memory_, resource->Allocate(size, kArenaAlignment));
  arena.resource_ = resource;
  return arena;
}

Arena Arena::Over(MemoryView memory, std::shared_ptr<void> owner) {
  Arena arena;
  arena.memory_ = memory;
  arena.owner_ = std::move(owner);
  return arena;
}

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(resource_, other.resource_);
  std::swap(owner_, other.owner_);
  std::swap(memory_, other.memory_);
  std::swap(carved_, other.carved_);
  return *this;
}

Arena::~Arena() {
  if (resource_ != nullptr) resource_->Deallocate(memory_);
}

absl::StatusOr<MemoryView> Arena::Carve(Bytes size, Bytes alignment) {
  SLUICE_CHECK(alignment > Bytes(0) && kArenaAlignment.value() % alignment.value() == 0);
  const Bytes begin = RoundUp(carved_, alignment);
  if (size < Bytes(0) || begin + size > this->size()) {
    return absl::ResourceExhaustedError(
        fmt::format("{} more do not fit an arena of {}, of which {} are taken", FormatBytesUp(size),
                    FormatBytesDown(this->size()), FormatBytesUp(carved_)));
  }
  carved_ = begin + size;
  return memory_.subspan(begin.size(), size.size());
}

}  // namespace sluice
