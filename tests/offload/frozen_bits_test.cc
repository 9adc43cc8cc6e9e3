// Frozen tensors of every type keep every bit, whatever they have (NaNs with payloads, subnormals,
// -0, quantized weights), wherever they lie, however often they are moved, by every way to look.

#include <gtest/gtest.h>

#include <cstring>
#include <iterator>
#include <vector>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Settle;
using testing::SmallestBudgets;
using testing::Trainer;

const ElementType kTypes[] = {FloatType::kF32, FloatType::kBf16, FloatType::kF16,
                              ElementType::Bytes()};

// A unit of each type.
ModelSpec FrozenModel() {
  ModelSpec spec;
  for (uint32_t u = 0; u < std::size(kTypes); ++u) {
    spec.units.push_back({.name = kTypes[u].name(), .types = UnitTypes{.param = kTypes[u]}});
    for (const int64_t elements : {9001, 5, 4097}) {
      spec.tensors.push_back({.name = fmt::format("{} {}", kTypes[u].name(), elements),
                              .unit = UnitIndex(u),
                              .elements = elements,
                              .keep = Keep::kParam});
    }
  }
  return spec;
}

// Reads, writes and looks at the tensors of a runtime.
class Looker {
 public:
  explicit Looker(OffloadRuntime* runtime)
      : runtime_(runtime), spec_(FrozenModel()), trainer_(runtime, spec_, {}) {}

  ElementType type(uint32_t t) const { return kTypes[spec_.tensors[t].unit.value()]; }
  uint32_t tensors() const { return static_cast<uint32_t>(spec_.tensors.size()); }
  size_t bytes(uint32_t t) const {
    return static_cast<size_t>(spec_.tensors[t].elements * type(t).size());
  }
  void Write(uint32_t t, std::vector<std::byte> bits) {
    EXPECT_EQ(Access(true, t, Field::kMaster, &bits), absl::OkStatus());
  }
  std::vector<std::byte> Read(uint32_t t, Field field) {
    std::vector<std::byte> bits(bytes(t));
    EXPECT_EQ(Access(false, t, field, &bits), absl::OkStatus());
    return bits;
  }
  // In the unit's view.
  std::vector<std::byte> View(uint32_t t) {
    const TensorLayout& tensor = runtime_->layout().tensors()[t];
    EXPECT_EQ(trainer_.Wait(runtime_->Acquire(tensor.unit)), absl::OkStatus());
    const absl::StatusOr<DlManagedTensor*> view = runtime_->MakeView(tensor.unit);
    if (!view.ok()) return {};
    EXPECT_EQ((*view)->dl_tensor.dtype.bits, 8 * type(t).size());
    const auto* at = static_cast<const std::byte*>((*view)->dl_tensor.data);
    at += tensor.offset * type(t).size();
    std::vector<std::byte> bits(at, at + bytes(t));
    (*view)->deleter(*view);
    EXPECT_EQ(runtime_->Release(tensor.unit), absl::OkStatus());
    return bits;
  }

 private:
  absl::Status Access(bool write, uint32_t t, Field field, std::vector<std::byte>* data) {
    return trainer_.Wait(runtime_->Access({.write = write,
                                           .tensor = TensorIndex(t),
                                           .field = field,
                                           .data = data->data(),
                                           .type = type(t),
                                           .done = nullptr}));
  }

  OffloadRuntime* const runtime_;
  const ModelSpec spec_;
  Trainer trainer_;
};

TEST(FrozenBitsTest, EveryBitSurvives) {
  for (const uint64_t seed : Seeds(30)) {
    if (HasFailure()) break;
    SCOPED_TRACE(seed);
    RuntimeConfig config = ConfigOf(seed);
    if (seed % 2 == 0) config.budgets = SmallestBudgets(FrozenModel(), config);  // on the drive
    absl::StatusOr<SimRuntime> sim = MakeSimRuntime(FrozenModel(), config, {.seed = seed});
    ASSERT_TRUE(sim.ok()) << sim.status();
    Looker looker(sim->runtime.get());
    SimWorld dice(seed);
    std::vector<std::vector<std::byte>> bits;
    for (uint32_t t = 0; t < looker.tensors(); ++t) {
      bits.emplace_back(looker.bytes(t));
      for (std::byte& byte : bits[t]) byte = static_cast<std::byte>(dice.Random());
      looker.Write(t, bits[t]);
    }
    for (int round = 0; round < 2; ++round) {
      for (uint32_t t = 0; t < looker.tensors(); ++t) {
        EXPECT_TRUE(looker.View(t) == bits[t]) << t;
        EXPECT_TRUE(looker.Read(t, Field::kParam) == bits[t]) << t;
        EXPECT_TRUE(looker.Read(t, Field::kMaster) == bits[t]) << t;
      }
      for (uint32_t t = 0; t < looker.tensors(); t += 3) looker.Write(t, bits[t]);  // a neighbour
    }
    EXPECT_EQ(Settle(&*sim), "");
  }
}

}  // namespace
}  // namespace sluice
