// Manifests of checkpoints: rank-NNNNN.json and checkpoint.json, as they are and with the checksum
// that makes them look whole; and model.json and run.safetensors, as `sluice ckpt export` reads
// them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/status.h"
#include "offload/checkpoint/layout.h"
#include "offload/checkpoint/manifest_text.h"
#include "offload/checkpoint/names.h"
#include "offload/checkpoint/seal.h"
#include "tools/saved_shapes.h"

using namespace sluice;         // NOLINT: the fuzzer's entry is outside the namespace
using namespace sluice::tools;  // NOLINT: likewise

namespace {

// What was read can be written, and is read again as the same.
void CheckPart(const std::string& text) {
  const absl::StatusOr<PartText> part = ParsePart(text, "the part");
  if (!part.ok()) return;
  SLUICE_CHECK(part->part.rank < part->part.ranks);
  SLUICE_CHECK(part->part.pieces.size() == part->part.checksums.size());
  const std::string rows = part->part.rank == 0 ? TensorRows(part->part.tensors) : "";
  const std::string again = TextOf(*part, rows);
  const absl::StatusOr<PartText> second = ParsePart(again, "the part");
  SLUICE_CHECK(second.ok() && TextOf(*second, rows) == again);
  const absl::StatusOr<PartLayout> layout = LayOut(part->part.tensors, part->part.pieces);
  if (!layout.ok()) return;
  for (const SavedFile file : {kTrained, kFrozen})
    SLUICE_CHECK(SafetensorsHeader(part->part.tensors, *layout, file, 1, 0).size() % 8 == 0);
}

void CheckIndex(const std::string& text) {
  const absl::StatusOr<IndexText> index = ParseIndex(text, "the index");
  if (!index.ok()) return;
  for (const IndexText::File& file : index->files)
    SLUICE_CHECK(file.name.find('/') == std::string::npos && !file.name.starts_with('.'));
  const std::string again = TextOf(*index);
  const absl::StatusOr<IndexText> second = ParseIndex(again, "the index");
  SLUICE_CHECK(second.ok() && TextOf(*second) == again);
}

void CheckShapes(const std::string& text) {
  const size_t half = std::min(text.find('\0'), text.size());
  const absl::StatusOr<SavedShapes> shapes =
      ParseSavedShapes(text.substr(0, half), text.substr(std::min(text.size(), half + 1)), "it");
  if (!shapes.ok()) return;
  for (const SavedBuffer& buffer : shapes->buffers)
    SLUICE_CHECK(static_cast<int64_t>(buffer.bytes.size()) ==
                 ElementsOf(buffer.shape.shape) * SizeOfSafetensors(buffer.shape.dtype));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  CheckPart(text);
  CheckIndex(text);
  CheckShapes(text);
  // As if it had been saved so: whatever stands between the first line and the checksum.
  for (const std::string_view format : {kPartFormat, kIndexFormat}) {
    std::string sealed = FirstLine(format) + text;
    Seal(&sealed);
    CheckPart(sealed);
    CheckIndex(sealed);
  }
  if (const std::optional<HiddenName> hidden = ParseHiddenName(text))
    SLUICE_CHECK(HiddenNameOf(hidden->tag, hidden->id, hidden->kind) == text);
  return 0;
}
