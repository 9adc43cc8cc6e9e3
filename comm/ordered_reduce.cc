#include "comm/ordered_reduce.h"

#include <algorithm>
#include <cstring>

#include "core/executor.h"
#include "core/status.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/ordered_reduce.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the two that say which target this is.
#include "core/convert-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

template <FloatType kFrom>
HWY_INLINE VF SumAt(const void* const* from, size_t count, size_t i) {
  VF sum = Load<kFrom>(from[0], i);
  for (size_t r = 1; r < count; ++r) sum = hn::Add(sum, Load<kFrom>(from[r], i));
  return sum;
}

// What is left is less than a vector; it goes through buffers, so that every element takes the same
// path whatever its place.
template <FloatType kFrom, FloatType kTo>
void SumRest(const void* const* from, size_t count, void* to, size_t begin, size_t n) {
  constexpr size_t kFromSize = SizeOf(kFrom), kToSize = SizeOf(kTo);
  const auto part = [&](const void* values) {
    return static_cast<const std::byte*>(values) + begin * kFromSize;
  };
  alignas(64) float buffer[HWY_MAX_BYTES / 4] = {};
  std::memcpy(buffer, part(from[0]), n * kFromSize);
  VF sum = Load<kFrom>(buffer, 0);
  for (size_t r = 1; r < count; ++r) {
    std::memcpy(buffer, part(from[r]), n * kFromSize);
    sum = hn::Add(sum, Load<kFrom>(buffer, 0));
  }
  Store<kTo>(sum, buffer, 0);
  std::memcpy(static_cast<std::byte*>(to) + begin * kToSize, buffer, n * kToSize);
}

// Four vectors at a time, so that a rank's values are read in whole cache lines.
template <FloatType kFrom, FloatType kTo>
void SumOf(const void* const* from, size_t count, void* to, size_t n) {
  const size_t lanes = hn::Lanes(DF());
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    VF a = Load<kFrom>(from[0], i);
    VF b = Load<kFrom>(from[0], i + lanes);
    VF c = Load<kFrom>(from[0], i + 2 * lanes);
    VF d = Load<kFrom>(from[0], i + 3 * lanes);
    for (size_t r = 1; r < count; ++r) {
      a = hn::Add(a, Load<kFrom>(from[r], i));
      b = hn::Add(b, Load<kFrom>(from[r], i + lanes));
      c = hn::Add(c, Load<kFrom>(from[r], i + 2 * lanes));
      d = hn::Add(d, Load<kFrom>(from[r], i + 3 * lanes));
    }
    StorePair<kTo>(a, b, to, i, false);
    StorePair<kTo>(c, d, to, i + 2 * lanes, false);
  }
  for (; i + lanes <= n; i += lanes) Store<kTo>(SumAt<kFrom>(from, count, i), to, i);
  if (i < n) SumRest<kFrom, kTo>(from, count, to, i, n - i);
}

using SumFunction = void (*)(const void* const*, size_t, void*, size_t);

void SumAll(const void* const* from, size_t count, FloatType from_type, void* to, FloatType to_type,
            size_t n) {
  using enum FloatType;
  static constexpr SumFunction kTable[3][3] = {
      {SumOf<kF32, kF32>, SumOf<kF32, kBf16>, SumOf<kF32, kF16>},
      {SumOf<kBf16, kF32>, SumOf<kBf16, kBf16>, SumOf<kBf16, kF16>},
      {SumOf<kF16, kF32>, SumOf<kF16, kBf16>, SumOf<kF16, kF16>}};
  kTable[static_cast<size_t>(from_type)][static_cast<size_t>(to_type)](from, count, to, n);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(SumAll);

void OrderedSum(std::span<const void* const> from, FloatType from_type, void* to, FloatType to_type,
                size_t n) {
  SLUICE_CHECK(!from.empty());
  const ScopedFlushDenormals flush;
  HWY_DYNAMIC_DISPATCH(SumAll)(from.data(), from.size(), from_type, to, to_type, n);
}

OrderedReduce::OrderedReduce(Rank rank, uint32_t ranks)
    : rank_(rank), send_(ranks), receive_(ranks), addends_(ranks) {
  SLUICE_CHECK(rank.value() < ranks);
}

Bytes OrderedReduce::StagingSize(const Partition& partition, Rank rank, ElementRange range,
                                 FloatType type) {
  const ElementRange mine = Intersection(partition.shard(rank), range);
  return Bytes(std::max<int64_t>(0, mine.size()) * SizeOf(type) * (partition.ranks() - 1));
}

void OrderedReduce::Prepare(const Partition& partition, const Bucket& bucket, CommOp* op) {
  SLUICE_CHECK(partition.ranks() == send_.size());
  SLUICE_CHECK(bucket.values.size() ==
               static_cast<size_t>(bucket.range.size() * SizeOf(bucket.type)));
  SLUICE_CHECK(Bytes(static_cast<int64_t>(bucket.staging.size())) >=
               StagingSize(partition, rank_, bucket.range, bucket.type));
  type_ = bucket.type;
  mine_ = {};
  std::ranges::fill(send_, ConstMemoryView());
  partition.ForShards(bucket.range, [&](Rank rank, ElementRange part) {
    const int64_t size = SizeOf(bucket.type);
    send_[rank.value()] =
        bucket.values.subspan(static_cast<size_t>((part.begin - bucket.range.begin) * size),
                              static_cast<size_t>(part.size() * size));
    if (rank == rank_) mine_ = part;
  });
  const ConstMemoryView own = send_[rank_.value()];
  size_t staged = 0;
  for (uint32_t r = 0; r < send_.size(); ++r) {
    const bool other = r != rank_.value();
    receive_[r] = other ? bucket.staging.subspan(staged, own.size()) : MemoryView();
    addends_[r] = other ? receive_[r].data() : own.data();
    if (other) staged += own.size();
  }
  send_[rank_.value()] = {};  // it is read where it lies
  op->kind = CommKind::kAllToAll;
  op->send = send_;
  op->receive = receive_;
}

void OrderedReduce::Sum(void* to, FloatType to_type) {
  if (mine_.empty()) return;
  OrderedSum(addends_, type_, to, to_type, static_cast<size_t>(mine_.size()));
}

}  // namespace sluice
#endif  // HWY_ONCE
