#include "optim/on_stream.h"

#include <algorithm>
#include <cstring>

#include "optim/convert.h"
#include "optim/cuda/kernels.h"
#include "optim/norm.h"

namespace sluice {

void AdamWUpdateOn(void* stream, const AdamWCoefficients& coefficients, const AdamWSpans& spans) {
  if (stream != nullptr) return cuda::AdamWUpdate(coefficients, spans, stream);
  AdamWUpdate(coefficients, spans);
}

void CopyOn(void* stream, void* to, const void* from, size_t bytes) {
  if (stream != nullptr) return cuda::Copy(to, from, bytes, stream);
  std::memcpy(to, from, bytes);
}

void ZeroOn(void* stream, void* to, size_t bytes) {
  if (stream != nullptr) return cuda::Zero(to, bytes, stream);
  std::memset(to, 0, bytes);
}

void AccumulateOn(void* stream, void* into, const void* from, FloatType type, size_t n) {
  if (stream != nullptr) return cuda::Accumulate(into, from, type, n, stream);
  Accumulate(into, from, type, n);
}

void CellSquareSumsOn(void* stream, const void* values, FloatType type, size_t n, double* sums) {
  if (stream != nullptr) return cuda::CellSquareSums(values, type, n, sums, stream);
  const auto* bytes = static_cast<const std::byte*>(values);
  constexpr auto kCell = static_cast<size_t>(kCellElements);
  for (size_t at = 0; at < n; at += kCell) {
    *sums++ = CellSquareSum(bytes + at * static_cast<size_t>(SizeOf(type)), type,
                            std::min(kCell, n - at));
  }
}

}  // namespace sluice
