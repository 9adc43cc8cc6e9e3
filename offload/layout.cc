#include "offload/layout.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"

namespace sluice {

namespace {

constexpr int64_t AlignElements(int64_t n) {
  return (n + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
}

}  // namespace

absl::StatusOr<ModelLayout> ModelLayout::Make(const ModelSpec& spec, int64_t chunk_elements) {
  if (chunk_elements <= 0 || chunk_elements % kCellElements != 0) {
    return absl::InvalidArgumentError(
        fmt::format("chunk_elements is {}; it must be a positive multiple of {}", chunk_elements,
                    kCellElements));
  }
  ModelLayout layout;
  layout.chunk_elements_ = chunk_elements;
  for (const ModelSpec::Unit& unit : spec.units) {
    layout.units_.push_back(
        {.name = unit.name, .elements = 0, .first_chunk = 0, .chunk_count = 0, .tensors = {}});
  }
  for (const ModelSpec::Tensor& tensor : spec.tensors) {
    if (tensor.unit.value() >= layout.units_.size()) {
      return absl::InvalidArgumentError(fmt::format("tensor '{}' names unit {}, but there are {}",
                                                    tensor.name, tensor.unit.value(),
                                                    layout.units_.size()));
    }
    if (tensor.elements <= 0 || tensor.elements > kElementsMax - layout.parameter_count_) {
      return absl::InvalidArgumentError(
          fmt::format("tensor '{}' has {} elements; it must have at least one, and all tensors "
                      "together at most 2^40",
                      tensor.name, tensor.elements));
    }
    UnitLayout& unit = layout.units_[tensor.unit.value()];
    unit.tensors.push_back(TensorIndex(static_cast<uint32_t>(layout.tensors_.size())));
    layout.tensors_.push_back({.name = tensor.name,
                               .unit = tensor.unit,
                               .elements = tensor.elements,
                               .offset = unit.elements,
                               .group = tensor.group,
                               .first_cell = layout.cell_count_});
    unit.elements += AlignElements(tensor.elements);
    layout.cell_count_ += CellCount(tensor.elements);
    layout.parameter_count_ += tensor.elements;
  }
  for (uint32_t u = 0; u < layout.units_.size(); ++u) {
    if (layout.units_[u].tensors.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("unit '{}' has no tensors", layout.units_[u].name));
    }
    SLUICE_RETURN_IF_ERROR(layout.CutIntoChunks(UnitIndex(u)));
  }
  return layout;
}

// Takes cells one by one; a cell that would make the chunk longer than chunk_elements_ begins the
// next.
absl::Status ModelLayout::CutIntoChunks(UnitIndex unit_index) {
  UnitLayout& unit = units_[unit_index.value()];
  unit.first_chunk = static_cast<uint32_t>(chunks_.size());
  const auto too_many = [this] {
    return absl::InvalidArgumentError(fmt::format(
        "more than {} chunks: raise chunk_elements, which is {}", kChunksMax, chunk_elements_));
  };
  if (unit.elements / chunk_elements_ > static_cast<int64_t>(kChunksMax)) return too_many();
  for (TensorIndex t : unit.tensors) {
    const TensorLayout& tensor = tensors_[t.value()];
    for (int64_t begin = 0; begin < tensor.elements; begin += kCellElements) {
      const int64_t length = std::min(kCellElements, tensor.elements - begin);
      const int64_t at = tensor.offset + begin;
      const bool fits = chunks_.size() > unit.first_chunk &&
                        at + length - chunks_.back().offset <= chunk_elements_;
      if (!fits && chunks_.size() == kChunksMax) return too_many();
      if (!fits) {
        chunks_.push_back({.unit = unit_index,
                           .offset = at,
                           .elements = 0,
                           .capacity = 0,
                           .first_run = static_cast<uint32_t>(runs_.size()),
                           .run_count = 0});
      }
      ChunkLayout& chunk = chunks_.back();
      if (chunk.run_count > 0 && runs_.back().tensor == t) {
        runs_.back().elements += length;
      } else {
        runs_.push_back({.tensor = t,
                         .tensor_offset = begin,
                         .chunk_offset = at - chunk.offset,
                         .elements = length});
        ++chunk.run_count;
      }
      chunk.elements = at + length - chunk.offset;
      chunk.capacity = AlignElements(chunk.elements);
    }
  }
  unit.chunk_count = static_cast<uint32_t>(chunks_.size()) - unit.first_chunk;
  return absl::OkStatus();
}

}  // namespace sluice
