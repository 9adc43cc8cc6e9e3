#include "offload/run/chunk_image.h"

#include <algorithm>

#include "offload/checkpoint/manifest.h"

namespace sluice {

std::span<const StateField> FieldsOf(const StateFormat& format, Keep keep) {
  static constexpr StateField kFrozen[] = {{Field::kParam, "param"}};
  if (keep == Keep::kParam) return kFrozen;
  return format.fields().subspan(keep == Keep::kMoments ? kMasterIndex + 1 : 0);
}

std::vector<ImagePart> ImageParts(const ModelLayout& layout, const ChunkLayout& chunk) {
  const size_t fields = FieldsOf(*layout.format(), chunk.keep).size();
  const int64_t element =
      chunk.keep == Keep::kParam ? chunk.types.param.size() : SizeOf(FloatType::kF32);
  std::vector<ImagePart> parts;
  size_t at = 0;
  for (const ChunkRun& run : layout.runs(chunk)) {
    for (size_t field = 0; field < fields; ++field) {
      const int64_t end = run.tensor_offset + run.elements;
      for (int64_t first = run.tensor_offset; first < end;) {
        const int64_t next = std::min(end, (first / kPieceElementsMax + 1) * kPieceElementsMax);
        const auto bytes = static_cast<size_t>((next - first) * element);
        parts.push_back({run.tensor, field, first, next - first,
                         run.chunk_offset + first - run.tensor_offset, at, bytes});
        at += bytes;
        first = next;
      }
    }
  }
  return parts;
}

size_t ImageBytes(const ModelLayout& layout, const ChunkLayout& chunk) {
  const size_t fields = FieldsOf(*layout.format(), chunk.keep).size();
  const int64_t element =
      chunk.keep == Keep::kParam ? chunk.types.param.size() : SizeOf(FloatType::kF32);
  int64_t elements = 0;
  for (const ChunkRun& run : layout.runs(chunk)) elements += run.elements;
  return static_cast<size_t>(elements * element) * fields;
}

}  // namespace sluice
