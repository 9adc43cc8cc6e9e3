#include "comm/ordered_reduce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "comm/ordered_reduce_reference.h"
#include "core/executor.h"
#include "core/float_bits.h"
#include "core/status.h"
#include "tests/comm/comm_fixture.h"
#include "tests/comm/exchange.h"
#include "tests/core/targets.h"

namespace sluice {
namespace {

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16};

Data RandomBits(size_t bytes, std::mt19937* random) {
  Data data(bytes);
  for (std::byte& byte : data) byte = static_cast<std::byte>((*random)());
  return data;
}

// Of magnitudes that are near each other now and then, so that sums cancel, round and overflow.
Data RandomValues(FloatType type, size_t n, std::mt19937* random) {
  const auto size = static_cast<size_t>(SizeOf(type));
  if ((*random)() % 4 == 0) return RandomBits(n * size, random);  // NaN, Inf, subnormals
  Data data(n * size);
  for (size_t i = 0; i < n; ++i) {
    const auto significand = static_cast<float>(static_cast<int32_t>((*random)()));
    const int scale = static_cast<int>((*random)() % 30) - 40;
    Put(type, std::ldexp(significand, scale), data.data() + i * size);
  }
  return data;
}

// Equal in bits; or both are NaN, of which none is promised.
void ExpectSame(FloatType type, const Data& expected, const Data& got) {
  ASSERT_EQ(expected.size(), got.size());
  const auto size = static_cast<size_t>(SizeOf(type));
  for (size_t at = 0; at < got.size(); at += size) {
    if (std::isnan(Get(type, expected.data() + at))) {
      ASSERT_TRUE(std::isnan(Get(type, got.data() + at))) << at / size;
    } else {
      ASSERT_EQ(0, std::memcmp(expected.data() + at, got.data() + at, size))
          << "element " << at / size << ": " << Get(type, expected.data() + at) << ", not "
          << Get(type, got.data() + at);
    }
  }
}

std::vector<const void*> Pointers(const std::vector<Data>& data, size_t offset = 0) {
  std::vector<const void*> pointers;
  for (const Data& one : data) pointers.push_back(one.data() + offset);
  return pointers;
}

TEST(OrderedSumTest, IsTheReferenceOnEveryTarget) {
  std::mt19937 random(1);
  for (const FloatType from_type : kTypes) {
    for (const FloatType to_type : kTypes) {
      for (const size_t ranks : {1u, 2u, 3u, 4u, 8u, 17u}) {
        for (const size_t n : {0u, 1u, 3u, 7u, 8u, 15u, 16u, 17u, 63u, 64u, 65u, 129u, 1000u}) {
          SCOPED_TRACE(std::string(Name(from_type)) + " to " + Name(to_type) + ", " +
                       std::to_string(ranks) + " ranks, " + std::to_string(n));
          std::vector<Data> from;
          for (size_t r = 0; r < ranks; ++r) from.push_back(RandomValues(from_type, n, &random));
          const auto size = static_cast<size_t>(SizeOf(to_type));
          Data expected(n * size);
          OrderedSumReference(Pointers(from), from_type, expected.data(), to_type, n);
          OnEveryTarget([&] {
            Data sum(n * size);
            OrderedSum(Pointers(from), from_type, sum.data(), to_type, n);
            ExpectSame(to_type, expected, sum);
          });
        }
      }
    }
  }
}

TEST(OrderedSumTest, AnyStartWritesItsElementsOnly) {
  std::mt19937 random(2);
  for (const FloatType type : kTypes) {
    const auto size = static_cast<size_t>(SizeOf(type));
    for (size_t start = 0; start < 8; ++start) {
      std::vector<Data> from;
      for (int r = 0; r < 3; ++r) from.push_back(RandomValues(type, 200, &random));
      Data expected = from[0];
      OrderedSumReference(Pointers(from, start * size), type, expected.data() + start * size, type,
                          100);
      OnEveryTarget([&] {
        Data sum = from[0];
        OrderedSum(Pointers(from, start * size), type, sum.data() + start * size, type, 100);
        ExpectSame(type, expected, sum);
      });
    }
  }
}

TEST(OrderedSumTest, MayReplaceAnyAddend) {
  std::mt19937 random(3);
  for (const FloatType type : kTypes) {
    for (size_t target = 0; target < 4; ++target) {
      std::vector<Data> from;
      for (int r = 0; r < 4; ++r) from.push_back(RandomValues(type, 333, &random));
      Data expected(from[0].size());
      OrderedSumReference(Pointers(from), type, expected.data(), type, 333);
      OnEveryTarget([&] {
        std::vector<Data> own = from;
        OrderedSum(Pointers(own), type, own[target].data(), type, 333);
        ExpectSame(type, expected, own[target]);
      });
    }
  }
}

TEST(OrderedSumTest, AddsFromTheFirstToTheLastAndRoundsOnce) {
  const float values[] = {1e8f, 1, -1e8f};
  const void* const forth[] = {&values[0], &values[1], &values[2]};
  const void* const back[] = {&values[0], &values[2], &values[1]};
  const uint16_t narrow[] = {FromFloat(256, FloatType::kBf16), FromFloat(1, FloatType::kBf16)};
  const void* const two_ones[] = {&narrow[0], &narrow[1], &narrow[1]};
  const float tie = 0x1.01p0f;  // between two of bf16, of which the lower is even
  const void* const alone[] = {&tie};
  OnEveryTarget([&] {
    float sum = -1;
    OrderedSum(forth, FloatType::kF32, &sum, FloatType::kF32, 1);
    EXPECT_EQ(0, sum);
    OrderedSum(back, FloatType::kF32, &sum, FloatType::kF32, 1);
    EXPECT_EQ(1, sum);
    uint16_t rounded = 0;
    OrderedSum(two_ones, FloatType::kBf16, &rounded, FloatType::kBf16, 1);
    EXPECT_EQ(258, ToFloat(rounded, FloatType::kBf16)) << "rounded at each step it were 256";
    OrderedSum(alone, FloatType::kF32, &rounded, FloatType::kBf16, 1);
    EXPECT_EQ(1, ToFloat(rounded, FloatType::kBf16));
  });
}

TEST(OrderedSumTest, FlushesSubnormalsWhateverTheThreadDoes) {
  const float values[] = {0x1p-127f, -0x1p-127f, 0x1p-126f, -0x1.8p-126f};
  OnEveryTarget([&] {
    for (const float a : values) {
      for (const float b : values) {
        const void* const from[] = {&a, &b};
        float expected = 0, sum = 0, flushed = 0;
        OrderedSumReference(from, FloatType::kF32, &expected, FloatType::kF32, 1);
        OrderedSum(from, FloatType::kF32, &sum, FloatType::kF32, 1);
        {
          const ScopedFlushDenormals flush;
          OrderedSum(from, FloatType::kF32, &flushed, FloatType::kF32, 1);
        }
        EXPECT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(sum));
        EXPECT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(flushed));
      }
    }
  });
  volatile float subnormal = 1e-40f;
  EXPECT_NE(0.0f, subnormal * 2.0f) << "the caller's thread is left as it was";
}

