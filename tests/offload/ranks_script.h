// tests/offload/ranks_script.h
//
// A training of several ranks as a list of what they do, in that order, each with gradients of its
// own; what plain arrays come to by it (PlainRanks); and a rank that carries it out and compares
// (ScriptRank).

#ifndef SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_H_
#define SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_H_

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "optim/loss_scale.h"
#include "tests/offload/ranks_fixture.h"
#include "tests/offload/train_reference.h"

namespace sluice::testing {

struct ScriptOp {
  enum class Kind {
    kMicro,     // forward and backward, each rank in its order
    kEvaluate,  // forward, each rank in its order
    kStep,
    kHeldStep,  // refused: units are acquired where `order` is not empty
    kClear,     // all gradients
    kClearOne,
    kRead,  // all masters, all at a time
    kReadGrad,
    kWrite,
    kWriteGrad
  };
  Kind kind = Kind::kStep;
  std::vector<std::vector<uint32_t>> order;  // by rank
  int seed = 0;
  uint32_t tensor = 0;
  bool boundary = false;
  bool bracketed = true;              // by BeginIteration and EndIteration
  bool waits = true;                  // for each unit's gradients; else when the micro-step ends
  std::optional<uint32_t> overflows;  // a rank, with `tensor`
};

inline int SeedOf(const ScriptOp& op, uint32_t rank) {
  return op.seed * 16 + static_cast<int>(rank);
}
// What is written, in place of the tensor's values or its gradient.
inline std::vector<float> Written(const ModelSpec& spec, const ScriptOp& op) {
  return InitialValues(static_cast<uint32_t>(op.seed), spec.tensors[op.tensor].elements);
}
inline std::vector<std::byte> MadeGradient(const ScriptOp& op, uint32_t rank, uint32_t t,
                                           const std::byte* params, const UnitTypes& types,
                                           int64_t elements) {
  std::vector<std::byte> made =
      MakeGradient(SeedOf(op, rank), t, params, types.param.floats(), types.grad, elements);
  if (op.overflows == rank && op.tensor == t) {
    const float inf = std::numeric_limits<float>::infinity();
    Convert(&inf, FloatType::kF32, made.data(), types.grad, 1);
  }
  return made;
}

// Gradients are collected by window, as they are between ranks (grad_exchange.h): the k-th time in
// a rank's w-th window that has any is added to what the others have the k-th time in their w-th.
class PlainRanks {
 public:
  explicit PlainRanks(const RanksCase& c)
      : spec_(c.spec),
        options_(c.training),
        scaler_(c.config.loss_scale),
        windows_(c.ranks),
        open_(c.ranks, false) {
    const size_t tensors = spec_.tensors.size();
    for (uint32_t t = 0; t < tensors; ++t) {
      master_.push_back(InitialOf(spec_, options_, t));
      const ElementType type = options_.TypesOf(spec_, t).param;
      if (frozen(t)) master_[t] = ValuesOf(ParamsOf(master_[t], type), type);
    }
    moments_.resize(tensors);
    for (size_t t = 0; t < tensors; ++t)
      moments_[t].assign(2, std::vector<float>(master_[t].size()));
    updates_.assign(tensors, 0);
    grads_.resize(tensors);
  }

  void Do(const ScriptOp& op) {
    using Kind = ScriptOp::Kind;
    if (op.kind == Kind::kMicro) return Micro(op);
    if (op.kind == Kind::kEvaluate || op.kind == Kind::kRead) return;
    if (op.kind == Kind::kWrite) {
      master_[op.tensor] = Written(spec_, op);
      return;
    }
    Reduce();
    if (op.kind == Kind::kStep) Step();
    if (op.kind == Kind::kClear) grads_.assign(grads_.size(), {});
    if (op.kind == Kind::kClearOne) grads_[op.tensor].clear();
    if (op.kind == Kind::kWriteGrad) {
      const std::vector<float> values = Written(spec_, op);
      const FloatType type = options_.TypesOf(spec_, op.tensor).grad;
      grads_[op.tensor].resize(values.size() * static_cast<size_t>(SizeOf(type)));
      Convert(values.data(), FloatType::kF32, grads_[op.tensor].data(), type, values.size());
    }
  }

  const std::vector<float>& master(uint32_t t) const { return master_[t]; }
  const std::vector<std::byte>& grad(uint32_t t) const { return grads_[t]; }  // empty: none
  const StepResult& last_step() const { return last_step_; }

