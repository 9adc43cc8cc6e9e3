#include "offload/plan/layout.h"

#include <algorithm>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "optim/adamw_rule.h"

namespace sluice {

absl::StatusOr<ModelLayout> ModelLayout::Make(const ModelSpec& spec, int64_t chunk_elements,
                                              UnitTypes types,
                                              std::shared_ptr<const StateFormat> format,
                                              const Sharding& sharding) {
  if (chunk_elements <= 0 || chunk_elements % kCellElements != 0) {
    return absl::InvalidArgumentError(
        fmt::format("chunk_elements is {}; it must be a positive multiple of {}", chunk_elements,
                    kCellElements));
  }
  SLUICE_CHECK(sharding.rank.value() < sharding.ranks);
  SLUICE_CHECK(sharding.states || !sharding.params);
  ModelLayout layout;
  if (sharding.ranks > 1) layout.sharding_ = sharding;  // one has everything
  layout.format_ = format != nullptr ? std::move(format) : MakeFp32States(MakeAdamW()->fields());
  layout.chunk_elements_ = chunk_elements;
  layout.default_types_ = types;
  for (const ModelSpec::Unit& unit : spec.units) {
    layout.units_.push_back({.name = unit.name,
                             .elements = 0,
                             .updated_elements = 0,
                             .lent = false,
                             .stays_in_hbm = unit.stays_in_hbm,
                             .types = unit.types.value_or(types),
                             .first_chunk = 0,
                             .chunk_count = 0,
                             .tensors = {}});
  }
  for (const ModelSpec::Tensor& tensor : spec.tensors)
    SLUICE_RETURN_IF_ERROR(layout.AddTensor(tensor));
  // No need to cut them: a chunk spans at most chunk_elements.
  const int64_t chunks_least = layout.parameter_count_ / chunk_elements;
  if (chunks_least > static_cast<int64_t>(kChunksMax)) return layout.TooManyChunks();
  layout.chunks_.reserve(static_cast<size_t>(chunks_least) + 2 * layout.units_.size());
  layout.runs_.reserve(static_cast<size_t>(chunks_least) + layout.tensors_.size());
  for (uint32_t u = 0; u < layout.units_.size(); ++u) {
    if (layout.units_[u].tensors.empty()) {
      return absl::InvalidArgumentError(
          fmt::format("unit '{}' has no tensors", layout.units_[u].name));
    }
    layout.PlaceTensors(UnitIndex(u));
    SLUICE_RETURN_IF_ERROR(layout.CutIntoChunks(UnitIndex(u)));
  }
  return layout;
}

absl::Status ModelLayout::AddTensor(const ModelSpec::Tensor& tensor) {
  if (tensor.unit.value() >= units_.size()) {
    return absl::InvalidArgumentError(fmt::format("tensor '{}' names unit {}, but there are {}",
                                                  tensor.name, tensor.unit.value(), units_.size()));
  }
  if (tensor.elements <= 0 || tensor.elements > kElementsMax - parameter_count_) {
    return absl::InvalidArgumentError(
        fmt::format("tensor '{}' has {} elements; it must have at least one, and all tensors "
                    "together at most 2^44",
                    tensor.name, tensor.elements));
  }
  UnitLayout& unit = units_[tensor.unit.value()];
  const bool lent = IsLent(tensor.keep);
  if (unit.types.param.is_bytes() && tensor.keep != Keep::kParam) {
    return absl::InvalidArgumentError(fmt::format(
        "unit '{}' is of bytes, but tensor '{}' is updated: bytes are not numbers, so all tensors "
        "of the unit must be frozen (SLUICE_KEEP_PARAM); put others into a unit of a float type",
        unit.name, tensor.name));
  }
  if (!unit.tensors.empty() && unit.lent != lent) {
    return absl::InvalidArgumentError(fmt::format(
        "unit '{}' has parameters on the tiers and others, such as tensor '{}', that stay with the "
        "caller: put them into different units",
        unit.name, tensor.name));
  }
  unit.lent = lent;
  unit.tensors.push_back(TensorIndex(static_cast<uint32_t>(tensors_.size())));
  tensors_.push_back({.name = tensor.name,
                      .unit = tensor.unit,
                      .elements = tensor.elements,
                      .offset = 0,
                      .group = tensor.group,
                      .keep = tensor.keep,
                      .types = unit.types,
                      .first_cell = cell_count_,
                      .kept = {}});
  cell_count_ += CellCount(tensor.elements);
  parameter_count_ += tensor.elements;
  if (tensor.keep != Keep::kParam) updated_count_ += tensor.elements;
  return absl::OkStatus();
}

// Frozen tensors last, so that gradients need room for a beginning of the unit only. Those of which
// the same is kept lie together, so that they share chunks.
void ModelLayout::PlaceTensors(UnitIndex unit_index) {
  UnitLayout& unit = units_[unit_index.value()];
  const auto updated = [this](TensorIndex t) { return tensors_[t.value()].keep != Keep::kParam; };
  const auto whole = [this](TensorIndex t) { return tensors_[t.value()].keep != Keep::kMoments; };
  std::stable_partition(unit.tensors.begin(), unit.tensors.end(), whole);
  std::stable_partition(unit.tensors.begin(), unit.tensors.end(), updated);
  std::vector<int64_t> sizes;
  for (const TensorIndex t : unit.tensors) sizes.push_back(tensors_[t.value()].elements);
  const auto frozen = std::ranges::partition_point(unit.tensors, updated);
  const auto count = static_cast<size_t>(frozen - unit.tensors.begin());
  unit.updated = Partition(std::span(sizes).first(count), sharding_.ranks, unit_index.value());
  unit.frozen = Partition(std::span(sizes).subspan(count), sharding_.ranks, unit_index.value());
  unit.updated_elements = unit.updated.length();
  unit.elements = unit.updated_elements + unit.frozen.length();
  for (size_t i = 0; i < sizes.size(); ++i) {
    tensors_[unit.tensors[i].value()].offset =
        i < count ? unit.updated.offset(i) : unit.updated_elements + unit.frozen.offset(i - count);
  }
}

absl::Status ModelLayout::CutIntoChunks(UnitIndex unit_index) {
  UnitLayout& unit = units_[unit_index.value()];
  unit.first_chunk = static_cast<uint32_t>(chunks_.size());
  const auto cut = [&](const Partition& partition, size_t first, bool shared) {
    const ElementRange range =
        shared ? partition.shard(sharding_.rank) : ElementRange{0, partition.length()};
    absl::Status status;
    partition.ForTensors(range, [&](size_t tensor, ElementRange part) {
      if (status.ok()) status = CutTensor(unit_index, unit.tensors[first + tensor], part);
    });
    return status;
  };
  const auto is_frozen = [this](TensorIndex t) { return tensors_[t.value()].keep == Keep::kParam; };
  const auto frozen = std::ranges::find_if(unit.tensors, is_frozen);
  SLUICE_RETURN_IF_ERROR(cut(unit.updated, 0, sharding_.states));
  SLUICE_RETURN_IF_ERROR(
      cut(unit.frozen, static_cast<size_t>(frozen - unit.tensors.begin()), sharding_.params));
  unit.chunk_count = static_cast<uint32_t>(chunks_.size()) - unit.first_chunk;
  for (ChunkLayout& chunk : std::span(chunks_).subspan(unit.first_chunk)) {
    if (chunk.keep != Keep::kParam)
      chunk.states = format_->bytes(chunk.capacity, chunk.copy_type());
  }
  return absl::OkStatus();
}

// Takes as many cells of `range` as fit; a cell that would make the chunk longer than
// chunk_elements_, or of which something else is kept, begins the next.
absl::Status ModelLayout::CutTensor(UnitIndex unit, TensorIndex t, ElementRange range) {
  TensorLayout& tensor = tensors_[t.value()];
  const uint32_t first_chunk = units_[unit.value()].first_chunk;
  tensor.kept = range;
  if (tensor.keep != Keep::kParam) kept_count_ += range.size();
  int64_t length = 0;
  for (int64_t begin = range.begin; begin < range.end; begin += length) {
    const int64_t cell = std::min(kCellElements, range.end - begin);
    const int64_t at = tensor.offset + begin;
    const bool fits = chunks_.size() > first_chunk && chunks_.back().keep == tensor.keep &&
                      at + cell - chunks_.back().offset <= chunk_elements_;
    if (!fits && chunks_.size() == kChunksMax) return TooManyChunks();
    if (!fits) {
      chunks_.push_back({.unit = unit,
                         .offset = at,
                         .elements = 0,
                         .capacity = 0,
                         .first_run = static_cast<uint32_t>(runs_.size()),
                         .run_count = 0,
                         .keep = tensor.keep,
                         .types = tensor.types,
                         .states = Bytes(0)});
    }
    ChunkLayout& chunk = chunks_.back();
    const int64_t room = chunk.offset + chunk_elements_ - at;
    length = range.end - begin;
    if (length > room) length = room / kCellElements * kCellElements;
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
    chunk.capacity = RoundUp(chunk.elements, kTensorAlignment);
  }
  return absl::OkStatus();
}

absl::Status ModelLayout::TooManyChunks() const {
  return absl::InvalidArgumentError(fmt::format(
      "more than {} chunks: raise chunk_elements, which is {}, or leave it to be chosen",
      kChunksMax, chunk_elements_));
}

}  // namespace sluice
