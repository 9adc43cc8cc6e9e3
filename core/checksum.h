// core/checksum.h
//
// The checksum of a block, piece by piece: so that a piece is checked, changed and sealed again
// while a core has it in cache, and by whoever has its words in registers anyway.
//
// A block is one or more columns of equal size side by side (the arrays of an fp32 state format).
// A piece of it is the same part of each: kPieceBytesMax divided by the number of columns, rounded
// up to a power of two; the last piece is shorter. A piece is cut into stripes of 128 bytes, column
// after column; column c begins with stripe c * (stripes of a whole piece's column), and a last
// incomplete stripe is filled up with zeros. A stripe is 16 little-endian words, a[0..7] b[0..7].
// Word pair j of stripe s adds the carry-less product of 127 bits
//   (a[j] xor first[2 s + j]) * (b[j] xor second[2 s + j])
// to sum j / 2, where adding is xor, and first and second are tables of random words (kStripeKeys:
// splitmix64 from 0). The four sums of 128 bits, mixed by steps that each can be undone, after the
// block's number, its generation, the piece's number and its bytes, are the checksum's 64 bits.
//
// How sure it is. The sums are CLNH (Lemire and Kaser, "Faster 64-bit universal hashing using
// carry-less multiplications", 2016), the carry-less kin of UMAC's NH: for any two different
// contents, over random keys, a sum comes out the same with a probability of at most 2^-64, one
// changed bit or a whole other content alike. Each sum uses a key once, so that words, stripes and
// columns that have changed places are different contents. Mixing 8 words into one loses about as
// much again. So an accident passes once in 9 * 10^18; the keys are known, so an attack may pass.
// Block, generation and piece are in the mixing: a stale or misplaced one is another content under
// another name, and fails as a flipped bit does.
//
// The value is the same on every machine and vector width, and stays the same: checkpoints will
// hold it. Additions of parts commute, which is what lets kernels do them (checksum-inl.h).
//
// Threads: any. Allocates nothing.

#ifndef SLUICE_CORE_CHECKSUM_H_
#define SLUICE_CORE_CHECKSUM_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/grid.h"
#include "core/types.h"

namespace sluice {

inline constexpr size_t kStripeBytes = 128;
inline constexpr size_t kStripeWords = 8;  // of either half
inline constexpr size_t kColumnsMax = 4;
// Of three or four columns of fp32, kPieceElements each.
inline constexpr size_t kPieceBytesMax = kColumnsMax * sizeof(float) * kPieceElements;

// The sums so far; of nothing at first.
struct StripeSums {
  alignas(64) std::array<uint64_t, kStripeWords> words{};

  friend bool operator==(const StripeSums&, const StripeSums&) = default;
};

struct StripeKeys {
  static constexpr size_t kCount = 2 * (kPieceBytesMax / kStripeBytes) + kStripeWords - 2;
  alignas(64) std::array<uint64_t, kCount> first;
  alignas(64) std::array<uint64_t, kCount> second;
};
extern const StripeKeys kStripeKeys;

// Adds the stripes from `stripe` of the piece on; if the last one is incomplete, nothing follows it
// in its column.
void AddStripes(StripeSums* sums, ConstMemoryView bytes, size_t stripe);

// How a block is cut.
class BlockPieces {
 public:
  BlockPieces() = default;
  // Precondition: `size` is a multiple of `columns`, which are 1 to kColumnsMax.
  BlockPieces(Bytes size, uint32_t columns);

  uint32_t columns() const { return columns_; }
  uint32_t count() const { return count_; }  // at least one, of an empty block too
  // Of a whole piece, in one column.
  size_t column_bytes() const { return kPieceBytesMax / std::bit_ceil(columns_); }
  size_t column_stripes() const { return column_bytes() / kStripeBytes; }
  // Where the piece's part of a column lies in the block.
  size_t begin(uint32_t piece, uint32_t column) const {
    return column * column_size_ + piece * column_bytes();
  }
  size_t size(uint32_t piece) const {  // of the piece's part of each column
    return std::min(column_bytes(), column_size_ - piece * column_bytes());
  }

  // The sums of a piece of the block whose bytes are `block`.
  StripeSums Sums(ConstMemoryView block, uint32_t piece) const;
  // The checksum of a piece with these sums.
  uint64_t Checksum(const StripeSums& sums, BlockIndex block, uint64_t generation,
                    uint32_t piece) const;

 private:
  size_t column_size_ = 0;
  uint32_t columns_ = 1;
  uint32_t count_ = 1;
};

// One checksum for all of `data`, a block of one column: its pieces' checksums, mixed in order.
uint64_t SeededChecksum(ConstMemoryView data, BlockIndex block, uint64_t generation);

}  // namespace sluice

#endif  // SLUICE_CORE_CHECKSUM_H_
