// tests/offload/ranks_script_run.h
//
// A rank that carries out the operations of ranks_script.h on its runtime, and compares what it
// sees with plain arrays.

#ifndef SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_RUN_H_
#define SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_RUN_H_

#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/offload/ranks_script.h"

namespace sluice::testing {

class ScriptRank {
 public:
  // `before_call` (if set) is asked before each call of the runtime; an error ends the script.
  ScriptRank(OffloadRuntime* runtime, const RanksCase& c, uint32_t rank,
             std::function<absl::Status()> before_call = nullptr)
      : runtime_(runtime), case_(c), rank_(rank), before_call_(std::move(before_call)) {}

  absl::Status Load() {
    for (uint32_t t = 0; t < case_.spec.tensors.size(); ++t)
      SLUICE_RETURN_IF_ERROR(Write(t, Field::kMaster, InitialOf(case_.spec, case_.training, t)));
    return absl::OkStatus();
  }

  // `plain` has done the same already.
  absl::Status Do(const ScriptOp& op, const PlainRanks& plain) {
    using Kind = ScriptOp::Kind;
    switch (op.kind) {
      case Kind::kMicro:
        return Micro(op);
      case Kind::kEvaluate:
        return Evaluate(op);
      case Kind::kStep:
        SLUICE_RETURN_IF_ERROR(Step());
        return CompareStep(plain.last_step());
      case Kind::kHeldStep:
        return HeldStep(op);
      case Kind::kClear:
        SLUICE_RETURN_IF_ERROR(Call());
        runtime_->ZeroGrad();
        return absl::OkStatus();
      case Kind::kClearOne:
        SLUICE_RETURN_IF_ERROR(Call());
        return runtime_->ClearGrad(TensorIndex(op.tensor));
      case Kind::kRead:
        return CompareMasters(plain);
      case Kind::kReadGrad:
        return CompareGrad(op.tensor, plain.grad(op.tensor));
      case Kind::kWrite:
        return Write(op.tensor, Field::kMaster, Written(case_.spec, op));
      case Kind::kWriteGrad:
        return Write(op.tensor, Field::kGrad, Written(case_.spec, op));
    }
    return absl::InternalError("no such kind");
  }

  absl::Status Step() {
    return Wait([&] {
      return runtime_->Step(
          {.groups = case_.training.groups, .lent = {}, .clip_norm = case_.training.clip_norm});
    });
  }
  absl::Status Drain() {
    return Wait([&] { return runtime_->Drain(); });
  }

  absl::Status CompareMasters(const PlainRanks& plain) {
    const size_t first = kept_.size();
    std::vector<Ticket> tickets;
    for (const ModelSpec::Tensor& tensor : case_.spec.tensors) {
      SLUICE_RETURN_IF_ERROR(Call());
      const auto t = static_cast<uint32_t>(tickets.size());
      kept_.emplace_back(static_cast<size_t>(tensor.elements * TypeOf(t).size()));
      tickets.push_back(Access(t, Field::kMaster, false, &kept_.back()));
    }
    for (uint32_t t = 0; t < tickets.size(); ++t) {
      SLUICE_RETURN_IF_ERROR(Await(tickets[t]));
      if (ValuesOf(kept_[first + t], TypeOf(t)) != plain.master(t))
        return Differs(fmt::format("tensor {}", t));
    }
    kept_.resize(first);
    return absl::OkStatus();
  }

 private:
  absl::Status Call() { return before_call_ ? before_call_() : absl::OkStatus(); }
  static absl::Status Differs(const std::string& what) {
    return absl::InternalError(what + " is not what plain arrays come to");
  }

  absl::Status Await(Ticket ticket) {
    for (int i = 0; i < 400; ++i) {
      const std::optional<absl::Status> result =
          runtime_->Wait(ticket, std::chrono::milliseconds(100));
      if (result) return *result;
    }
    return absl::DeadlineExceededError("a ticket was never done");
  }
  template <typename F>
  absl::Status Wait(F&& call) {
    SLUICE_RETURN_IF_ERROR(Call());
    return Await(call());
  }

  // As what the tensor's values are passed.
  ElementType TypeOf(uint32_t tensor) const {
    const ElementType type = case_.training.TypesOf(case_.spec, tensor).param;
    return type.is_bytes() ? type : FloatType::kF32;
  }
  Ticket Access(uint32_t tensor, Field field, bool write, std::vector<std::byte>* values) {
    return runtime_->Access({.write = write,
                             .tensor = TensorIndex(tensor),
                             .field = field,
                             .data = values->data(),
                             .type = TypeOf(tensor),
                             .done = nullptr});
  }
  absl::Status Write(uint32_t tensor, Field field, const std::vector<float>& values) {
    std::vector<std::byte>& kept = kept_.emplace_back(ParamsOf(values, TypeOf(tensor)));
    SLUICE_RETURN_IF_ERROR(Wait([&] { return Access(tensor, field, true, &kept); }));
    kept_.pop_back();
    return absl::OkStatus();
  }