 private:
  using Turns = std::vector<std::vector<std::byte>>;  // of a tensor
  using Window = std::vector<Turns>;                  // by tensor

  bool frozen(uint32_t t) const { return spec_.tensors[t].keep == Keep::kParam; }

  void Micro(const ScriptOp& op) {
    for (uint32_t r = 0; r < windows_.size(); ++r) {
      const std::vector<uint32_t>& order = op.order[r];
      for (size_t i = order.size(); i > 0; --i) {
        for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
          if (spec_.tensors[t].unit != UnitIndex(order[i - 1]) || frozen(t)) continue;
          if (!open_[r]) windows_[r].emplace_back(spec_.tensors.size());
          open_[r] = true;
          const UnitTypes types = options_.TypesOf(spec_, t);
          windows_[r].back()[t].push_back(MadeGradient(op, r, t,
                                                       ParamsOf(master_[t], types.param).data(),
                                                       types, spec_.tensors[t].elements));
        }
      }
      if (op.bracketed && !op.boundary) open_[r] = false;
    }
  }

  void Reduce() {
    for (size_t w = 0; std::ranges::any_of(windows_, [w](auto& of) { return w < of.size(); });
         ++w) {
      for (uint32_t t = 0; t < spec_.tensors.size(); ++t) ReduceTensor(w, t);
    }
    windows_.assign(windows_.size(), {});
    open_.assign(open_.size(), false);
  }

  void ReduceTensor(size_t window, uint32_t t) {
    for (size_t turn = 0;; ++turn) {
      std::vector<std::vector<std::byte>> grads(windows_.size());
      bool any = false;
      for (size_t r = 0; r < grads.size(); ++r) {
        if (window >= windows_[r].size() || turn >= windows_[r][window][t].size()) continue;
        grads[r] = windows_[r][window][t][turn];
        any = true;
      }
      if (!any) return;
      const FloatType type = options_.TypesOf(spec_, t).grad;
      std::vector<std::byte> mean = MeanOfRanks(grads, type, master_[t].size());
      if (grads_[t].empty()) {
        grads_[t] = std::move(mean);
      } else {
        Accumulate(grads_[t].data(), mean.data(), type, master_[t].size());
      }
    }
  }

  void Step() {
    const ScopedFlushDenormals flush;
    std::vector<double> cells;
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      const FloatType type = options_.TypesOf(spec_, t).grad;
      for (int64_t at = 0; at < spec_.tensors[t].elements; at += kCellElements) {
        const int64_t n = std::min(kCellElements, spec_.tensors[t].elements - at);
        cells.push_back(grads_[t].empty() ? 0.0
                                          : CellSquareSum(grads_[t].data() + at * SizeOf(type),
                                                          type, static_cast<size_t>(n)));
      }
    }
    const ClipDecision decision =
        DecideClip(NormOfCells(cells), scaler_.scale(), options_.clip_norm);
    SLUICE_CHECK(scaler_.Update(decision.overflow).ok());
    last_step_ = {
        .grad_norm = decision.norm, .applied = !decision.overflow, .loss_scale = scaler_.scale()};
    for (uint32_t t = 0; t < spec_.tensors.size() && !decision.overflow; ++t) {
      if (grads_[t].empty()) continue;
      const AdamWHyper hyper = AdamWGroups()[spec_.tensors[t].group];
      AdamWUpdate(MakeCoefficients(hyper, ++updates_[t], decision.grad_scale),
                  {.master = master_[t],
                   .exp_avg = moments_[t][0],
                   .exp_avg_sq = moments_[t][1],
                   .grad = grads_[t].data(),
                   .grad_type = options_.TypesOf(spec_, t).grad});
    }
    grads_.assign(grads_.size(), {});
  }

  const ModelSpec spec_;
  const TrainerOptions options_;
  LossScaler scaler_;
  std::vector<std::vector<Window>> windows_;  // by rank
  std::vector<bool> open_;                    // by rank: the last window
  std::vector<std::vector<float>> master_;
  std::vector<std::vector<std::vector<float>>> moments_;
  std::vector<int64_t> updates_;
  std::vector<std::vector<std::byte>> grads_;
  StepResult last_step_;
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_RANKS_SCRIPT_H_
