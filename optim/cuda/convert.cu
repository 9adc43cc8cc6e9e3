// Conversions and accumulation on a GPU.

#include "core/cuda/float.cuh"
#include "core/cuda/launch.cuh"
#include "optim/cuda/kernels.h"

namespace sluice::cuda {

namespace {

// to[i] = from[i], or to[i] + from[i], for the elements from `begin` on.
template <FloatType kFrom, FloatType kTo, bool kAdd>
__global__ void ApplyElements(const void* from, void* to, size_t n, size_t begin) {
  for (size_t i = begin + FirstItem(); i < n; i += ItemStride()) {
    float value = Load<kFrom>(from, i);
    if constexpr (kAdd) value = Add(Load<kTo>(to, i), value);
    Store<kTo>(value, to, i);
  }
}

template <FloatType kFrom, FloatType kTo, bool kAdd>
__global__ void ApplyVectors(const void* from, void* to, size_t vectors) {
  for (size_t i = FirstItem(); i < vectors; i += ItemStride()) {
    float4 v = LoadVector<kFrom>(from, i);
    if constexpr (kAdd) {
      const float4 old = LoadVector<kTo>(to, i);
      v = {Add(old.x, v.x), Add(old.y, v.y), Add(old.z, v.z), Add(old.w, v.w)};
    }
    StoreVector<kTo>(v, to, i);
  }
}

template <FloatType kFrom, FloatType kTo, bool kAdd>
void Apply(const void* from, void* to, size_t n, cudaStream_t stream) {
  const bool aligned = AllowsVectors(from, kFrom) && AllowsVectors(to, kTo);
  const size_t vectors = aligned ? n / kVector : 0;
  const size_t rest = n - vectors * kVector;
  if (vectors > 0) {
    ApplyVectors<kFrom, kTo, kAdd><<<BlocksFor(vectors), kThreads, 0, stream>>>(from, to, vectors);
  }
  if (rest > 0) {
    ApplyElements<kFrom, kTo, kAdd>
        <<<BlocksFor(rest), kThreads, 0, stream>>>(from, to, n, vectors * kVector);
  }
}

}  // namespace

void Copy(void* to, const void* from, size_t bytes, void* stream) {
  if (from == to || bytes == 0) return;
  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream));
}

void Zero(void* to, size_t bytes, void* stream) {
  if (bytes != 0) cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream));
}

void Convert(const void* from, FloatType from_type, void* to, FloatType to_type, size_t n,
             void* stream_handle) {
  if (from_type == to_type)
    return Copy(to, from, n * static_cast<size_t>(SizeOf(from_type)), stream_handle);
  auto* const stream = static_cast<cudaStream_t>(stream_handle);
  WithType(from_type, [&](auto a) {
    WithType(to_type, [&](auto b) {
      Apply<decltype(a)::value, decltype(b)::value, false>(from, to, n, stream);
    });
  });
}

void Accumulate(void* into, const void* from, FloatType type, size_t n, void* stream) {
  WithType(type, [&](auto t) {
    constexpr FloatType kType = decltype(t)::value;
    Apply<kType, kType, true>(from, into, n, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace sluice::cuda
