// core/grid.h
//
// The canonical grid. The canonical address of a value is (tensor, element); every tensor is cut
// into cells of 4096 elements, the last one shorter. Chunks, shards and partial sums are whole
// cells, so none of them changes a result.

#ifndef SLUICE_CORE_GRID_H_
#define SLUICE_CORE_GRID_H_

#include <cstdint>

namespace sluice {

inline constexpr int64_t kCellElements = 4096;

// Where tensors begin that lie one after the other, in elements.
inline constexpr int64_t kTensorAlignment = 64;

// What is checked, updated and sealed while it is in a core's cache: a few cells of a chunk.
inline constexpr int64_t kPieceElements = 4 * kCellElements;

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr int64_t CellCount(int64_t elements) {
  return (elements + kCellElements - 1) / kCellElements;
}

// The types a value is stored in.
enum class FloatType : uint8_t { kF32 = 0, kBf16 = 1, kF16 = 2 };

constexpr int64_t SizeOf(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }
constexpr const char* Name(FloatType type) {
  return type == FloatType::kF32 ? "fp32" : type == FloatType::kBf16 ? "bf16" : "fp16";
}

}  // namespace sluice

#endif  // SLUICE_CORE_GRID_H_
