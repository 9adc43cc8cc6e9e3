// offload/checkpoint/layout.h
//
// Where a rank's pieces lie in its files, and what the files' safetensors headers say: pure
// functions of what the part says, so that none of it stands on disk twice.
//
// Pieces of one field that follow each other are one run, a tensor of the file. Runs lie in the
// order of tensors, fields and elements, without gaps; in the file of frozen values wide types
// first, so that each lies at a multiple of its size.
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_LAYOUT_H_
#define SLUICE_OFFLOAD_CHECKPOINT_LAYOUT_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "offload/checkpoint/manifest.h"

namespace sluice {

inline constexpr int64_t kSavedElementsMax = int64_t{1} << 48;  // of a tensor
inline constexpr size_t kSavedFieldsMax = 16;                   // of a tensor
inline constexpr uint32_t kSavedRanksMax = 1 << 16;

enum SavedFile : uint8_t { kTrained = 0, kFrozen = 1 };
inline constexpr size_t kSavedFiles = 2;

inline bool IsFrozen(const SavedTensor& tensor) {
  return tensor.fields.size() == 1 && tensor.fields.front() == "param";
}

struct PieceSpot {
  uint64_t offset = 0;  // from the first byte of the file's values
  uint32_t place = 0;   // among the file's pieces, in the order in which they are given
  SavedFile file = kTrained;
};

struct SavedRun {
  uint32_t tensor = 0;
  uint32_t field = 0;
  int64_t first = 0;
  int64_t end = 0;
};

struct PartLayout {
  std::vector<PieceSpot> spots;  // by piece
  std::array<std::vector<SavedRun>, kSavedFiles> runs;
  std::array<uint64_t, kSavedFiles> bytes{};  // of values
};

std::string_view SafetensorsName(FloatType type);  // "BF16"

// Errors: InvalidArgument naming what is wrong.
absl::Status CheckTensors(std::span<const SavedTensor> tensors);
// The same for pieces that lie outside of the tensors (which were checked), or overlap.
absl::StatusOr<PartLayout> LayOut(std::span<const SavedTensor> tensors,
                                  std::span<const SavedPiece> pieces);

// The JSON of a safetensors header as it stands in the file: its length before it, filled up so
// that values begin at a multiple of 8.
std::string WithLength(std::string json);

// The file's header, with its length.
std::string SafetensorsHeader(std::span<const SavedTensor> tensors, const PartLayout& layout,
                              SavedFile file, uint64_t id, uint32_t rank);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_LAYOUT_H_
