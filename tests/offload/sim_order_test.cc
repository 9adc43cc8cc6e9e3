// Calls take effect in the order in which they are made, also when the caller waits for none of
// them: random calls against a model that carries each out at once.

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "tests/core/seeds.h"
#include "tests/offload/simulation.h"

namespace sluice {
namespace {

using testing::ConfigOf;
using testing::Groups;
using testing::Mix;
using testing::OddModel;

constexpr FloatType kType = FloatType::kBf16;  // of parameters and gradients

// The model: what the runtime's tensors hold if every call had ended before the next began.
class Model {
 public:
  explicit Model(const ModelSpec& spec) : spec_(spec), tensors_(spec.tensors.size()) {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      for (std::vector<float>& field : tensors_[t].states)
        field.assign(static_cast<size_t>(spec.tensors[t].elements), 0.0f);
    }
  }

  std::vector<float>& field(uint32_t t, Field f) {
    return tensors_[t].states[static_cast<size_t>(f) - static_cast<size_t>(Field::kMaster)];
  }
  bool has_grad(uint32_t t) const { return !tensors_[t].grad.empty(); }
  bool loaded(uint32_t t) const { return tensors_[t].loaded; }
  void SetLoaded(uint32_t t) { tensors_[t].loaded = true; }
  std::vector<float> grad(uint32_t t) const {
    std::vector<float> values(static_cast<size_t>(spec_.tensors[t].elements));
    Convert(tensors_[t].grad.data(), kType, values.data(), FloatType::kF32, values.size());
    return values;
  }

  void Push(uint32_t t, const std::vector<std::byte>& grad) {
    std::vector<std::byte>& sum = tensors_[t].grad;
    if (sum.empty()) {
      sum = grad;
    } else {
      Accumulate(sum.data(), grad.data(), kType, static_cast<size_t>(spec_.tensors[t].elements));
    }
  }
  void ZeroGrad() {
    for (Tensor& tensor : tensors_) tensor.grad.clear();
  }

  void Step(double clip_norm) {
    std::vector<double> cells;
    for (uint32_t t = 0; t < tensors_.size(); ++t) {
      for (int64_t at = 0; at < spec_.tensors[t].elements; at += kCellElements) {
        const auto n = static_cast<size_t>(std::min(kCellElements, spec_.tensors[t].elements - at));
        const std::byte* from = tensors_[t].grad.data() + at * SizeOf(kType);
        cells.push_back(has_grad(t) ? CellSquareSum(from, kType, n) : 0.0);
      }
    }
    const ClipDecision decision = DecideClip(NormOfCells(cells), 1.0, clip_norm);
    const ScopedFlushDenormals flush;
    for (uint32_t t = 0; t < tensors_.size(); ++t) {
      Tensor& tensor = tensors_[t];
      if (tensor.grad.empty()) continue;
      AdamWUpdate(
          MakeCoefficients(Groups()[spec_.tensors[t].group], ++tensor.updates, decision.grad_scale),
          {.master = tensor.states[0],
           .exp_avg = tensor.states[1],
           .exp_avg_sq = tensor.states[2],
           .grad = tensor.grad.data(),
           .grad_type = kType});
    }
    ZeroGrad();
  }

  std::vector<std::byte> Params(uint32_t t) {
    const std::vector<float>& master = field(t, Field::kMaster);
    std::vector<std::byte> params(master.size() * static_cast<size_t>(SizeOf(kType)));
    Convert(master.data(), FloatType::kF32, params.data(), kType, master.size());
    return params;
  }

 private:
  struct Tensor {
    std::vector<float> states[3];  // master, exp_avg, exp_avg_sq
    std::vector<std::byte> grad;   // empty: none
    int64_t updates = 0;
    bool loaded = false;  // its master was written
  };
  const ModelSpec spec_;
  std::vector<Tensor> tensors_;
};

// Calls a runtime and the model alike, and compares when the runtime's tickets are done.
class RandomCaller {
 public:
  RandomCaller(SimRuntime* sim, uint64_t seed)
      : spec_(OddModel()),
        runtime_(sim->runtime.get()),
        faults_(sim->world->faults()),
        dice_(seed * 31),
        model_(spec_) {}

  // Every tensor, or all but some, which get their values later or never.
  void Load(bool all) {
    for (uint32_t t = 0; t < spec_.tensors.size(); ++t) {
      if (all || !dice_.OneIn(3)) Write(t, Field::kMaster);
    }
  }

