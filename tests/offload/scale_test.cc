// A model of 10T parameters is planned in a table that fits anywhere, on files that any file system
// and any process may have.

#include <gtest/gtest.h>

#include "core/budget.h"
#include "fmt/format.h"
#include "offload/run/factory.h"

namespace sluice {
namespace {

constexpr int64_t kTera = 1'000'000'000'000;

ModelSpec Blocks(int64_t parameters, int64_t units) {
  ModelSpec spec;
  for (int64_t u = 0; u < units; ++u) {
    spec.units.push_back({.name = fmt::format("block{}", u)});
    const int64_t elements = parameters / units - 8192;
    for (const int64_t n : {elements, int64_t{8192}})
      spec.tensors.push_back({.name = fmt::format("block{}.{}", u, n),
                              .unit = UnitIndex(static_cast<uint32_t>(u)),
                              .elements = n});
  }
  return spec;
}

TEST(ScaleTest, ChunksGrowWithTheModelSoThatTheirTableDoesNot) {
  for (const int64_t parameters :
       {int64_t{1}, kTera / 100, kTera / 5, kTera, 10 * kTera, kElementsMax}) {
    const int64_t chunk = ChunkElementsFor(parameters, kChunkElementsDefault);
    EXPECT_EQ(chunk % kCellElements, 0);
    EXPECT_GE(chunk, kChunkElementsDefault);
    EXPECT_LE(parameters / chunk, kChunksWanted);
    EXPECT_EQ(chunk > kChunkElementsDefault, parameters > kChunksWanted * kChunkElementsDefault);
  }
}

TEST(ScaleTest, TenTrillionParametersArePlanned) {
  const int64_t parameters = 10 * kTera;
  RuntimeConfig config;
  config.types = {.param = FloatType::kBf16, .grad = FloatType::kBf16};
  config.device = DeviceKind::kHost;
  config.nvme_paths = {"/no/such/place", "/nor/this"};
  config.budgets = {GiB(200), GiB(1 << 15), kNoLimit};
  const absl::StatusOr<Plan> plan = MakePlan(Blocks(parameters, 200), config);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->layout.parameter_count(), parameters);
  EXPECT_LE(plan->layout.chunks().size(), static_cast<size_t>(2 * kChunksWanted));
  const Bytes states = plan->placement.states_nvme + plan->placement.states_pinned;
  EXPECT_GE(states, Bytes(parameters * 12));
  EXPECT_LE(states.value(), parameters * 12 / 1000 * 1001);
  // 20 TB of gradients, which half as much RAM can't hold.
  config.budgets.pinned = GiB(10'000);
  const absl::StatusOr<Plan> spilled = MakePlan(Blocks(parameters, 200), config);
  ASSERT_TRUE(spilled.ok()) << spilled.status();
  EXPECT_GE(spilled->placement.grads_pinned + spilled->placement.grads_nvme, Bytes(parameters * 2));
  EXPECT_GT(spilled->placement.grads_pinned, GiB(9'900));

  const SegmentTable table = SegmentsOf(*plan, *DrivesOf(config));
  EXPECT_LE(table.file_sizes.size(), 140u) << "a descriptor each";
  Bytes sum;
  for (const Bytes size : table.file_sizes) {
    EXPECT_LE(size, GiB(16 << 10)) << "of ext4";
    sum += size;
  }
  EXPECT_EQ(sum, plan->placement.nvme());
  const auto memory = ReadProcessMemory();
  ASSERT_TRUE(memory.ok());
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(memory->rss_peak, GiB(2));
#endif
}

// Cells taken many at a time are cut as those taken one by one: by the definition.
TEST(ScaleTest, ChunksAreCutAsCellsTakenOneByOne) {
  for (const int64_t chunk_cells : {1, 2, 3, 7}) {
    const int64_t most = chunk_cells * kCellElements;
    ModelSpec spec;
    spec.units.push_back({.name = "u"});
    for (const int64_t n : {1, 4095, 4096, 4097, 40'000, 64, 63, 12'288, 5, 100'001})
      spec.tensors.push_back({.name = "t", .unit = UnitIndex(0), .elements = n});
    const auto layout = ModelLayout::Make(spec, most, {});
    ASSERT_TRUE(layout.ok()) << layout.status();
    std::vector<int64_t> begins;  // of chunks
    int64_t begin = -1;
    for (const TensorLayout& tensor : layout->tensors()) {
      for (int64_t cell = 0; cell < tensor.elements; cell += kCellElements) {
        const int64_t at = tensor.offset + cell;
        const int64_t end = at + std::min(kCellElements, tensor.elements - cell);
        if (begin < 0 || end - begin > most) begins.push_back(begin = at);
      }
    }
    ASSERT_EQ(layout->chunks().size(), begins.size());
    for (size_t c = 0; c < begins.size(); ++c) EXPECT_EQ(layout->chunks()[c].offset, begins[c]);
  }
}

}  // namespace
}  // namespace sluice