  absl::Status Acquire(uint32_t unit) {
    return Wait([&] { return runtime_->Acquire(UnitIndex(unit)); });
  }
  absl::Status Release(uint32_t unit) {
    SLUICE_RETURN_IF_ERROR(Call());
    return runtime_->Release(UnitIndex(unit));
  }

  absl::Status Evaluate(const ScriptOp& op) {
    if (op.order[rank_].empty()) return absl::OkStatus();
    runtime_->BeginIteration(2, false);
    SLUICE_RETURN_IF_ERROR(Forward(op.order[rank_]));
    runtime_->EndIteration();
    return absl::OkStatus();
  }
  absl::Status Forward(const std::vector<uint32_t>& order) {
    for (const uint32_t u : order) {
      SLUICE_RETURN_IF_ERROR(Acquire(u));
      SLUICE_RETURN_IF_ERROR(Release(u));
    }
    return absl::OkStatus();
  }

  absl::Status Micro(const ScriptOp& op) {
    const std::vector<uint32_t>& order = op.order[rank_];
    if (op.bracketed) runtime_->BeginIteration(op.boundary ? 1 : 0, op.boundary);
    SLUICE_RETURN_IF_ERROR(Forward(order));
    for (size_t i = order.size(); i > 0; --i) {
      SLUICE_RETURN_IF_ERROR(Backward(op, order[i - 1]));
      if (op.waits) SLUICE_RETURN_IF_ERROR(WaitForGradients());
    }
    if (op.bracketed) runtime_->EndIteration();
    return WaitForGradients();
  }

  absl::Status Backward(const ScriptOp& op, uint32_t u) {
    const UnitIndex unit(u);
    SLUICE_RETURN_IF_ERROR(Acquire(u));
    absl::StatusOr<DlManagedTensor*> view = runtime_->MakeView(unit);
    if (!view.ok()) return view.status();
    const auto* params = static_cast<const std::byte*>((*view)->dl_tensor.data);
    absl::Status status;
    for (const TensorIndex t : runtime_->layout().unit(unit).tensors) {
      const TensorLayout& tensor = runtime_->layout().tensor(t);
      const UnitTypes types = case_.training.TypesOf(case_.spec, t.value());
      if (tensor.keep == Keep::kParam) continue;
      if (status.ok()) status = Call();
      if (!status.ok()) break;
      grads_.push_back(MadeGradient(op, rank_, t.value(),
                                    params + tensor.offset * types.param.size(), types,
                                    tensor.elements));
      pushed_.push_back(runtime_->PushGrad(t, grads_.back()));
    }
    (*view)->deleter(*view);
    SLUICE_RETURN_IF_ERROR(status);
    return Release(u);
  }

  absl::Status WaitForGradients() {
    for (const Ticket ticket : std::exchange(pushed_, {})) SLUICE_RETURN_IF_ERROR(Await(ticket));
    grads_.clear();
    return absl::OkStatus();
  }

  absl::Status HeldStep(const ScriptOp& op) {
    for (const uint32_t u : op.order[rank_]) SLUICE_RETURN_IF_ERROR(Acquire(u));
    const absl::Status status = Step();
    if (!absl::IsFailedPrecondition(status) || !runtime_->failure().ok())
      return status.ok() ? absl::InternalError("a step was taken over acquired units") : status;
    for (const uint32_t u : op.order[rank_]) SLUICE_RETURN_IF_ERROR(Release(u));
    return absl::OkStatus();
  }

  absl::Status CompareStep(const StepResult& plain) const {
    const StepResult result = runtime_->last_step();
    const bool same_norm = result.grad_norm == plain.grad_norm || !plain.applied;
    if (same_norm && result.applied == plain.applied && result.loss_scale == plain.loss_scale)
      return absl::OkStatus();
    return Differs(fmt::format("a step ({} {} {}, not {} {} {})", result.grad_norm, result.applied,
                               result.loss_scale, plain.grad_norm, plain.applied,
                               plain.loss_scale));
  }

  absl::Status CompareGrad(uint32_t t, const std::vector<std::byte>& plain) {
    std::vector<std::byte>& read =
        kept_.emplace_back(static_cast<size_t>(4 * case_.spec.tensors[t].elements));
    const absl::Status status = Wait([&] { return Access(t, Field::kGrad, false, &read); });
    if (plain.empty() && absl::IsNotFound(status)) return absl::OkStatus();
    SLUICE_RETURN_IF_ERROR(status);
    std::vector<float> expected(read.size() / 4);
    if (plain.empty()) return Differs(fmt::format("that tensor {} has a gradient", t));
    Convert(plain.data(), case_.training.TypesOf(case_.spec, t).grad, expected.data(),
            FloatType::kF32, expected.size());
    return ValuesOf(read, FloatType::kF32) == expected
               ? absl::OkStatus()
               : Differs(fmt::format("the gradient of {}", t));
  }

  OffloadRuntime* const runtime_;
  const RanksCase& case_;
  const uint32_t rank_;
  const std::function<absl::Status()> before_call_;
  std::deque<std::vector<std::byte>> kept_;  // of tickets that are not done, or failed
  std::deque<std::vector<std::byte>> grads_;
  std::vector<Ticket> pushed_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_RUN_H_
