// tests/offload/trainer.h
//
// Drives a runtime through the training of tests/offload/training.h, computing in the calling
// thread or on a stream of the caller's.

#ifndef SLUICE_TESTS_OFFLOAD_TRAINER_H_
#define SLUICE_TESTS_OFFLOAD_TRAINER_H_

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/status.h"
#include "offload/run/factory.h"
#include "tests/offload/caller.h"
#include "tests/offload/train_reference.h"
#include "tests/offload/training.h"

namespace sluice::testing {

class Trainer {
 public:
  // `caller` (not owned): null computes in the calling thread.
  Trainer(OffloadRuntime* runtime, const ModelSpec& spec, TrainerOptions options,
          Caller* caller = nullptr)
      : runtime_(runtime),
        spec_(spec),
        options_(std::move(options)),
        caller_(caller != nullptr ? caller : &own_caller_) {}
  ~Trainer() { DropViews(0); }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Load());
    for (int step = 0; step < options_.steps; ++step) {
      for (int micro = 0; micro < options_.micro_steps; ++micro)
        SLUICE_RETURN_IF_ERROR(MicroStep(step, micro));
      SLUICE_RETURN_IF_ERROR(WaitForGradients());
      DropViews(0);
      SLUICE_RETURN_IF_ERROR(
          Wait(runtime_->Step({.groups = options_.groups, .clip_norm = options_.clip_norm})));
    }
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Drain()));
    if (!*torn_) return absl::OkStatus();
    return absl::InternalError(
        "parameters were wrong, or changed while a stream read them or a view of them was alive");
  }

  absl::Status Load() {
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      const ElementType type = AccessType(t);
      std::vector<std::byte>& values =
          values_.emplace_back(ParamsOf(InitialOf(spec_, options_, t), type));
      const bool moments = spec_.tensors[t].keep == Keep::kMoments;  // which begin at zero
      if (moments) std::ranges::fill(values, std::byte{0});
      SLUICE_RETURN_IF_ERROR(
          Wait(runtime_->Access({.write = true,
                                 .tensor = TensorIndex(t),
                                 .field = moments ? Field::kExpAvg : Field::kMaster,
                                 .data = values.data(),
                                 .type = type,
                                 .done = nullptr})));
      values_.pop_back();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<float>> Read(uint32_t tensor, Field field) {
    const ElementType type = AccessType(tensor);
    std::vector<std::byte>& values =
        values_.emplace_back(static_cast<size_t>(spec_.tensors[tensor].elements * type.size()));
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Access({.write = false,
                                                  .tensor = TensorIndex(tensor),
                                                  .field = field,
                                                  .data = values.data(),
                                                  .type = type,
                                                  .done = nullptr})));
    std::vector<float> read = ValuesOf(values, type);
    values_.pop_back();
    return read;
  }

  absl::Status MicroStep(int step, int micro) {
    const bool boundary = micro + 1 == options_.micro_steps;
    const std::vector<uint32_t> order = options_.Order(step, spec_.units.size());
    runtime_->BeginIteration(boundary ? 1 : 0, boundary);
    for (uint32_t u : order) SLUICE_RETURN_IF_ERROR(Forward(u));
    for (size_t i = order.size(); i > 0; --i)
      SLUICE_RETURN_IF_ERROR(Backward(order[i - 1], options_.SeedOf(options_.rank, step, micro)));
    runtime_->EndIteration();
    return absl::OkStatus();
  }

  // As what the tensor's values are passed.
  ElementType AccessType(uint32_t tensor) const {
    const ElementType type = options_.TypesOf(spec_, tensor).param;
    return type.is_bytes() ? type : FloatType::kF32;
  }

  absl::Status Wait(Ticket ticket) {
    for (int i = 0; i < 6000; ++i) {  // real or virtual: at most ten minutes
      const std::optional<absl::Status> result =
          runtime_->Wait(ticket, std::chrono::milliseconds(100));
      if (result) return *result;
      if (options_.give_up()) break;
    }
    return absl::DeadlineExceededError("a ticket was never done");
  }

 private:
  // Parameters, or as many of them as were seen on the caller's stream.
  using Seen = std::shared_ptr<std::vector<std::byte>>;

  // Puts a look at the bytes on the caller's stream, that they be remembered or compared with.
  void Remember(const std::byte* at, size_t size, const Seen& seen) {
    caller_->Compute(at, size, 0, [seen, size](const std::byte* in, std::byte*) {
      seen->assign(in, in + size);
    });
  }
  void Compare(const std::byte* at, size_t size, const Seen& seen) {
    caller_->Compute(at, size, 0, [seen, size, torn = torn_](const std::byte* in, std::byte*) {
      if (seen->size() != size || std::memcmp(in, seen->data(), size) != 0) *torn = true;
    });
  }

  // Reads the first tensor of the unit, which backward compares with what it gets.
  absl::Status Forward(uint32_t u) {
    const UnitIndex unit(u);
    const CallerStream stream = caller_->stream();
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Acquire(unit, stream)));
    SLUICE_ASSIGN_OR_RETURN(DlManagedTensor * view, runtime_->MakeView(unit));
    const ConstMemoryView first = FirstTensor(unit, *view);
    forward_.resize(spec_.units.size());
    forward_[u] = std::make_shared<std::vector<std::byte>>();
    Remember(first.data(), first.size(), forward_[u]);
    const absl::Status released = runtime_->Release(unit, stream);
    view->deleter(view);
    return released;
  }

  ConstMemoryView FirstTensor(UnitIndex unit, const DlManagedTensor& view) const {
    const TensorLayout& first = runtime_->layout().tensor(runtime_->layout().unit(unit).tensors[0]);
    const auto size = static_cast<size_t>(runtime_->layout().unit(unit).types.param.size());
    const auto* at = static_cast<const std::byte*>(view.dl_tensor.data);
    return {at + static_cast<size_t>(first.offset) * size,
            static_cast<size_t>(first.elements) * size};
  }

  absl::Status Backward(uint32_t u, int seed) {
    const UnitIndex unit(u);
    const CallerStream stream = caller_->stream();
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Acquire(unit, stream)));
    SLUICE_ASSIGN_OR_RETURN(DlManagedTensor * view, runtime_->MakeView(unit));
    const auto* params = static_cast<const std::byte*>(view->dl_tensor.data);
    const ConstMemoryView first = FirstTensor(unit, *view);
    Compare(first.data(), first.size(), forward_[u]);
    for (TensorIndex t : runtime_->layout().unit(unit).tensors) {
      const TensorLayout& tensor = runtime_->layout().tensor(t);
      const UnitTypes types = options_.TypesOf(spec_, t.value());
      const bool frozen = tensor.keep == Keep::kParam;
      const auto param_bytes = static_cast<size_t>(tensor.elements * types.param.size());
      const auto grad_bytes =
          frozen ? 0 : static_cast<size_t>(tensor.elements * SizeOf(types.grad));
      const std::byte* grad = caller_->Compute(
          params + tensor.offset * types.param.size(), param_bytes, grad_bytes,
          [seed, t, elements = tensor.elements, types, frozen,
           loaded = frozen ? ParamsOf(InitialOf(spec_, options_, t.value()), types.param)
                           : std::vector<std::byte>(),
           torn = torn_](const std::byte* in, std::byte* out) {
            if (frozen) {
              if (std::memcmp(in, loaded.data(), loaded.size()) != 0) *torn = true;
              return;
            }
            const std::vector<std::byte> made =
                MakeGradient(seed, t.value(), in, types.param.floats(), types.grad, elements);
            std::memcpy(out, made.data(), made.size());
          });
      if (!frozen) pushed_.push_back(runtime_->PushGrad(t, {grad, grad_bytes}, stream));
    }
    // Backward still reads parameters when their gradient has gone.
    Compare(first.data(), first.size(), forward_[u]);
    if (options_.lingering_views > 0) {
      lingering_.push_back({view, std::make_shared<std::vector<std::byte>>()});
      Remember(params, SizeOfView(*view), lingering_.back().bits);
    }
    const absl::Status released = runtime_->Release(unit, stream);
    if (options_.lingering_views == 0) view->deleter(view);
    DropViews(options_.lingering_views);
    if (released.ok() && ++units_pushed_ <= options_.units_ahead) return absl::OkStatus();
    const absl::Status pushed = WaitForGradients();
    return released.ok() ? pushed : released;
  }

  // For all of them: they read what the caller keeps.
  absl::Status WaitForGradients() {
    absl::Status first;
    for (const Ticket ticket : std::exchange(pushed_, {})) {
      const absl::Status status = Wait(ticket);
      if (first.ok()) first = status;
    }
    units_pushed_ = 0;
    if (first.ok()) caller_->Forget();  // else what is on the stream may not have run
    return first;
  }

  struct Lingering {
    DlManagedTensor* view;
    Seen bits;  // that it had
  };

  static size_t SizeOfView(const DlManagedTensor& view) {
    return static_cast<size_t>(view.dl_tensor.shape[0] * view.dl_tensor.dtype.bits / 8);
  }

  // Lets the oldest views die until `left` are left.
  void DropViews(size_t left) {
    while (lingering_.size() > left) {
      const Lingering& oldest = lingering_.front();
      Compare(static_cast<const std::byte*>(oldest.view->dl_tensor.data), SizeOfView(*oldest.view),
              oldest.bits);
      oldest.view->deleter(oldest.view);
      lingering_.pop_front();
    }
  }

  OffloadRuntime* const runtime_;
  const ModelSpec spec_;
  const TrainerOptions options_;
  std::deque<std::vector<std::byte>> values_;  // of tickets that are not done, or failed
  std::deque<Lingering> lingering_;
  std::vector<Seen> forward_;   // by unit: its first tensor
  std::vector<Ticket> pushed_;  // gradients, not waited for yet
  size_t units_pushed_ = 0;     // of that many units
  const std::shared_ptr<std::atomic<bool>> torn_ = std::make_shared<std::atomic<bool>>(false);
  Caller own_caller_;
  Caller* const caller_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_TRAINER_H_
