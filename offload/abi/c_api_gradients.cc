// The C ABI's functions that hand over and forget gradients.

#include <algorithm>
#include <span>
#include <vector>

#include "offload/abi/c_api_internal.h"

using namespace sluice;         // NOLINT: the C ABI is outside the namespace
using namespace sluice::c_api;  // NOLINT

namespace {

absl::Status CheckLendable(const sluice_gradient& gradient, const TensorLayout& tensor) {
  SLUICE_RETURN_IF_ERROR(CheckRange(gradient.lent, 0, 1, "lent"));
  const auto address = reinterpret_cast<uintptr_t>(gradient.data);
  if (gradient.lent == 0 || address % static_cast<size_t>(SizeOf(tensor.types.grad)) == 0)
    return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format(
      "the gradient of tensor '{}' is not aligned to its type, so it can't be lent", tensor.name));
}

absl::Status CheckOnce(std::span<const GivenGradient> given, const ModelLayout& layout) {
  thread_local std::vector<TensorIndex> tensors;  // keeps its memory, as below
  tensors.clear();
  for (const GivenGradient& gradient : given) tensors.push_back(gradient.tensor);
  std::sort(tensors.begin(), tensors.end());
  const auto twice = std::adjacent_find(tensors.begin(), tensors.end());
  if (twice == tensors.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("tensor '{}' is named twice", layout.tensor(*twice).name));
}

// Valid until this thread's next call.
absl::StatusOr<std::span<const GivenGradient>> ToGiven(std::span<const sluice_gradient> gradients,
                                                       const OffloadRuntime& runtime) {
  const ModelLayout& layout = runtime.layout();
  thread_local std::vector<GivenGradient> given;
  given.clear();
  for (const sluice_gradient& gradient : gradients) {
    SLUICE_RETURN_IF_ERROR(CheckTensor(runtime, gradient.tensor));
    SLUICE_RETURN_IF_ERROR(NotNull(gradient.data, "data"));
    SLUICE_RETURN_IF_ERROR(CheckElements(runtime, gradient.tensor, gradient.elements));
    const TensorLayout& tensor = layout.tensors()[gradient.tensor];
    SLUICE_RETURN_IF_ERROR(CheckLendable(gradient, tensor));
    given.push_back({.tensor = TensorIndex(gradient.tensor),
                     .data = {static_cast<const std::byte*>(gradient.data),
                              static_cast<size_t>(gradient.elements * SizeOf(tensor.types.grad))},
                     .lent = gradient.lent != 0});
    if (given.size() > layout.tensors().size()) break;  // so one is there twice
  }
  SLUICE_RETURN_IF_ERROR(CheckOnce(given, layout));
  return std::span<const GivenGradient>(given);
}

}  // namespace

sluice_status sluice_grads(sluice_runtime runtime, const sluice_gradient* gradients, uint64_t count,
                           void* stream, sluice_ticket* ticket) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(NotNull(gradients, "gradients"));
    SLUICE_RETURN_IF_ERROR(NotNull(ticket, "ticket"));
    if (count == 0) return absl::InvalidArgumentError("count is 0: there are no gradients");
    SLUICE_ASSIGN_OR_RETURN(const std::span<const GivenGradient> given,
                            ToGiven(std::span(gradients, count), *r));
    *ticket = r->PushGrads(given, {stream});
    return absl::OkStatus();
  });
}

sluice_status sluice_grad(sluice_runtime runtime, uint32_t tensor, const void* data,
                          int64_t elements, void* stream, sluice_ticket* ticket) {
  const sluice_gradient gradient = {data, elements, tensor, 0};
  return sluice_grads(runtime, &gradient, 1, stream, ticket);
}

sluice_status sluice_zero_grad(sluice_runtime runtime) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    r->ZeroGrad();
    return absl::OkStatus();
  });
}

sluice_status sluice_grad_clear(sluice_runtime runtime, uint32_t tensor) {
  return Guarded([&]() -> absl::Status {
    SLUICE_ASSIGN_OR_RETURN(const auto r, Runtimes().Get(runtime, "runtime"));
    SLUICE_RETURN_IF_ERROR(CheckTensor(*r, tensor));
    return r->ClearGrad(TensorIndex(tensor));
  });
}
