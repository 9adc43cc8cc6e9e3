#include "core/checksum.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/status.h"

// Of scalable vectors there are no arrays; where they are, so are vectors of 128 bits.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/checksum.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the two that say which target this is.
#include "core/checksum-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

// How far ahead of its use a line is asked for.
constexpr size_t kAheadBytes = 1536;

#if SLUICE_VECTOR_SUMS

void AddWhole(StripeSums* sums, const std::byte* bytes, size_t count, size_t stripe) {
  namespace hn = hwy::HWY_NAMESPACE;
  const auto words = [](const std::byte* at) HWY_ATTR {
    constexpr hn::Repartition<uint8_t, decltype(kSumTag)> kBytes{};
    return hn::BitCast(kSumTag, hn::LoadU(kBytes, reinterpret_cast<const uint8_t*>(at)));
  };
  VectorSums all;
  for (size_t i = 0; i < count; ++i, bytes += kStripeBytes) {
    for (size_t line = 0; line < kStripeBytes; line += 64)
      __builtin_prefetch(bytes + kAheadBytes + line);
    for (size_t part = 0; part < kSumParts; ++part) {
      const std::byte* const at = bytes + part * kSumLanes * sizeof(uint64_t);
      all.Add(words(at), words(at + kStripeBytes / 2), KeysOf(stripe + i, part), part);
    }
  }
  all.AddTo(sums);
}

#else

void AddProduct(uint64_t x, uint64_t y, uint64_t* low, uint64_t* high) {
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t mask = ~((y >> bit & 1) - 1);
    *low ^= x << bit & mask;
    *high ^= (x >> 1) >> (63 - bit) & mask;
  }
}

void AddWhole(StripeSums* sums, const std::byte* bytes, size_t count, size_t stripe) {
  for (size_t i = 0; i < count; ++i, bytes += kStripeBytes) {
    std::array<uint64_t, 2 * kStripeWords> words;
    std::memcpy(words.data(), bytes, kStripeBytes);
    for (size_t j = 0; j < kStripeWords; ++j) {
      const size_t key = 2 * (stripe + i) + j;
      uint64_t* const sum = sums->words.data() + j / 2 * 2;
      AddProduct(words[j] ^ kStripeKeys.first[key],
                 words[kStripeWords + j] ^ kStripeKeys.second[key], sum, sum + 1);
    }
  }
}

#endif  // SLUICE_VECTOR_SUMS

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(AddWhole);

namespace {

constexpr StripeKeys MakeKeys() {
  StripeKeys keys{};
  uint64_t state = 0;
  for (auto* const table : {&keys.first, &keys.second}) {
    for (uint64_t& key : *table) {
      state += 0x9E3779B97F4A7C15u;
      uint64_t z = state;
      z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
      z = (z ^ z >> 27) * 0x94D049BB133111EBu;
      key = z ^ z >> 31;
    }
  }
  return keys;
}

// Of either argument a bijection, as is Spread.
constexpr uint64_t Mix(uint64_t mixed, uint64_t next) {
  return (std::rotl(mixed, 29) ^ next) * 0x9E3779B97F4A7C15u;
}

constexpr uint64_t Spread(uint64_t x) {
  x = (x ^ x >> 32) * 0xC2B2AE3D27D4EB4Fu;
  return x ^ x >> 29;
}

}  // namespace

constinit const StripeKeys kStripeKeys = MakeKeys();

void AddStripes(StripeSums* sums, ConstMemoryView bytes, size_t stripe) {
  const size_t whole = bytes.size() / kStripeBytes;
  const ConstMemoryView rest = bytes.subspan(whole * kStripeBytes);
  SLUICE_CHECK(stripe + whole + (rest.empty() ? 0 : 1) <= kPieceBytesMax / kStripeBytes);
  HWY_DYNAMIC_DISPATCH(AddWhole)(sums, bytes.data(), whole, stripe);
  if (rest.empty()) return;
  alignas(64) std::array<std::byte, kStripeBytes> last{};
  std::memcpy(last.data(), rest.data(), rest.size());
  HWY_DYNAMIC_DISPATCH(AddWhole)(sums, last.data(), 1, stripe + whole);
}

BlockPieces::BlockPieces(Bytes size, uint32_t columns) : columns_(columns) {
  SLUICE_CHECK(columns >= 1 && columns <= kColumnsMax && size.size() % columns == 0);
  column_size_ = size.size() / columns;
  count_ = static_cast<uint32_t>(
      std::max<size_t>(1, (column_size_ + column_bytes() - 1) / column_bytes()));
}

StripeSums BlockPieces::Sums(ConstMemoryView block, uint32_t piece) const {
  StripeSums sums;
  for (uint32_t c = 0; c < columns_; ++c)
    AddStripes(&sums, block.subspan(begin(piece, c), size(piece)), c * column_stripes());
  return sums;
}

uint64_t BlockPieces::Checksum(const StripeSums& sums, BlockIndex block, uint64_t generation,
                               uint32_t piece) const {
  uint64_t mixed = 1;
  for (const uint64_t name : {uint64_t{block.value()}, generation, uint64_t{piece},
                              uint64_t{size(piece)}, uint64_t{columns_}})
    mixed = Mix(mixed, name);
  for (const uint64_t word : sums.words) mixed = Mix(mixed, word);
  return Spread(mixed);
}

uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation) {
  const BlockPieces pieces(Bytes(static_cast<int64_t>(data.size())), 1);
  uint64_t mixed = 1;
  for (uint32_t p = 0; p < pieces.count(); ++p)
    mixed = Mix(mixed, pieces.Checksum(pieces.Sums(data, p), block, generation, p));
  return Spread(mixed);
}

}  // namespace sluice
#endif  // HWY_ONCE
