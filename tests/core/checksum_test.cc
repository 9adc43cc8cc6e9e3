#include "core/checksum.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>
#include <set>
#include <vector>

namespace sluice {
namespace {

std::vector<std::byte> Block() {
  std::vector<std::byte> data(5000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
  return data;
}

TEST(ChecksumTest, ChangesWithEveryBit) {
  std::vector<std::byte> data = Block();
  std::set<uint64_t> seen = {SeededChecksum(data, BlockIndex(3), 9)};
  for (size_t bit = 0; bit < data.size() * 8; bit += 61) {
    data[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_TRUE(seen.insert(SeededChecksum(data, BlockIndex(3), 9)).second) << "bit " << bit;
    data[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(ChecksumTest, ChangesWithBlockAndGeneration) {
  const std::vector<std::byte> data = Block();
  std::set<uint64_t> seen;
  for (uint32_t block = 0; block < 50; ++block) {
    for (uint64_t generation = 0; generation < 50; ++generation)
      seen.insert(SeededChecksum(data, BlockIndex(block), generation));
  }
  EXPECT_EQ(2500u, seen.size());
}

TEST(ChecksumTest, ChangesWithTheLength) {
  const std::vector<std::byte> zeros(100);
  std::set<uint64_t> seen;
  for (size_t n = 0; n <= zeros.size(); ++n)
    seen.insert(SeededChecksum(ConstMemoryView(zeros).first(n), BlockIndex(0), 0));
  EXPECT_EQ(zeros.size() + 1, seen.size());
}

// Of whatever vectors: the plain function is the oracle, over every length around stripes and
// scrambles, every start, and seeds of which some wrap.
TEST(ChecksumTest, IsXxh3) {
  std::mt19937 random(3);
  std::vector<std::byte> data(3 * 1024 + 300);
  for (std::byte& b : data) b = static_cast<std::byte>(random());
  const auto seed = [](uint32_t block, uint64_t generation) {
    return (uint64_t{block} + 1) * 0x9E3779B97F4A7C15u ^ generation * 0xC2B2AE3D27D4EB4Fu;
  };
  for (size_t n = 0; n <= data.size() - 64; ++n) {
    const size_t start = n % 64;
    const auto block = static_cast<uint32_t>(n % 7);
    const uint64_t generation = n % 11;
    ASSERT_EQ(
        XXH3_64bits_withSeed(data.data() + start, n, seed(block, generation)),
        SeededChecksum(ConstMemoryView(data).subspan(start, n), BlockIndex(block), generation))
        << n << " bytes from " << start;
  }
}

TEST(ChecksumTest, StaysTheSameForEver) {  // manifests of checkpoints hold it
  EXPECT_EQ(4832870858498570435u, SeededChecksum(Block(), BlockIndex(3), 9));
}

}  // namespace
}  // namespace sluice
