// offload/plan/param_pieces.h
//
// Which neighbouring chunks of a unit share a buffer where their parameters pass through one: in
// HBM they then arrive in one copy (of a unit, or of the bytes that a buffer was made for), which
// uses the link better than a copy for each chunk. Of units whose parameters live in HBM, behind a
// link, or on NVMe; the others' are used where they are. Pure.

#ifndef SLUICE_OFFLOAD_PLAN_PARAM_PIECES_H_
#define SLUICE_OFFLOAD_PLAN_PARAM_PIECES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/types.h"
#include "offload/plan/layout.h"
#include "offload/plan/placement.h"

namespace sluice {

class ParamPieces {
 public:
  // As many neighbours as fit. Both are only used here.
  ParamPieces(const ModelLayout& layout, const Placement& placement);

  // How its chunks lie in the buffer: as in the unit where they live in HBM; from NVMe each begins
  // where transfers may, and has room for what they write.
  struct Piece {
    uint32_t first;  // chunk
    uint32_t count;
  };
  std::span<const Piece> pieces() const { return pieces_; }
  // None if the chunk's parameters pass through no buffer.
  std::optional<uint32_t> PieceOf(ChunkIndex chunk) const {
    const uint32_t piece = piece_of_[chunk.value()];
    return piece == kNone ? std::nullopt : std::optional(piece);
  }
  // Where the chunk begins in the buffer. Precondition: it is in a piece.
  Bytes OffsetOf(ChunkIndex chunk) const { return Bytes(offsets_[chunk.value()]); }
  uint32_t longest() const { return longest_; }  // chunks of a piece, at most

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  std::vector<Piece> pieces_;
  std::vector<uint32_t> piece_of_;  // by chunk
  std::vector<int64_t> offsets_;    // by chunk
  uint32_t longest_ = 0;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_PARAM_PIECES_H_
