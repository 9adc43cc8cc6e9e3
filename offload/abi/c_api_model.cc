// The C ABI's model: a description that runtimes are created from. What can be told to be wrong at
// once is refused at once; what only the whole shows, when a plan or a runtime is made of it.

#include <memory>
#include <mutex>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "offload/abi/c_api_internal.h"
#include "offload/sluice.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

sluice_status sluice_model_create(sluice_model* model) {
  return Guarded([&]() -> absl::Status {
    SLUICE_RETURN_IF_ERROR(NotNull(model, "model"));
    *model = Models().Add(std::make_shared<Model>());
    return absl::OkStatus();
  });
}

sluice_status sluice_model_add_unit(sluice_model model, const char* name, uint32_t* unit) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
    SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
    SLUICE_RETURN_IF_ERROR(NotNull(unit, "unit"));
    const std::lock_guard lock(found->mutex);
    found->spec.units.push_back({.name = name});
    *unit = static_cast<uint32_t>(found->spec.units.size() - 1);
    return absl::OkStatus();
  });
}

sluice_status sluice_model_keep_in_hbm(sluice_model model, uint32_t unit) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
    const std::lock_guard lock(found->mutex);
    std::vector<ModelSpec::Unit>& units = found->spec.units;
    SLUICE_RETURN_IF_ERROR(CheckExists("unit", unit, units.size()));
    units[unit].stays_in_hbm = true;
    return absl::OkStatus();
  });
}

sluice_status sluice_model_add_tensor(sluice_model model, uint32_t unit, const char* name,
                                      int64_t elements, uint32_t group, uint32_t* tensor) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
    SLUICE_RETURN_IF_ERROR(NotNull(name, "name"));
    SLUICE_RETURN_IF_ERROR(NotNull(tensor, "tensor"));
    const std::lock_guard lock(found->mutex);
    ModelSpec& spec = found->spec;
    SLUICE_RETURN_IF_ERROR(CheckExists("unit", unit, spec.units.size()));
    if (elements <= 0) {
      return absl::InvalidArgumentError(
          fmt::format("tensor '{}' has {} elements; it must have at least one", name, elements));
    }
    SLUICE_RETURN_IF_ERROR(CheckRange(group, 0, kGroupsMax - 1, "group"));
    spec.tensors.push_back(
        {.name = name, .unit = UnitIndex(unit), .elements = elements, .group = group});
    *tensor = static_cast<uint32_t>(spec.tensors.size() - 1);
    return absl::OkStatus();
  });
}

sluice_status sluice_model_set_keep(sluice_model model, uint32_t tensor, int32_t keep) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
    const std::lock_guard lock(found->mutex);
    std::vector<ModelSpec::Tensor>& tensors = found->spec.tensors;
    SLUICE_RETURN_IF_ERROR(CheckExists("tensor", tensor, tensors.size()));
    SLUICE_RETURN_IF_ERROR(CheckRange(keep, SLUICE_KEEP_ALL, SLUICE_KEEP_MOMENTS, "keep"));
    tensors[tensor].keep = static_cast<Keep>(keep);
    return absl::OkStatus();
  });
}

sluice_status sluice_model_set_unit_types(sluice_model model, uint32_t unit, int32_t param_dtype,
                                          int32_t grad_dtype) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto found, Models().Get(model, "model"));
    const std::lock_guard lock(found->mutex);
    std::vector<ModelSpec::Unit>& units = found->spec.units;
    SLUICE_RETURN_IF_ERROR(CheckExists("unit", unit, units.size()));
    SLUICE_ASSIGN_OR_RETURN(units[unit].types,
                            ToUnitTypes(param_dtype, grad_dtype, units[unit].name));
    return absl::OkStatus();
  });
}

sluice_status sluice_model_destroy(sluice_model model) {
  return Guarded([&]() -> absl::Status { return Models().Remove(model, "model").status(); });
}
