// offload/run/chunk_image.h
//
// A chunk's values as a checkpoint has them, whatever tier they are on and whatever format keeps
// them: run after run, of each all fields one after another, in fp32; of frozen tensors their
// values as they are. An image is what ValueAccess reads and writes of a chunk at once.
//
// Threads: any; pure.

#ifndef SLUICE_OFFLOAD_RUN_CHUNK_IMAGE_H_
#define SLUICE_OFFLOAD_RUN_CHUNK_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "offload/plan/layout.h"

namespace sluice {

// Part of an image: values of one field that follow each other in the tensor, none on both sides of
// a multiple of kPieceElementsMax.
struct ImagePart {
  TensorIndex tensor;
  size_t field;   // its place among FieldsOf the tensor's keep
  int64_t first;  // of the tensor
  int64_t elements;
  int64_t chunk_at;  // where they lie in the chunk
  size_t image_at;   // bytes
  size_t image_bytes;
};

// Of a tensor of which `keep` is kept; of frozen ones, kParam alone. The caller has the masters of
// kMoments.
std::span<const StateField> FieldsOf(const StateFormat& format, Keep keep);

std::vector<ImagePart> ImageParts(const ModelLayout& layout, const ChunkLayout& chunk);
// Of the whole image.
size_t ImageBytes(const ModelLayout& layout, const ChunkLayout& chunk);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_CHUNK_IMAGE_H_
