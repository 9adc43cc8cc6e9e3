// offload/plan/layout.h
//
// Where every value of a model lies inside its unit, and how units are cut into chunks. Made once
// from the model's description; pure data afterwards, read from any thread.
//
// A unit is one run of elements: its tensors in order, those that are updated before those that are
// frozen, and of lent ones those of which only moments are kept last, each starting at a multiple
// of kTensorAlignment, gaps unused. A chunk is a piece of that run whose states are moved as a
// whole: whole cells of the canonical grid (core/grid.h), of one or several neighbouring tensors of
// which the same is kept. How its states lie on a tier, and so how many bytes they are, is the
// state format's (optim/state_format.h), which the layout keeps.
//
// Among several ranks a unit's run is two, one after the other: of what is updated and of what is
// frozen, each placed and shared by comm/partition.h. What is shared (Sharding) has chunks where
// this rank keeps it, and nowhere else; a unit's tensors, and the slots that compute uses, are
// whole on every rank.
//
// Every unit has types of its own (unit_types.h), and its chunks and tensors say them too: whoever
// touches a parameter or a gradient has its type from here.

#ifndef SLUICE_OFFLOAD_PLAN_LAYOUT_H_
#define SLUICE_OFFLOAD_PLAN_LAYOUT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/partition.h"
#include "core/grid.h"
#include "core/types.h"
#include "offload/plan/unit_types.h"
#include "optim/state_format.h"

namespace sluice {

inline constexpr int64_t kElementsMax = int64_t{1} << 44;  // of all tensors together
inline constexpr size_t kChunksMax = size_t{1} << 24;

// What of a tensor is kept on the tiers. A frozen tensor (kParam) has a compute copy and nothing
// else: no states, no gradient, never written after it was loaded. A lent one (kStates) has states
// and a gradient; its parameter stays in the caller's memory. So does that of kMoments, which is
// always fp32 and the master: its states are what the format keeps beside it.
enum class Keep : uint8_t { kAll = 0, kParam = 1, kStates = 2, kMoments = 3 };
constexpr bool IsLent(Keep keep) { return keep == Keep::kStates || keep == Keep::kMoments; }

// What the caller says of the model.
struct ModelSpec {
  struct Unit {
    std::string name;
    bool stays_in_hbm = false;         // as others are acquired while it is
    std::optional<UnitTypes> types{};  // none: the default. Bytes: only if all of it is frozen
  };
  struct Tensor {
    std::string name;
    UnitIndex unit;
    int64_t elements = 0;
    uint32_t group = 0;
    Keep keep = Keep::kAll;  // all tensors of a unit are lent, or none
  };
  std::vector<Unit> units;
  std::vector<Tensor> tensors;
};

// Which of the ranks this is, and what of a model each keeps a part of instead of all (ZeRO:
// Rajbhandari et al. 2020; stages 1 and 2 share states, stage 3 parameters too).
struct Sharding {
  Rank rank;
  uint32_t ranks = 1;
  bool states = false;  // and gradients; of what is updated
  bool params = false;  // of everything; only with states
};

// The part of a chunk that belongs to one tensor.
struct ChunkRun {
  TensorIndex tensor;
  int64_t tensor_offset;  // elements
  int64_t chunk_offset;
  int64_t elements;
};

struct ChunkLayout {
  UnitIndex unit;
  int64_t offset;    // in the unit, elements
  int64_t elements;  // from the first run's start to the last one's end
  int64_t capacity;  // elements rounded up to kTensorAlignment
  uint32_t first_run;
  uint32_t run_count;
  Keep keep;
  UnitTypes types;
  Bytes states;  // as the format has them

  Bytes param_bytes() const { return Bytes(capacity * types.param.size()); }
  Bytes grad_bytes() const {
    return keep == Keep::kParam ? Bytes(0) : Bytes(capacity * SizeOf(types.grad));
  }
  Bytes state_bytes() const { return states; }
  // Of the copies that may have part of the masters, of a chunk that has states. None: the masters
  // are kept whole, because the caller may change the type of what is lent, and because an update
  // would read fp32 copies on the tiers for nothing else.
  std::optional<FloatType> copy_type() const {
    if (keep == Keep::kMoments) return FloatType::kF32;
    if (keep == Keep::kStates || types.param == FloatType::kF32) return std::nullopt;
    return types.param.floats();
  }
};

struct TensorLayout {
  std::string name;
  UnitIndex unit;
  int64_t elements;
  int64_t offset;  // in the unit, elements
  uint32_t group;
  Keep keep;
  UnitTypes types;
  int64_t first_cell;  // of all cells of the model, in canonical order
  ElementRange kept;   // in chunks of this rank: what it reads, updates and writes
};

struct UnitLayout {
  std::string name;
  int64_t elements;          // of the run, a multiple of kTensorAlignment
  int64_t updated_elements;  // of its beginning, where what is not frozen lies
  Partition updated;         // of that beginning
  Partition frozen;          // of the rest, whose places count from there
  bool lent;                 // its parameters are with the caller
  bool stays_in_hbm;         // for good
  UnitTypes types;
  uint32_t first_chunk;
  uint32_t chunk_count;
  std::vector<TensorIndex> tensors;  // in the order in which they lie, the frozen ones last

