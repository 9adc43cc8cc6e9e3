// Sums over ranks on a GPU, a thread per vector of four elements or per element.

#include "comm/cuda/kernels.h"
#include "core/cuda/float.cuh"
#include "core/cuda/launch.cuh"
#include "core/status.h"

namespace sluice::cuda {

namespace {

// As Addends::of.
__device__ const std::byte* AddendOf(const Addends& from, uint32_t r) {
  return r == from.rank ? from.own : from.others + (r < from.rank ? r : r - 1) * from.stride;
}

__device__ float Plus(float a, float b) { return Add(a, b); }
__device__ float4 Plus(float4 a, float4 b) {
  return {Add(a.x, b.x), Add(a.y, b.y), Add(a.z, b.z), Add(a.w, b.w)};
}
__device__ float Times(float a, float scale) { return Mul(a, scale); }
__device__ float4 Times(float4 a, float scale) {
  return {Mul(a.x, scale), Mul(a.y, scale), Mul(a.z, scale), Mul(a.w, scale)};
}

// The tree of comm/ordered_reduce.h, as a binary counter carries: partial[l] is the sum of the last
// 2^l ranks that begin at a multiple of that, where ranks so far have that bit. kLevels bits are
// enough for the number of ranks, and known, so that partial sums stay in registers.
template <int kLevels, typename V, typename LoadRank>
__device__ V TreeSum(const LoadRank& load, uint32_t ranks) {
  V partial[kLevels];
  for (uint32_t r = 0; r < ranks; ++r) {
    V sum = load(r);
    bool carries = true;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const bool full = (r >> level & 1u) != 0;
      if (carries && full) sum = Plus(partial[level], sum);
      if (carries && !full) partial[level] = sum;
      carries = carries && full;
    }
  }
  V sum{};
  bool any = false;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    if ((ranks >> level & 1u) == 0) continue;
    sum = any ? Plus(partial[level], sum) : partial[level];
    any = true;
  }
  return sum;
}

template <FloatType kType, int kLevels>
__global__ void SumElements(const Addends from, float scale, void* to, size_t n, size_t begin) {
  for (size_t i = begin + FirstItem(); i < n; i += ItemStride()) {
    const auto load = [&](uint32_t r) { return Load<kType>(AddendOf(from, r), i); };
    const float sum = TreeSum<kLevels, float>(load, from.ranks);
    Store<kType>(scale == 1 ? sum : Times(sum, scale), to, i);
  }
}

template <FloatType kType, int kLevels>
__global__ void SumVectors(const Addends from, float scale, void* to, size_t vectors) {
  for (size_t i = FirstItem(); i < vectors; i += ItemStride()) {
    const auto load = [&](uint32_t r) { return LoadVector<kType>(AddendOf(from, r), i); };
    const float4 sum = TreeSum<kLevels, float4>(load, from.ranks);
    StoreVector<kType>(scale == 1 ? sum : Times(sum, scale), to, i);
  }
}

template <FloatType kType, int kLevels>
void Sum(const Addends& from, float scale, void* to, size_t n, cudaStream_t stream) {
  const bool aligned = AllowsVectors(from.own, kType) && AllowsVectors(from.others, kType) &&
                       AllowsVectors(to, kType) &&
                       from.stride % static_cast<size_t>(kVector * SizeOf(kType)) == 0;
  const size_t vectors = aligned ? n / kVector : 0;
  const size_t rest = n - vectors * kVector;
  if (vectors > 0) {
    SumVectors<kType, kLevels>
        <<<BlocksFor(vectors), kThreads, 0, stream>>>(from, scale, to, vectors);
  }
  if (rest > 0) {
    SumElements<kType, kLevels>
        <<<BlocksFor(rest), kThreads, 0, stream>>>(from, scale, to, n, vectors * kVector);
  }
}

}  // namespace

void OrderedSum(const Addends& from, FloatType type, float scale, void* to, size_t n,
                void* stream_handle) {
  constexpr int kFew = 4, kMany = 17;  // bits of the number of ranks
  SLUICE_CHECK(from.ranks >> kMany == 0);
  auto* const stream = static_cast<cudaStream_t>(stream_handle);
  WithType(type, [&](auto t) {
    constexpr FloatType kType = decltype(t)::value;
    from.ranks >> kFew == 0 ? Sum<kType, kFew>(from, scale, to, n, stream)
                            : Sum<kType, kMany>(from, scale, to, n, stream);
  });
}

}  // namespace sluice::cuda
