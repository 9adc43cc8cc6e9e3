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
#include <vector>

#include "absl/status/status.h"
#include "core/status.h"
#include "offload/run/factory.h"
#include "tests/offload/caller.h"
#include "tests/offload/train_reference.h"
#include "tests/offload/training.h"

namespace sluice::testing {

// Drives a runtime through the same training.
class Trainer {
 public:
  // `caller` (not owned): null computes in the calling thread.
  Trainer(OffloadRuntime* runtime, const ModelSpec& spec, TrainerOptions options,
          Caller* caller = nullptr)
      : runtime_(runtime),
        spec_(spec),
        options_(std::move(options)),
        caller_(caller != nullptr ? caller : &own_caller_) {}
  ~Trainer() { (void)DropViews(0); }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Load());
    for (int step = 0; step < options_.steps; ++step) {
      for (int micro = 0; micro < options_.micro_steps; ++micro)
        SLUICE_RETURN_IF_ERROR(MicroStep(step, micro));
      SLUICE_RETURN_IF_ERROR(DropViews(0));
      SLUICE_RETURN_IF_ERROR(
          Wait(runtime_->Step({.groups = options_.groups, .clip_norm = options_.clip_norm})));
    }
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Drain()));
    if (*torn_)
      return absl::DataLossError(
          "parameters were wrong, or changed while the caller's stream read them");
    return absl::OkStatus();
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
    for (uint32_t u : order) {
      SLUICE_RETURN_IF_ERROR(Wait(runtime_->Acquire(UnitIndex(u), caller_->stream())));
      SLUICE_RETURN_IF_ERROR(runtime_->Release(UnitIndex(u), caller_->stream()));
    }
    for (size_t i = order.size(); i > 0; --i)
      SLUICE_RETURN_IF_ERROR(Backward(order[i - 1], step * 16 + micro));
    runtime_->EndIteration();
    return absl::OkStatus();
  }

  // Starts one operation of each kind on a runtime that has failed; all of them must end with its
  // failure. Errors: that of the first which doesn't.
  absl::Status ExpectAllRefused() {
    std::vector<float> values(static_cast<size_t>(spec_.tensors[0].elements));
    std::vector<std::byte> grad(values.size() * 4);
    const auto access = [&](bool write, Field field) {
      return runtime_->Access({.write = write,
                               .tensor = TensorIndex(0),
                               .field = field,
                               .data = reinterpret_cast<std::byte*>(values.data()),
                               .type = AccessType(0),
                               .done = nullptr});
    };
    const Ticket tickets[] = {
        runtime_->Acquire(UnitIndex(0)),
        runtime_->PushGrad(TensorIndex(0), grad),
        runtime_->Step({.groups = options_.groups, .clip_norm = options_.clip_norm}),
        access(false, Field::kMaster),
        access(true, Field::kGrad),
        runtime_->Drain()};
    absl::Status first;
    if (runtime_->ClearGrad(TensorIndex(0)) != runtime_->failure())
      first = absl::InternalError("a gradient of a runtime that has failed was cleared");
    for (Ticket ticket : tickets) {
      absl::Status status = Wait(ticket);
      if (status == runtime_->failure()) continue;
      if (status.ok()) status = absl::InternalError("a runtime that has failed went on");
      if (first.ok()) first = status;
    }
    return first;
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
  absl::Status Backward(uint32_t u, int seed) {
    const UnitIndex unit(u);
    const CallerStream stream = caller_->stream();
    SLUICE_RETURN_IF_ERROR(Wait(runtime_->Acquire(unit, stream)));
    SLUICE_ASSIGN_OR_RETURN(DlManagedTensor * view, runtime_->MakeView(unit));
    const auto* params = static_cast<const std::byte*>(view->dl_tensor.data);
    std::vector<Ticket> tickets;
    const auto seen = std::make_shared<std::vector<std::byte>>();  // of the unit's first tensor
    const TensorIndex first = runtime_->layout().unit(unit).tensors[0];
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
           torn = torn_, keep = t == first ? seen : nullptr,
           param_bytes](const std::byte* in, std::byte* out) {
            if (keep != nullptr) keep->assign(in, in + param_bytes);
            if (frozen) {
              if (std::memcmp(in, loaded.data(), loaded.size()) != 0) *torn = true;
              return;
            }
            const std::vector<std::byte> made =
                MakeGradient(seed, t.value(), in, types.param.floats(), types.grad, elements);
            std::memcpy(out, made.data(), made.size());
          });
      if (!frozen) tickets.push_back(runtime_->PushGrad(t, {grad, grad_bytes}, stream));
    }
    // Backward still reads parameters when their gradient has gone.
    const int64_t size = options_.TypesOf(spec_, first.value()).param.size();
    const TensorLayout& tensor = runtime_->layout().tensor(first);
    caller_->Compute(params + tensor.offset * size, static_cast<size_t>(tensor.elements * size), 0,
                     [seen, torn = torn_](const std::byte* in, std::byte*) {
                       if (std::memcmp(in, seen->data(), seen->size()) != 0) *torn = true;
                     });
    if (options_.lingering_views > 0) lingering_.push_back({view, Bits(*view)});
    absl::Status status = runtime_->Release(unit, stream);
    if (options_.lingering_views == 0) view->deleter(view);
    const absl::Status dropped = DropViews(options_.lingering_views);
    if (status.ok()) status = dropped;
    for (Ticket ticket : tickets) {  // all of them: they read what the caller keeps
      const absl::Status pushed = Wait(ticket);
      if (status.ok()) status = pushed;
    }
    if (status.ok()) caller_->Forget();  // else what is on the stream may not have run
    return status;
  }

  // As what the tensor's values are passed.
  ElementType AccessType(uint32_t tensor) const {
    const ElementType type = options_.TypesOf(spec_, tensor).param;
    return type.is_bytes() ? type : FloatType::kF32;
  }

  struct Lingering {
    DlManagedTensor* view;
    std::vector<std::byte> bits;  // that it had
  };

  static std::vector<std::byte> Bits(const DlManagedTensor& view) {
    const auto* at = static_cast<const std::byte*>(view.dl_tensor.data);
    return {at, at + view.dl_tensor.shape[0] * view.dl_tensor.dtype.bits / 8};
  }

  // Lets the oldest views die until `left` are left. Errors: Internal if one has changed.
  absl::Status DropViews(size_t left) {
    absl::Status status;
    while (lingering_.size() > left) {
      const Lingering& oldest = lingering_.front();
      if (std::memcmp(oldest.view->dl_tensor.data, oldest.bits.data(), oldest.bits.size()) != 0)
        status = absl::InternalError("a view changed while it was alive");
      oldest.view->deleter(oldest.view);
      lingering_.pop_front();
    }
    return status;
  }

  OffloadRuntime* const runtime_;
  const ModelSpec spec_;
  const TrainerOptions options_;
  std::deque<std::vector<std::byte>> values_;  // of tickets that are not done, or failed
  std::deque<Lingering> lingering_;
  const std::shared_ptr<std::atomic<bool>> torn_ = std::make_shared<std::atomic<bool>>(false);
  Caller own_caller_;
  Caller* const caller_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_TRAINER_H_
