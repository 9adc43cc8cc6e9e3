#include "core/checksum.h"

#include <xxhash.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>

// The library's functions use the vectors that it was compiled for: SSE2 on a usual distribution,
// at a third of AVX-512's speed. So long blocks are hashed here, to the same value, with the widest
// vectors of the CPU at hand.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/checksum.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#ifndef SLUICE_CORE_CHECKSUM_ONCE_
#define SLUICE_CORE_CHECKSUM_ONCE_
namespace sluice {
namespace {

// The constants of XXH3's specification. The secret is made of little-endian words.
static_assert(std::endian::native == std::endian::little);
constexpr uint64_t kPrime32_1 = 0x9E3779B1u;
constexpr uint64_t kPrime32_2 = 0x85EBCA77u;
constexpr uint64_t kPrime32_3 = 0xC2B2AE3Du;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime64_3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime64_5 = 0x27D4EB2F165667C5u;
constexpr size_t kSecretWords = 24;
constexpr std::array<uint64_t, kSecretWords> kSecret = {
    0xbe4ba423396cfeb8u, 0x1cad21f72c81017cu, 0xdb979083e96dd4deu, 0x1f67b3b7a4a44072u,
    0x78e5c0cc4ee679cbu, 0x2172ffcc7dd05a82u, 0x8e2443f7744608b8u, 0x4c263a81e69035e0u,
    0xcb00c391bb52283cu, 0xa32e531b8b65d088u, 0x4ef90da297486471u, 0xd8acdea946ef1938u,
    0x3f349ce33f76faa8u, 0x1d4f0bc7c7bbdcf9u, 0x3159b4cd4be0518au, 0x647378d9c97e9fc8u,
    0xc3ebd33483acc5eau, 0xeb6313faffa081c5u, 0x49daf0b751dd0d17u, 0x9e68d429265516d3u,
    0xfca1477d58be162bu, 0xce31d07ad1b8f88fu, 0x280416958f3acb45u, 0x7e404bbbcafbd7afu,
};
constexpr size_t kSecretBytes = kSecretWords * sizeof(uint64_t);
constexpr size_t kStripe = 64;                             // bytes hashed at a time
constexpr size_t kStripes = (kSecretBytes - kStripe) / 8;  // between two scrambles
constexpr size_t kLong = 4 * kStripe;                      // shorter: the library
using Accumulators = std::array<uint64_t, kStripe / sizeof(uint64_t)>;

}  // namespace
}  // namespace sluice
#endif  // SLUICE_CORE_CHECKSUM_ONCE_

HWY_BEFORE_NAMESPACE();
namespace sluice {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
constexpr bool kVectors = false;
void HashStripes(const std::byte*, size_t, const std::byte*, Accumulators*) {}
#else
constexpr bool kVectors = true;

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<uint64_t, kStripe / sizeof(uint64_t)>;
using D32 = hn::Repartition<uint32_t, D>;
using D8 = hn::Repartition<uint8_t, D>;
using V = hn::Vec<D>;
constexpr size_t kParts = kStripe / sizeof(uint64_t) / hn::MaxLanes(D());
constexpr size_t kPartBytes = kStripe / kParts;
constexpr size_t kAheadBytes = 1024;  // of what is fetched to be hashed

HWY_INLINE V LoadPart(const std::byte* from, size_t part) {
  return hn::BitCast(D(),
                     hn::LoadU(D8(), reinterpret_cast<const uint8_t*>(from) + part * kPartBytes));
}

// The low halves' product of each lane.
HWY_INLINE V MulLow(V a, V b) { return hn::MulEven(hn::BitCast(D32(), a), hn::BitCast(D32(), b)); }

HWY_INLINE void AddStripe(const std::byte* data, const std::byte* secret, V* accumulators) {
  for (size_t i = 0; i < kParts; ++i) {
    const V value = LoadPart(data, i);
    const V key = hn::Xor(value, LoadPart(secret, i));
    const V product = MulLow(key, hn::ShiftRight<32>(key));
    accumulators[i] = hn::Add(accumulators[i], hn::Add(product, hn::Shuffle01(value)));
  }
}

HWY_INLINE void Scramble(const std::byte* secret, V* accumulators) {
  const V prime = hn::Set(D(), kPrime32_1);
  for (size_t i = 0; i < kParts; ++i) {
    V a = accumulators[i];
    a = hn::Xor(hn::Xor(a, hn::ShiftRight<47>(a)), LoadPart(secret, i));
    accumulators[i] =
        hn::Add(MulLow(a, prime), hn::ShiftLeft<32>(MulLow(hn::ShiftRight<32>(a), prime)));
  }
}

// All of `data`, longer than a stripe.
void HashStripes(const std::byte* data, size_t size, const std::byte* secret,
                 Accumulators* result) {
  V accumulators[kParts];
  for (size_t i = 0; i < kParts; ++i)
    accumulators[i] = hn::LoadU(D(), result->data() + i * hn::Lanes(D()));
  const std::byte* const last = data + size - kStripe;  // may overlap the stripe before
  for (; data + kStripes * kStripe <= last + kStripe - 1; data += kStripes * kStripe) {
    for (size_t i = 0; i < kStripes; ++i) {
      __builtin_prefetch(data + i * kStripe + kAheadBytes);
      AddStripe(data + i * kStripe, secret + i * 8, accumulators);
    }
    Scramble(secret + kSecretBytes - kStripe, accumulators);
  }
  for (size_t i = 0; data < last; ++i, data += kStripe)
    AddStripe(data, secret + i * 8, accumulators);
  AddStripe(last, secret + kSecretBytes - kStripe - 7, accumulators);
  for (size_t i = 0; i < kParts; ++i)
    hn::StoreU(accumulators[i], D(), result->data() + i * hn::Lanes(D()));
}
#endif

bool HasVectors() { return kVectors; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sluice
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sluice {

HWY_EXPORT(HashStripes);
HWY_EXPORT(HasVectors);

namespace {

uint64_t Folded(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t LongHash(ConstMemoryView data, uint64_t seed) {
  std::array<uint64_t, kSecretWords> words;
  for (size_t i = 0; i < kSecretWords; ++i)
    words[i] = i % 2 == 0 ? kSecret[i] + seed : kSecret[i] - seed;
  const auto* const secret = reinterpret_cast<const std::byte*>(words.data());
  Accumulators accumulators = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3,
                               kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  HWY_DYNAMIC_DISPATCH(HashStripes)(data.data(), data.size(), secret, &accumulators);
  std::array<uint64_t, std::tuple_size_v<Accumulators>> keys;
  std::memcpy(keys.data(), secret + 11, sizeof(keys));
  uint64_t hash = data.size() * kPrime64_1;
  for (size_t i = 0; i < keys.size(); i += 2)
    hash += Folded(accumulators[i] ^ keys[i], accumulators[i + 1] ^ keys[i + 1]);
  hash = (hash ^ hash >> 37) * 0x165667919E3779F9u;
  return hash ^ hash >> 32;
}

}  // namespace

uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation) {
  // Two odd constants keep (block, generation) pairs apart in one seed.
  const uint64_t seed =
      (uint64_t{block.value()} + 1) * 0x9E3779B97F4A7C15u ^ generation * 0xC2B2AE3D27D4EB4Fu;
  if (data.size() >= kLong && HWY_DYNAMIC_DISPATCH(HasVectors)()) return LongHash(data, seed);
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

}  // namespace sluice
#endif  // HWY_ONCE
