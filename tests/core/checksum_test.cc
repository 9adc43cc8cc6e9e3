#include "core/checksum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/core/targets.h"

namespace sluice {
namespace {

using Data = std::vector<std::byte>;

Data Random(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  Data data(n);
  for (std::byte& b : data) b = static_cast<std::byte>(random());
  return data;
}

uint64_t Of(const Data& data) { return SeededChecksum(data, BlockIndex(3), 9); }

// checksum.h's definition, a bit at a time, on numbers of 128 bits.
class Definition {
 public:
  Definition() {
    uint64_t state = 0;
    for (auto* const table : {&first_, &second_}) {
      for (size_t i = 0; i < 2 * 2048 + 6; ++i) {
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        table->push_back(z ^ z >> 31);
      }
    }
  }

  StripeSums Sums(const std::vector<Data>& columns, size_t column_stripes) const {
    unsigned __int128 sums[4] = {};
    for (size_t c = 0; c < columns.size(); ++c) {
      Data column = columns[c];
      column.resize((column.size() + 127) / 128 * 128);
      for (size_t s = 0; s < column.size() / 128; ++s) {
        for (size_t j = 0; j < 8; ++j) {
          uint64_t a = 0, b = 0;
          std::memcpy(&a, column.data() + 128 * s + 8 * j, 8);
          std::memcpy(&b, column.data() + 128 * s + 64 + 8 * j, 8);
          const size_t key = 2 * (c * column_stripes + s) + j;
          a ^= first_[key];
          b ^= second_[key];
          for (int bit = 0; bit < 64; ++bit) {
            if (b >> bit & 1) sums[j / 2] ^= static_cast<unsigned __int128>(a) << bit;
          }
        }
      }
    }
    StripeSums result;
    std::memcpy(result.words.data(), sums, sizeof(sums));
    return result;
  }

 private:
  std::vector<uint64_t> first_, second_;
};

TEST(ChecksumTest, IsWhatItSaysOnEveryVectorWidth) {
  const Definition definition;
  OnEveryTarget([&] {
    for (uint32_t columns = 1; columns <= kColumnsMax; ++columns) {
      for (const size_t size : {0UL, 1UL, 63UL, 64UL, 127UL, 128UL, 129UL, 300UL, 4097UL, 16384UL,
                                16385UL, 33000UL, 65536UL, 66000UL, 262144UL, 300'000UL}) {
        const Data block = Random(columns * size, size + columns);
        const BlockPieces pieces(Bytes(static_cast<int64_t>(block.size())), columns);
        size_t covered = 0;
        for (uint32_t p = 0; p < pieces.count(); ++p) {
          std::vector<Data> parts;
          for (uint32_t c = 0; c < columns; ++c) {
            const auto begin = block.begin() + static_cast<std::ptrdiff_t>(pieces.begin(p, c));
            parts.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(pieces.size(p)));
            covered += pieces.size(p);
          }
          ASSERT_EQ(definition.Sums(parts, pieces.column_stripes()), pieces.Sums(block, p))
              << size << " bytes in each of " << columns << " columns, piece " << p;
        }
        ASSERT_EQ(block.size(), covered);
      }
    }
  });
}

TEST(ChecksumTest, PartsAddUpInAnyOrder) {
  const Data data = Random(5000, 1);
  StripeSums whole;
  AddStripes(&whole, data, 7);
  std::mt19937 random(2);
  for (int trial = 0; trial < 100; ++trial) {
    std::set<size_t> cuts = {0, 40};
    for (int i = 0; i < 5; ++i) cuts.insert(random() % 40);
    std::vector<std::pair<size_t, size_t>> parts;
    for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut)
      parts.emplace_back(*cut, *std::next(cut));
    std::ranges::shuffle(parts, random);
    StripeSums sums;
    for (const auto& [first, last] : parts) {
      const size_t end = std::min(last * kStripeBytes, data.size());
      AddStripes(&sums,
                 ConstMemoryView(data).subspan(first * kStripeBytes, end - first * kStripeBytes),
                 7 + first);
    }
    ASSERT_EQ(whole, sums);
  }
}

TEST(ChecksumTest, ChangesWithEveryBitOfAWholePiece) {
  Data data = Random(kPieceBytesMax, 3);
  std::vector<uint64_t> seen = {Of(data)};
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    // Every bit of the stripes at both ends, of the others one in each byte.
    const size_t byte = bit / 8;
    const bool at_end = byte < kStripeBytes || byte >= data.size() - kStripeBytes;
    if (!at_end && bit % 8 != byte / 8 % 8) continue;
    // Sums are additive, so a flip's effect is that of its stripe.
    const size_t stripe = byte / kStripeBytes;
    const auto part = ConstMemoryView(data).subspan(stripe * kStripeBytes, kStripeBytes);
    StripeSums before, after;
    AddStripes(&before, part, stripe);
    data[byte] ^= std::byte{1} << bit % 8;
    AddStripes(&after, part, stripe);
    ASSERT_NE(before, after) << "bit " << bit;
    if (byte % 61 == 0) seen.push_back(Of(data));
    data[byte] ^= std::byte{1} << bit % 8;
  }
  std::ranges::sort(seen);
  EXPECT_TRUE(std::ranges::adjacent_find(seen) == seen.end());
}

