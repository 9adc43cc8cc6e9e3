#include "offload/plan/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/status.h"
#include "tests/offload/random_model.h"

namespace sluice {
namespace {

using testing::HasSubstr;

ModelLayout MakeLayout(const ModelSpec& spec, int64_t chunk_elements) {
  absl::StatusOr<ModelLayout> layout = ModelLayout::Make(spec, chunk_elements);
  SLUICE_CHECK_MSG(layout.ok(), Message(layout.status()));
  return *std::move(layout);
}

RC_GTEST_PROP(LayoutTest, EveryElementIsInExactlyOneRun, ()) {
  const ModelSpec spec = AnyModel();
  const ModelLayout layout = MakeLayout(spec, AnyChunkElements());
  std::vector<int64_t> covered(spec.tensors.size(), 0);  // elements, all from the start on
  for (const UnitLayout& unit : layout.units()) {
    for (uint32_t c = unit.first_chunk; c < unit.first_chunk + unit.chunk_count; ++c) {
      const ChunkLayout& chunk = layout.chunk(ChunkIndex(c));
      RC_ASSERT(&layout.unit(chunk.unit) == &unit);
      for (const ChunkRun& run : layout.runs(chunk)) {
        RC_ASSERT(&layout.unit(layout.tensor(run.tensor).unit) == &unit);
        RC_ASSERT(run.elements > 0);
        RC_ASSERT(run.tensor_offset == covered[run.tensor.value()]);
        covered[run.tensor.value()] += run.elements;
      }
    }
  }
  for (size_t t = 0; t < covered.size(); ++t) RC_ASSERT(covered[t] == spec.tensors[t].elements);
}

RC_GTEST_PROP(LayoutTest, RunsAreWholeCellsWhereTheirTensorLies, ()) {
  const ModelLayout layout = MakeLayout(AnyModel(), AnyChunkElements());
  for (const ChunkLayout& chunk : layout.chunks()) {
    RC_ASSERT(chunk.elements <= layout.chunk_elements());
    RC_ASSERT(chunk.capacity >= chunk.elements && chunk.capacity % kTensorAlignment == 0);
    RC_ASSERT(chunk.capacity < chunk.elements + kTensorAlignment);
    const bool frozen = chunk.keep == Keep::kParam;
    RC_ASSERT(chunk.state_bytes().value() == (frozen ? 0 : chunk.capacity * 12));
    int64_t end = 0;  // of the run before, in the chunk
    for (const ChunkRun& run : layout.runs(chunk)) {
      const TensorLayout& tensor = layout.tensor(run.tensor);
      const int64_t last = run.tensor_offset + run.elements;
      RC_ASSERT(run.tensor_offset % kCellElements == 0);
      RC_ASSERT(last % kCellElements == 0 || last == tensor.elements);
      RC_ASSERT(chunk.offset + run.chunk_offset == tensor.offset + run.tensor_offset);
      RC_ASSERT(run.chunk_offset >= end);
      end = run.chunk_offset + run.elements;
    }
    RC_ASSERT(end == chunk.elements);
  }
}

RC_GTEST_PROP(LayoutTest, TensorsLieApartAlignedInTheOrderGiven, ()) {
  const ModelSpec spec = AnyModel();
  const ModelLayout layout = MakeLayout(spec, AnyChunkElements());
  int64_t parameters = 0;
  int64_t cells = 0;
  for (size_t t = 0; t < spec.tensors.size(); ++t) {
    RC_ASSERT(layout.tensors()[t].elements == spec.tensors[t].elements);
    RC_ASSERT(layout.tensors()[t].first_cell == cells);
    parameters += spec.tensors[t].elements;
    cells += CellCount(spec.tensors[t].elements);
  }
  RC_ASSERT(layout.parameter_count() == parameters);
  RC_ASSERT(layout.cell_count() == cells);
  for (const UnitLayout& unit : layout.units()) {
    int64_t end = 0;
    for (const TensorIndex t : unit.tensors) {
      const TensorLayout& tensor = layout.tensor(t);
      RC_ASSERT(tensor.offset % kTensorAlignment == 0);
      RC_ASSERT(tensor.offset >= end && tensor.offset < end + kTensorAlignment);
      end = tensor.offset + tensor.elements;
    }
    RC_ASSERT(unit.elements % kTensorAlignment == 0);
    RC_ASSERT(unit.elements >= end && unit.elements < end + kTensorAlignment);
  }
}

RC_GTEST_PROP(LayoutTest, ChunksMoveNothing, ()) {
  const ModelSpec spec = AnyModel();
  const ModelLayout one = MakeLayout(spec, kCellElements);
  const ModelLayout other = MakeLayout(spec, AnyChunkElements());
  for (size_t t = 0; t < spec.tensors.size(); ++t) {
    RC_ASSERT(one.tensors()[t].offset == other.tensors()[t].offset);
    RC_ASSERT(one.tensors()[t].first_cell == other.tensors()[t].first_cell);
  }
}

TEST(LayoutTest, SmallTensorsShareAChunkAndLargeOnesTakeSeveral) {
  const ModelSpec spec = {.units = {{"unit"}},
                          .tensors = {{"small", UnitIndex(0), 10, 0},
                                      {"smaller", UnitIndex(0), 1, 0},
                                      {"large", UnitIndex(0), 9000, 0}}};
  const ModelLayout layout = MakeLayout(spec, 2 * kCellElements);
  ASSERT_EQ(2u, layout.chunks().size());
  const auto first = layout.runs(layout.chunk(ChunkIndex(0)));
  ASSERT_EQ(3u, first.size());
  EXPECT_EQ(64, first[1].chunk_offset);
  EXPECT_EQ(128, first[2].chunk_offset);
  EXPECT_EQ(4096, first[2].elements) << "two cells more would be 8320 elements";
  const auto second = layout.runs(layout.chunk(ChunkIndex(1)));
  ASSERT_EQ(1u, second.size());
  EXPECT_EQ(4096, second[0].tensor_offset);
  EXPECT_EQ(9000 - 4096, second[0].elements);
}

TEST(LayoutTest, RefusesWhatIsNoModel) {
  const ModelSpec good = {.units = {{"a"}, {"b"}},
                          .tensors = {{"x", UnitIndex(0), 5, 0}, {"y", UnitIndex(1), 5, 0}}};
  const auto error = [](ModelSpec spec, int64_t chunk_elements = kCellElements) {
    const absl::Status status = ModelLayout::Make(spec, chunk_elements).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(Message(status));
  };
  for (const int64_t elements : {int64_t{0}, int64_t{-4096}, int64_t{4095}})
    EXPECT_THAT(error(good, elements), HasSubstr("must be a positive multiple of 4096"));
  ModelSpec spec = good;
  spec.tensors.pop_back();
  EXPECT_THAT(error(spec), HasSubstr("unit 'b' has no tensors"));
  spec = good;
  spec.tensors[1].unit = UnitIndex(2);
  EXPECT_THAT(error(spec), HasSubstr("tensor 'y' names unit 2, but there are 2"));
  for (const int64_t elements : {int64_t{0}, int64_t{-1}, kElementsMax, INT64_MAX}) {
    spec = good;
    spec.tensors[1].elements = elements;  // five are taken already
    EXPECT_THAT(error(spec), HasSubstr("tensor 'y' has"));
  }
  spec = good;
  spec.tensors[1].elements = kElementsMax / 8;
  EXPECT_THAT(error(spec), HasSubstr("raise chunk_elements"));
}

RC_GTEST_PROP(LayoutTest, TypesAreThoseOfTheUnitOrTheDefault, ()) {
  const ModelSpec spec = AnyModel();
  const UnitTypes types = AnyFloatTypes();
  const absl::StatusOr<ModelLayout> layout = ModelLayout::Make(spec, AnyChunkElements(), types);
  RC_ASSERT(layout.ok());
  RC_ASSERT(layout->default_types() == types);
  for (size_t u = 0; u < spec.units.size(); ++u) {
    const UnitLayout& unit = layout->units()[u];
    RC_ASSERT(unit.types == spec.units[u].types.value_or(types));
    RC_ASSERT(unit.param_bytes().value() == unit.elements * unit.types.param.size());
    RC_ASSERT(unit.grad_bytes().value() == unit.updated_elements * SizeOf(unit.types.grad));
  }
  for (const TensorLayout& tensor : layout->tensors())
    RC_ASSERT(tensor.types == layout->unit(tensor.unit).types);
  for (const ChunkLayout& chunk : layout->chunks()) {
    RC_ASSERT(chunk.types == layout->unit(chunk.unit).types);
    RC_ASSERT(chunk.param_bytes().value() == chunk.capacity * chunk.types.param.size());
  }
}

// Bytes in a unit of which all, or one tensor, is not frozen.
TEST(LayoutTest, BytesAreFrozen) {
  for (const Keep keep : {Keep::kAll, Keep::kStates, Keep::kMoments}) {
    for (const bool both : {true, false}) {
      const ModelSpec spec = {
          .units = {{"float"},
                    {.name = "packed", .types = UnitTypes{.param = ElementType::Bytes()}}},
          .tensors = {{"x", UnitIndex(0), 5, 0},
                      {"y", UnitIndex(1), 5, 0, both ? keep : Keep::kParam},
                      {"z", UnitIndex(1), 5, 0, keep}}};
      const absl::Status status = ModelLayout::Make(spec, kCellElements).status();
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_THAT(std::string(Message(status)), HasSubstr("unit 'packed' is of bytes, but tensor"));
    }
  }
}

TEST(LayoutTest, AModelOfNothingIsOne) {
  const ModelLayout layout = MakeLayout({}, kCellElements);
  EXPECT_TRUE(layout.chunks().empty());
  EXPECT_EQ(0, layout.parameter_count());
}

}  // namespace
}  // namespace sluice