// A unit whose gradients every rank has, and what their ordered sums are.
class OrderedReduceTest : public CommFixture {
 protected:
  static constexpr RunTensor kTensors[] = {{0, 10'000}, {10'048, 7}, {10'112, 0}, {10'112, 9'000}};
  static constexpr int64_t kRun = 19'112;

  // Reduces the unit in buckets that end at `cuts`; the sums as they lie in the run.
  Data Reduce(const std::vector<Data>& grads, FloatType type, FloatType to_type,
              const std::vector<int64_t>& cuts) {
    const auto count = static_cast<uint32_t>(grads.size());
    const Partition partition(kTensors, count);
    const int64_t size = SizeOf(type), to_size = SizeOf(to_type);
    Data sums(static_cast<size_t>(kRun * to_size));
    std::vector<OrderedReduce> reduces;
    for (uint32_t r = 0; r < count; ++r) reduces.emplace_back(Rank(r), count);
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const ElementRange range{begin, end};
      begin = end;
      std::vector<Data> staging;
      for (uint32_t r = 0; r < count; ++r) {
        staging.emplace_back(OrderedReduce::StagingSize(partition, Rank(r), range, type).size());
        const ConstMemoryView all(grads[r]);
        TestOp* const op = New(CommKind::kBarrier);
        reduces[r].Prepare(partition,
                           {.range = range,
                            .values = all.subspan(static_cast<size_t>(range.begin * size),
                                                  static_cast<size_t>(range.size() * size)),
                            .type = type,
                            .staging = staging[r]},
                           &op->op);
        group()[r]->Enqueue(&op->op);
      }
      WaitForAll();
      for (OrderedReduce& reduce : reduces)
        reduce.Sum(sums.data() + reduce.mine().begin * to_size, to_type);
    }
    for (const TestOp& op : ops_) EXPECT_TRUE(op.op.status.ok()) << op.op.status;
    return sums;
  }
};

INSTANTIATE_TEST_SUITE_P(All, OrderedReduceTest, testing::ValuesIn(kCommImplementations), NameOf);

TEST_P(OrderedReduceTest, TheBitsAreTheSameForEveryBucketSizeAndPartition) {
  std::mt19937 random(5);
  for (const uint32_t ranks : kRankCounts) {
    for (const FloatType type : kTypes) {
      for (const FloatType to_type : {FloatType::kF32, type}) {
        std::vector<Data> grads;
        for (uint32_t r = 0; r < ranks; ++r)
          grads.push_back(RandomValues(type, static_cast<size_t>(kRun), &random));
        Data expected(static_cast<size_t>(kRun * SizeOf(to_type)));
        OrderedSumReference(Pointers(grads), type, expected.data(), to_type,
                            static_cast<size_t>(kRun));
        const std::vector<int64_t> every_cuts[] = {
            {kRun}, {4096, 8192, kRun}, {1, 5000, 10'000, 10'055, kRun - 1, kRun}, {kRun, kRun}};
        for (const std::vector<int64_t>& cuts : every_cuts) {
          Start(ranks);
          const Data sums = Reduce(grads, type, to_type, cuts);
          for (const RunTensor& tensor : kTensors) {  // what is in gaps is nobody's
            const auto part = [&](const Data& data) {
              const auto first = data.begin() + tensor.offset * SizeOf(to_type);
              return Data(first, first + tensor.elements * SizeOf(to_type));
            };
            ExpectSame(to_type, part(expected), part(sums));
          }
        }
      }
    }
  }
}

// As many bytes as a reduce-scatter: each rank sends all but its own share, once.
TEST_P(OrderedReduceTest, ItsTrafficIsThatOfAReduceScatter) {
  for (const uint32_t ranks : kRankCounts) {
    Start(ranks);
    const std::vector<Data> grads(ranks, Data(static_cast<size_t>(kRun * 4)));
    Reduce(grads, FloatType::kF32, FloatType::kF32, {5000, 12'000, kRun});
    const Partition partition(kTensors, ranks);
    for (uint32_t r = 0; r < ranks; ++r) {
      int64_t elements = 0;
      for (uint32_t other = 0; other < ranks; ++other)
        elements += other == r ? 0 : partition.shard(Rank(other)).size();
      EXPECT_EQ(Bytes(elements * 4),
                group()[r]->counts()[static_cast<size_t>(CommKind::kAllToAll)].sent);
    }
  }
}

}  // namespace
}  // namespace sluice