// Contents that differ in the order of what they are made of, at every size of a part: words,
// halves of stripes, stripes, sectors; of numbers, and of a single word in zeros.
TEST(ChecksumTest, ChangesWithThePlaceOfEverything) {
  std::mt19937 random(4);
  const Data made = Random(kPieceBytesMax, 4);
  for (const size_t part : {4UL, 8UL, 16UL, 64UL, 128UL, 512UL, 4096UL}) {
    for (int trial = 0; trial < 100; ++trial) {
      Data data = trial % 2 == 0 ? made : Data(kPieceBytesMax);
      const size_t count = data.size() / part;
      const size_t a = random() % count;
      const size_t b = trial % 3 == 0 ? (a + 1) % count : random() % count;
      if (a == b) continue;
      data[a * part] = std::byte{1};
      data[b * part] = std::byte{2};
      const uint64_t before = Of(data);
      Data swapped = data;
      std::swap_ranges(swapped.begin() + static_cast<std::ptrdiff_t>(a * part),
                       swapped.begin() + static_cast<std::ptrdiff_t>((a + 1) * part),
                       swapped.begin() + static_cast<std::ptrdiff_t>(b * part));
      ASSERT_NE(before, Of(swapped)) << part << " bytes at " << a << " and " << b;
      Data moved = data;
      std::rotate(moved.begin(), moved.begin() + static_cast<std::ptrdiff_t>(part), moved.end());
      ASSERT_NE(before, Of(moved)) << "shifted by " << part;
    }
  }
}

// The same bit stuck in many words, sectors of zeros or of another content, tails lost.
TEST(ChecksumTest, ChangesWithWhatDrivesDo) {
  const Data data = Random(kPieceBytesMax, 5);
  const Data other = Random(kPieceBytesMax, 6);
  std::set<uint64_t> seen = {Of(data)};
  size_t contents = 1;
  Data last;
  const auto add = [&](const Data& changed) {
    if (changed == data || changed == last) return;
    last = changed;
    ++contents;
    ASSERT_TRUE(seen.insert(Of(changed)).second);
  };
  for (size_t bit = 0; bit < 64; ++bit) {
    for (size_t words = 2; words <= 512; words *= 2) {
      Data stuck = data;
      for (size_t w = 0; w < words; ++w) stuck[8 * w + bit / 8] |= std::byte{1} << bit % 8;
      add(stuck);
    }
  }
  for (size_t at = 0; at < data.size(); at += 512) {
    Data zeros = data, torn = data, cut = data;
    std::fill_n(zeros.begin() + static_cast<std::ptrdiff_t>(at), 512, std::byte{0});
    std::copy_n(other.begin() + static_cast<std::ptrdiff_t>(at), 512,
                torn.begin() + static_cast<std::ptrdiff_t>(at));
    std::copy(other.begin() + static_cast<std::ptrdiff_t>(at), other.end(),
              cut.begin() + static_cast<std::ptrdiff_t>(at));
    add(zeros);
    add(torn);
    if (at > 0) add(cut);
  }
  EXPECT_EQ(contents, seen.size());
}

TEST(ChecksumTest, RandomContentsHaveChecksumsOfTheirOwn) {
  std::mt19937_64 random(7);
  constexpr size_t kCount = 200'000;
  std::vector<uint64_t> all(kCount);
  std::vector<size_t> ones(64);
  Data data(24);
  for (uint64_t& checksum : all) {
    for (size_t at = 0; at < data.size(); at += 8) {
      const uint64_t word = random();
      std::memcpy(data.data() + at, &word, 8);
    }
    checksum = Of(data);
    for (size_t bit = 0; bit < 64; ++bit) ones[bit] += checksum >> bit & 1;
  }
  std::ranges::sort(all);
  EXPECT_TRUE(std::ranges::adjacent_find(all) == all.end());
  for (const size_t count : ones)  // 10 standard deviations
    EXPECT_NEAR(static_cast<double>(count), kCount / 2.0, 2300);
}

TEST(ChecksumTest, ChangesWithBlockGenerationPieceAndShape) {
  std::set<uint64_t> seen;
  size_t names = 0;
  for (uint32_t columns = 1; columns <= kColumnsMax; ++columns) {
    const BlockPieces pieces(Bytes(12 * int64_t{200'000}), columns);
    for (uint32_t p = 0; p < 4; ++p) {
      for (uint32_t block = 0; block < 30; ++block) {
        for (uint64_t generation = 0; generation < 30; ++generation, ++names)
          seen.insert(pieces.Checksum(StripeSums(), BlockIndex(block), generation, p));
      }
    }
  }
  EXPECT_EQ(names, seen.size());
}

TEST(ChecksumTest, ChangesWithTheLength) {
  const Data zeros(2 * kPieceBytesMax + 100);
  std::set<uint64_t> seen;
  for (size_t n = 0; n <= zeros.size(); n += n < 300 ? 1 : 997)
    ASSERT_TRUE(
        seen.insert(SeededChecksum(ConstMemoryView(zeros).first(n), BlockIndex(0), 0)).second);
}

TEST(ChecksumTest, StaysTheSameForEver) {  // manifests of checkpoints hold it
  Data data(5000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
  EXPECT_EQ(14875515648661791494u, SeededChecksum(data, BlockIndex(3), 9));
}

}  // namespace
}  // namespace sluice
