// offload/checkpoint/manifest_text.h
//
// A checkpoint's manifests as text: rank-NNNNN.json and checkpoint.json. Both are JSON, one row a
// line, and end with a checksum of what stands before it, so that a changed one is noticed. Read
// strictly: what isn't known, stands twice or is missing is refused, and every number is checked
// before anything is made by it.
//
// Threads: any; pure but for what reads a file.

#ifndef SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_TEXT_H_
#define SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_TEXT_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "offload/checkpoint/files.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/manifest.h"

namespace sluice {

inline constexpr uint64_t kSavedBytesMax = uint64_t{1} << 60;  // of anything

// A rank's part, with what its files of values are. `part.tensors` stands there on rank 0 only; of
// the others their checksum, so that all agree.
struct PartText {
  struct DataFile {
    uint64_t header_bytes = 0;  // 0: there is no such file
    uint64_t header_checksum = 0;
    uint64_t bytes = 0;  // of values
    uint64_t size() const { return header_bytes + bytes; }
  };
  SavedPart part;
  uint64_t tensors_checksum = 0;
  std::array<DataFile, kSavedFiles> data;
};

struct IndexText {
  struct File {
    std::string name;
    uint64_t bytes = 0;
  };
  struct Part {  // rank-NNNNN.json
    uint64_t bytes = 0;
    uint64_t checksum = 0;
  };
  uint64_t id = 0;
  uint64_t sequence = 0;  // one more than of any checkpoint that lay beside it
  uint64_t steps = 0;
  int64_t saved_at = 0;
  std::vector<Part> parts;  // by rank
  std::vector<File> files;  // all others
};

uint64_t ChecksumOf(std::string_view text);
// Of the file's pieces and header.
inline uint64_t IdOf(const SavedPart& part, SavedFile file) {
  return file == kFrozen ? part.frozen_id : part.id;
}

// A row a tensor: what `tensors_checksum` is of.
std::string TensorRows(std::span<const SavedTensor> tensors);
// tensor_rows: of rank 0; of others empty.
std::string TextOf(const PartText& part, std::string_view tensor_rows);
std::string TextOf(const IndexText& index);

// source: a path, for messages. Errors: DataLoss saying what is wrong; FailedPrecondition for
// another version's. What was parsed of a part holds by itself, but for the pieces of ranks other
// than 0, whose tensors are elsewhere: LayOut checks them.
absl::StatusOr<PartText> ParsePart(std::string_view text, const std::string& source);
absl::StatusOr<IndexText> ParseIndex(std::string_view text, const std::string& source);

// The whole file, of at most `bytes_max`.
absl::StatusOr<std::string> ReadText(Files* files, const std::string& path, uint64_t bytes_max);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_CHECKPOINT_MANIFEST_TEXT_H_
