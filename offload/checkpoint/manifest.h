// offload/checkpoint/manifest.h
//
// What a checkpoint says of itself. On disk:
//
//   <directory>/<tag>/rank-00000.safetensors   values that this rank saved, fp32 or as they are
//                    /rank-00000.frozen.safetensors   those that are never updated, if any
//                    /rank-00000.json          this rank's part: tensors, pieces, checksums
//                    /rank-00000.<name>        what the caller attached, if anything
//                    /checkpoint.json          written last: which parts there are, and their sums
//   <directory>/latest                         the tag saved last, for people; never relied on
//
// The safetensors files are whole by themselves (github.com/huggingface/safetensors, format of
// 2023): one tensor of one dimension for each run of elements that the rank saved of a tensor's
// field, named "<tensor>/<field>", or "<tensor>/<field>/<first>-<end>" where that isn't all of it.
//
// A piece is what has a checksum: so many elements of one field of one tensor, at most
// kPieceElementsMax. Its checksum is SeededChecksum of its bytes, seeded with its place among the
// rank's pieces of the same file, and the id of the save that wrote the file: so a stale or
// misplaced one fails as a flipped bit does.
//
// Threads: any; pure data.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_H_
#define SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/element_type.h"
#include "core/types.h"

namespace sluice {

inline constexpr int64_t kPieceElementsMax = int64_t{1} << 20;
inline constexpr int kCheckpointVersion = 1;

struct SavedTensor {
  std::string name;  // one of its kind
  int64_t elements = 0;
  uint64_t step = 0;                   // updates it has had
  ElementType type = FloatType::kF32;  // of its compute copy
  std::vector<std::string> fields;  // "master", "exp_avg", ..., each in fp32; "param" alone: frozen
                                    // and in its own type; none: its values were left out
  friend bool operator==(const SavedTensor&, const SavedTensor&) = default;
};

struct SavedPiece {
  uint32_t tensor = 0;
  uint32_t field = 0;  // among the tensor's
  int64_t first = 0;
  int64_t elements = 0;
  friend bool operator==(const SavedPiece&, const SavedPiece&) = default;
};

// Bytes of `elements` of the field: fp32, but of "param", which is as the tensor's type is.
int64_t ElementSize(const SavedTensor& tensor, uint32_t field);

// What one rank saves. Tensors are the model's, all of them, and the same on every rank.
struct SavedPart {
  uint64_t id = 0;  // of the save: the same on every rank, another for every save
  uint32_t rank = 0;
  uint32_t ranks = 1;
  uint64_t frozen_id = 0;  // of the save that wrote its frozen values: an earlier one, if linked
  std::vector<SavedTensor> tensors;  // on disk, and as read: of rank 0 only
  std::vector<SavedPiece> pieces;    // all of what this rank saves, none twice
  std::vector<uint64_t> checksums;   // by piece
  struct Attachment {
    std::string name;  // a file's name without '/'
    uint64_t bytes = 0;
    uint64_t checksum = 0;
  };
  std::vector<Attachment> attachments;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_H_
