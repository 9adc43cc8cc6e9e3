#include "optim/update_rule.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "optim/convert.h"
#include "optim/tiles.h"

namespace sluice {

UpdateKernel UpdateRule::KernelFor(const StateFormat&) const { return {}; }

StateUpdate::StateUpdate(std::shared_ptr<const StateFormat> format,
                         std::shared_ptr<const UpdateRule> rule)
    : format_(std::move(format)), rule_(std::move(rule)), kernel_(rule_->KernelFor(*format_)) {
  const auto kept = format_->fields(), needed = rule_->fields();
  SLUICE_CHECK(std::equal(kept.begin(), kept.end(), needed.begin(), needed.end()));
}

absl::Status StateUpdate::CheckGpu() const {
  if (kernel_.run != nullptr && kernel_.on_gpus) return absl::OkStatus();
  return absl::UnimplementedError(fmt::format(
      "there is no CUDA kernel for {} over states in the format '{}', so they can't live in the "
      "memory of a GPU: let states go to pinned memory or NVMe (offload_optimizer)",
      rule_->name(), format_->name()));
}

absl::Status StateUpdate::CheckKeeps(Field field) const {
  if (format_->Find(field)) return absl::OkStatus();
  std::vector<std::string> names;
  for (const StateField& kept : format_->fields())
    names.push_back(fmt::format("{} ({})", kept.name, static_cast<int>(kept.id)));
  return absl::InvalidArgumentError(fmt::format("there is no field {}: {} keeps {}",
                                                static_cast<int>(field), rule_->name(),
                                                fmt::join(names, ", ")));
}

void StateUpdate::RunInTiles(const StepScalars& scalars, const ChunkStates& chunk,
                             const UpdateRun& run) const {
  const size_t count = format_->fields().size();
  const auto grad_size = static_cast<size_t>(SizeOf(run.grad_type));
  const auto param_size = static_cast<size_t>(SizeOf(run.param_type));
  const auto* const grads = static_cast<const std::byte*>(run.grad);
  auto* const params = static_cast<std::byte*>(run.param_out);
  alignas(64) std::array<std::array<float, kTile>, kStateFieldsMax> tiles;
  alignas(64) std::array<float, kTile> converted;
  std::array<float*, kStateFieldsMax> in_place{};
  for (size_t f = 0; f < count; ++f) in_place[f] = format_->InPlace(chunk, f);
  ForTiles(run.elements, [&](size_t i, size_t n) {
    const int64_t at = run.at + static_cast<int64_t>(i);
    std::array<float*, kStateFieldsMax> fields{};
    for (size_t f = 0; f < count; ++f) {
      fields[f] = in_place[f] != nullptr ? in_place[f] + at : tiles[f].data();
      if (in_place[f] == nullptr) format_->Load(chunk, f, at, {fields[f], n});
    }
    Convert(grads + i * grad_size, run.grad_type, converted.data(), FloatType::kF32, n);
    rule_->UpdateTile(scalars, fields.data(), converted.data(), n);
    for (size_t f = 0; f < count; ++f) {
      if (in_place[f] == nullptr) format_->Store(chunk, f, at, {fields[f], n});
    }
    if (params != nullptr)
      Convert(fields[kMasterIndex], FloatType::kF32, params + i * param_size, run.param_type, n);
  });
}

}  // namespace sluice