  // f(Rank, ElementRange): the parts of `range` of the unit and whose share each is, in order.
  template <typename F>
  void ForShards(ElementRange range, F&& f) const {
    updated.ForShards(range, f);
    frozen.ForShards(
        {range.begin - updated_elements, range.end - updated_elements},
        [&](Rank rank, ElementRange part) {
          f(rank, ElementRange{part.begin + updated_elements, part.end + updated_elements});
        });
  }

  // On the tiers, without what aligns them.
  Bytes param_bytes() const { return Bytes(lent ? 0 : elements * types.param.size()); }
  Bytes shard_bytes(Rank rank) const {  // of one rank
    const int64_t places = updated.shard(rank).size() + frozen.shard(rank).size();
    return Bytes(lent ? 0 : places * types.param.size());
  }
  Bytes grad_bytes() const { return Bytes(updated_elements * SizeOf(types.grad)); }
};

class ModelLayout {
 public:
  // `chunk_elements`: a multiple of kCellElements, the most a chunk may span. `types`: of units
  // that don't say theirs. `format`: null is AdamW's in fp32. Errors: InvalidArgument naming the
  // unit or tensor (no tensors, no elements, unknown unit, some of a unit lent and some not, bytes
  // that are not frozen), or for more than kElementsMax elements or kChunksMax chunks.
  static absl::StatusOr<ModelLayout> Make(const ModelSpec& spec, int64_t chunk_elements,
                                          UnitTypes types = {},
                                          std::shared_ptr<const StateFormat> format = nullptr,
                                          const Sharding& sharding = {});

  std::span<const UnitLayout> units() const { return units_; }
  std::span<const TensorLayout> tensors() const { return tensors_; }
  std::span<const ChunkLayout> chunks() const { return chunks_; }
  const UnitLayout& unit(UnitIndex i) const { return units_[i.value()]; }
  const TensorLayout& tensor(TensorIndex i) const { return tensors_[i.value()]; }
  const ChunkLayout& chunk(ChunkIndex i) const { return chunks_[i.value()]; }
  std::span<const ChunkRun> runs(const ChunkLayout& chunk) const {
    return std::span(runs_).subspan(chunk.first_run, chunk.run_count);
  }

  const Sharding& sharding() const { return sharding_; }
  const std::shared_ptr<const StateFormat>& format() const { return format_; }
  // Whether the chunk's copies on the tiers are read with its states: part of the masters is in
  // them.
  bool reads_params(const ChunkLayout& chunk) const {
    return chunk.keep == Keep::kAll && format_->reads_param(chunk.copy_type());
  }
  // Whether the masters are the caller's parameters.
  bool masters_are_lent(const ChunkLayout& chunk) const {
    return chunk.keep == Keep::kMoments && format_->reads_param(chunk.copy_type());
  }
  int64_t chunk_elements() const { return chunk_elements_; }
  UnitTypes default_types() const { return default_types_; }  // for people; no unit's
  int64_t cell_count() const { return cell_count_; }
  int64_t parameter_count() const { return parameter_count_; }  // without gaps
  int64_t updated_count() const { return updated_count_; }      // of those that are not frozen
  int64_t kept_count() const { return kept_count_; }  // of these, with states on this rank

 private:
  absl::Status AddTensor(const ModelSpec::Tensor& tensor);
  void PlaceTensors(UnitIndex unit);
  absl::Status CutIntoChunks(UnitIndex unit);
  absl::Status CutTensor(UnitIndex unit, TensorIndex tensor, ElementRange range);
  absl::Status TooManyChunks() const;

  std::shared_ptr<const StateFormat> format_;
  Sharding sharding_;
  int64_t chunk_elements_ = 0;
  UnitTypes default_types_;
  int64_t cell_count_ = 0;
  int64_t parameter_count_ = 0;
  int64_t updated_count_ = 0;
  int64_t kept_count_ = 0;
  std::vector<UnitLayout> units_;
  std::vector<TensorLayout> tensors_;
  std::vector<ChunkLayout> chunks_;
  std::vector<ChunkRun> runs_;
};

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_PLAN_LAYOUT_H_