  void CallAnything() {
    const uint32_t t = Tensor();
    const Field fields[] = {Field::kMaster, Field::kExpAvg, Field::kExpAvgSq};
    const Field field = fields[dice_.Uniform(0, 2)];
    const uint64_t what = dice_.Uniform(0, 99);
    if (what < 40) return Push(t);
    if (what < 50) return Read(t, field);
    if (what < 55) return ReadGrad(t);
    if (what < 60) return Write(t, field);
    if (what < 75) return Use(spec_.tensors[t].unit);
    if (what < 80) return Step();
    if (what < 84) return Zero();
    if (what < 90) return Iterate();
    if (what < 93) return Expect(runtime_->Drain(), "drain", [] { return true; });
    if (what < 96) return WaitForAll();
    WaitForOldest();
  }

  // What was read ahead is dropped for the sake of the value.
  void Finish() {
    Step();
    Read(0, Field::kMaster);
    Expect(runtime_->Drain(), "drain", [] { return true; });
    WaitForAll();
  }

  void WaitForAll() {
    while (!pending_.empty() && failure_.empty()) WaitForOldest();
  }
  const std::string& failure() const { return failure_; }

 private:
  struct Pending {
    Ticket ticket;
    std::string what;
    std::function<bool()> right;  // whether the result is what the model has
    absl::StatusCode code = absl::StatusCode::kOk;
  };

  uint32_t Tensor() { return static_cast<uint32_t>(dice_.Uniform(0, spec_.tensors.size() - 1)); }
  void Expect(Ticket ticket, std::string what, std::function<bool()> right,
              absl::StatusCode code = absl::StatusCode::kOk) {
    pending_.push_back({ticket, std::move(what), std::move(right), code});
  }

  void WaitForOldest() {
    if (pending_.empty()) return;
    const Pending oldest = std::move(pending_.front());
    pending_.pop_front();
    Judge(oldest);
  }
  void Judge(const Pending& p) {
    absl::Status status = absl::DeadlineExceededError("a ticket was never done");
    for (int i = 0; i < 600; ++i) {
      if (const auto result = runtime_->Wait(p.ticket, std::chrono::milliseconds(100)); result) {
        status = *result;
        break;
      }
    }
    if (!failure_.empty()) return;
    const bool excused = faults_->happened() > 0 && !absl::IsDeadlineExceeded(status) &&
                         !absl::IsInternal(status) && !absl::IsInvalidArgument(status);
    if (excused && !status.ok()) return;
    if (status.code() != p.code) {
      failure_ = fmt::format("{}: {}", p.what, status.ToString());
    } else if (status.ok() && !p.right()) {
      failure_ = fmt::format("{}: wrong values", p.what);
    }
  }

  void Push(uint32_t t) {
    const auto grad = std::make_shared<std::vector<std::byte>>(
        testing::MakeGradient(static_cast<int>(dice_.Uniform(0, 1000)), t, model_.Params(t).data(),
                              kType, kType, spec_.tensors[t].elements));
    if (model_.loaded(t)) model_.Push(t, *grad);
    Expect(
        runtime_->PushGrad(TensorIndex(t), *grad), fmt::format("gradient of {}", t),
        [grad] { return true; }, IfLoaded(t));
  }

  absl::StatusCode IfLoaded(uint32_t t) const {
    return model_.loaded(t) ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition;
  }

  ValueRequest Request(uint32_t t, Field field, std::vector<float>* values) const {
    return {.tensor = TensorIndex(t),
            .field = field,
            .data = reinterpret_cast<std::byte*>(values->data()),
            .type = FloatType::kF32,
            .done = nullptr};
  }

  void Read(uint32_t t, Field field) {
    const std::vector<float> expected = model_.field(t, field);
    const auto found = std::make_shared<std::vector<float>>(expected.size());
    Expect(
        runtime_->Access(Request(t, field, found.get())),
        fmt::format("reading field {} of {}", static_cast<int>(field), t),
        [found, expected] { return *found == expected; }, IfLoaded(t));
  }

  void ReadGrad(uint32_t t) {
    const std::vector<float> expected = model_.has_grad(t) ? model_.grad(t) : std::vector<float>();
    const auto found =
        std::make_shared<std::vector<float>>(static_cast<size_t>(spec_.tensors[t].elements));
    Expect(
        runtime_->Access(Request(t, Field::kGrad, found.get())),
        fmt::format("reading the gradient of {}", t),
        [found, expected] { return *found == expected; },
        model_.has_grad(t) ? absl::StatusCode::kOk : absl::StatusCode::kNotFound);
  }

