#include "offload/sim/training_script.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "core/status.h"
#include "optim/adamw.h"
#include "optim/adamw_rule.h"

namespace sluice {

namespace {

// What all ranks load and give, whatever unit it is of: small numbers. Bytes 0x3a are 7e-4 in fp32
// and bf16.
const std::byte* Numbers(size_t bytes) {
  static std::mutex mutex;
  static auto* const sizes = new std::map<size_t, std::unique_ptr<std::byte[]>>;
  const std::lock_guard lock(mutex);
  const auto found = sizes->lower_bound(bytes);
  if (found != sizes->end()) return found->second.get();
  auto made = std::make_unique_for_overwrite<std::byte[]>(bytes);
  std::fill_n(made.get(), bytes, std::byte{0x3a});
  return ((*sizes)[bytes] = std::move(made)).get();
}

std::vector<GivenGradient> GradientsOf(const ModelLayout& layout, UnitIndex unit) {
  std::vector<GivenGradient> given;
  for (const TensorIndex t : layout.unit(unit).tensors)
    given.push_back(GradientOfNumbers(layout, t));
  return given;
}

}  // namespace

GivenGradient GradientOfNumbers(const ModelLayout& layout, TensorIndex t) {
  const TensorLayout& tensor = layout.tensor(t);
  const auto bytes = static_cast<size_t>(tensor.elements * SizeOf(tensor.types.grad));
  return {.tensor = t, .data = {Numbers(bytes), bytes}};
}

ValueRequest LoadOfNumbers(const ModelLayout& layout, TensorIndex t) {
  const TensorLayout& tensor = layout.tensor(t);
  const bool frozen = tensor.keep == Keep::kParam;
  const ElementType type = frozen ? tensor.types.param : ElementType(FloatType::kF32);
  const auto bytes = static_cast<size_t>(tensor.elements * type.size());
  return {.write = true,
          .tensor = t,
          .field = frozen ? Field::kParam : Field::kMaster,
          .data = const_cast<std::byte*>(Numbers(bytes)),  // it is read only
          .type = type,
          .done = nullptr};
}

// Statuses are looked at one by one: a macro that returns can't end a coroutine.
Script Train(OffloadRuntime* runtime, TrainingScript script, ScriptHost* host,
             TrainingTimes* times) {
  const ModelLayout& layout = runtime->layout();
  const auto units = static_cast<uint32_t>(layout.units().size());
  absl::Status status;
  for (uint32_t t = 0; t < layout.tensors().size(); ++t) {
    status = co_await TicketDone{host, runtime->Access(LoadOfNumbers(layout, TensorIndex(t)))};
    if (!status.ok()) co_return status;
  }
  times->begin = host->Now();
  for (int step = 0; step < script.steps; ++step) {
    Nanos waited{0};
    for (int micro = 0; micro < script.micro_steps; ++micro) {
      const bool last = micro == script.micro_steps - 1;
      runtime->BeginIteration(last ? 1 : 0, last);
      std::deque<Ticket> given;
      for (uint32_t i = 0; i < 2 * units; ++i) {
        const bool forward = i < units;
        const UnitIndex unit(forward ? i : 2 * units - 1 - i);
        const TimePoint asked = host->Now();
        status = co_await TicketDone{host, runtime->Acquire(unit)};
        if (!status.ok()) co_return status;
        while (given.size() > script.gradients_ahead) {
          status = co_await TicketDone{host, given.front()};
          if (!status.ok()) co_return status;
          given.pop_front();
        }
        waited += host->Now() - asked;
        co_await TimePassed{host, forward ? script.forward : script.backward};
        if (!forward) given.push_back(runtime->PushGrads(GradientsOf(layout, unit)));
        status = runtime->Release(unit);
        if (!status.ok()) co_return status;
      }
      runtime->EndIteration();
      const TimePoint asked = host->Now();
      for (; !given.empty(); given.pop_front()) {
        status = co_await TicketDone{host, given.front()};
        if (!status.ok()) co_return status;
      }
      waited += host->Now() - asked;
    }
    StepRequest request = runtime->BlankStep();
    request.groups.assign(1, Hyperparameters::Of(AdamWHyper{.lr = 1e-4}));
    request.clip_norm = script.clip_norm;
    const TimePoint asked = host->Now();
    status = co_await TicketDone{host, runtime->Step(std::move(request))};
    if (!status.ok()) co_return status;
    times->steps.push_back(host->Now());
    times->waited.push_back(waited + (host->Now() - asked));
  }
  status = co_await TicketDone{host, runtime->Drain()};
  times->drained = host->Now();
  co_return status;
}

}  // namespace sluice