  void Write(uint32_t t, Field field) {
    std::vector<float>& now = model_.field(t, field);
    const uint64_t salt = dice_.Random() >> 8;
    for (size_t i = 0; i < now.size(); ++i)
      now[i] = static_cast<float>(Mix(salt + i) % 1000) * 1e-3f;
    const auto values = std::make_shared<std::vector<float>>(now);
    if (field == Field::kMaster) model_.SetLoaded(t);
    ValueRequest request = Request(t, field, values.get());
    request.write = true;
    Expect(runtime_->Access(std::move(request)),
           fmt::format("writing field {} of {}", static_cast<int>(field), t),
           [values] { return true; });
  }

  // Acquires a unit, waits for that alone, looks at its parameters, releases it.
  void Use(UnitIndex unit) {
    absl::StatusCode code = absl::StatusCode::kOk;
    for (TensorIndex t : runtime_->layout().unit(unit).tensors)
      code = std::max(code, IfLoaded(t.value()));
    const Ticket ticket = runtime_->Acquire(unit);
    Judge({ticket, fmt::format("acquiring unit {}", unit.value()),
           [&] { return ParamsAreRight(unit); }, code});
    if (!failure_.empty() || !runtime_->failure().ok() || code != absl::StatusCode::kOk) return;
    if (const absl::Status released = runtime_->Release(unit); !released.ok())
      failure_ = released.ToString();
  }
  bool ParamsAreRight(UnitIndex unit) {
    const absl::StatusOr<DlManagedTensor*> view = runtime_->MakeView(unit);
    if (!view.ok()) return false;
    bool right = true;
    for (TensorIndex t : runtime_->layout().unit(unit).tensors) {
      const std::vector<std::byte> expected = model_.Params(t.value());
      const auto* at = static_cast<const std::byte*>((*view)->dl_tensor.data) +
                       runtime_->layout().tensor(t).offset * SizeOf(kType);
      right = right && std::memcmp(at, expected.data(), expected.size()) == 0;
    }
    (*view)->deleter(*view);
    return right;
  }

  void Step() {
    const double clip = dice_.OneIn(2) ? 1.0 : 0.0;
    model_.Step(clip);
    Expect(runtime_->Step({.groups = Groups(), .clip_norm = clip}), "step", [] { return true; });
  }

  void Zero() {
    model_.ZeroGrad();
    runtime_->ZeroGrad();
  }

  void Iterate() {
    if (std::exchange(iterating_, !iterating_)) return runtime_->EndIteration();
    const bool boundary = dice_.OneIn(2);
    runtime_->BeginIteration(boundary ? 1 : 0, boundary);
  }

  const ModelSpec spec_;
  Runtime* const runtime_;
  const SimFaults* const faults_;
  SimWorld dice_;
  Model model_;
  std::deque<Pending> pending_;
  bool iterating_ = false;
  std::string failure_;
};

// What went wrong with the calls of `seed`; empty if nothing.
std::string CallRandomly(uint64_t seed, const std::function<void(SimFaults*)>& faults) {
  absl::StatusOr<SimRuntime> sim =
      MakeSimRuntime(OddModel(), ConfigOf(seed), {.seed = seed, .faults = faults});
  if (!sim.ok()) return sim.status().ToString();
  RandomCaller caller(&*sim, seed);
  caller.Load(seed % 4 != 0);
  for (int i = 0; i < 120 && caller.failure().empty(); ++i) caller.CallAnything();
  caller.Finish();
  if (!caller.failure().empty()) return caller.failure();
  return testing::Settle(&*sim);
}

TEST(SimOrderTest, CallsTakeEffectInTheirOrder) {
  for (const uint64_t seed : Seeds(150)) ASSERT_EQ(CallRandomly(seed, {}), "") << "seed " << seed;
}

// Whatever is under way when something fails ends too, right or with an error.
TEST(SimOrderTest, EveryCallEndsWhenSomethingFails) {
  for (const uint64_t seed : Seeds(150)) {
    const auto faults = [seed](SimFaults* f) {
      const auto seam = static_cast<SimSeam>(seed % 3);  // reads, writes, copies
      f->Script(seam, SimFault::kError, 20 + seed % 151, SimFaults::Repeat::kOnce);
      f->Draw(SimSeam::kTask, SimFault::kLate, 50);
    };
    ASSERT_EQ(CallRandomly(seed, faults), "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace sluice
